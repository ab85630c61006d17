"""Vaults and their credentials: secrets that only the sessions have which name the vault."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Response
from pydantic import Field, StringConstraints

from apps.api.core.config import environment
from apps.api.core.config.names import EnvName, Text
from apps.api.core.config.parts import Url
from apps.api.core.tenant import vaults
from apps.api.core.tenant.vaults import Given
from apps.api.dialects.managed import examples, ids
from apps.api.dialects.managed.common import (
    Archived,
    Closed,
    Limit,
    ManagedObject,
    ManagedPage,
    Metadata,
    MetadataPatch,
    PageOf,
    answer,
    errors,
    explained,
    id_path,
    page,
    patched,
    router,
    unsupported,
)
from apps.api.errors import ValidationError
from apps.api.web.callers import Configurer, Reader
from apps.api.web.route import CoreDep

routes = router()

VaultId = Annotated[UUID, id_path("vault")]
CredentialId = Annotated[UUID, id_path("credential")]
DisplayName = Annotated[Text, Field(min_length=1, max_length=255)]
Token = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,8000}$")]
Value = Annotated[Text, Field(min_length=1, max_length=32_000)]


class ManagedVaultCreate(Closed):
    """A new vault."""

    model_config = explained()

    display_name: DisplayName
    metadata: Metadata = Field(default_factory=dict)


class ManagedVaultUpdate(Closed):
    """What changes."""

    model_config = explained()

    display_name: DisplayName | None = None
    metadata: MetadataPatch | None = None


class StaticBearer(Closed):
    """A token for the MCP server at a URL."""

    type: Literal["static_bearer"]
    mcp_server_url: Url
    token: Token


class AnyHost(Closed):
    """Wherever the environment lets the agent go."""

    type: Literal["unrestricted"]


class OnlyHosts(Closed):
    """Only these hosts. Not supported."""

    type: Literal["limited"]
    allowed_hosts: list[str]


class InjectionLocation(Closed):
    """Where in a request the secret may be."""

    body: bool | None = None
    header: bool | None = None


Networking = Annotated[AnyHost | OnlyHosts, Field(discriminator="type")]


class EnvironmentVariable(Closed):
    """A variable of the agent's environment."""

    type: Literal["environment_variable"]
    secret_name: EnvName
    secret_value: Value
    networking: Networking
    injection_location: InjectionLocation | None = None


class McpOauth(Closed):
    """A sign-in at an MCP server. Not supported."""

    type: Literal["mcp_oauth"]
    access_token: Any = None
    mcp_server_url: Any = None
    expires_at: Any = None
    refresh: Any = None


class ManagedCredentialCreate(Closed):
    """A new credential."""

    model_config = explained()

    auth: Annotated[StaticBearer | EnvironmentVariable | McpOauth, Field(discriminator="type")]
    display_name: DisplayName | None = None
    metadata: Metadata = Field(default_factory=dict)


class StaticBearerChange(Closed):
    """A new token."""

    type: Literal["static_bearer"]
    token: Token | None = None


class EnvironmentVariableChange(Closed):
    """A new value."""

    type: Literal["environment_variable"]
    secret_value: Value | None = None
    networking: Networking | None = None
    injection_location: InjectionLocation | None = None


class ManagedCredentialUpdate(Closed):
    """What changes."""

    model_config = explained()

    auth: Annotated[StaticBearerChange | EnvironmentVariableChange | McpOauth, Field(discriminator="type")] | None = (
        None
    )
    display_name: DisplayName | None = None
    metadata: MetadataPatch | None = None


KINDS: dict[str, vaults.Kind] = {"static_bearer": "bearer", "environment_variable": "variable"}


def _check(auth: Any) -> None:
    """Raises BadRequest for what is asked for and not supported."""
    if isinstance(auth, McpOauth):
        raise unsupported("auth.type", "nobody signs in here: 'static_bearer' or 'environment_variable'")
    if isinstance(auth, EnvironmentVariable | EnvironmentVariableChange):
        if isinstance(auth.networking, OnlyHosts):
            reason = "the agent is given the value itself: limit the environment's network instead"
            raise unsupported("auth.networking.type", reason)
        where = auth.injection_location or InjectionLocation()
        for name in ("body", "header"):
            if getattr(where, name) is False:
                raise unsupported(f"auth.injection_location.{name}", "the agent itself puts the value into requests")


def _vault(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": ids.write("vlt", state["id"]),
        "type": "vault",
        "display_name": state["name"],
        "metadata": state["metadata"],
        **{name: state[name] for name in ("created_at", "updated_at", "archived_at")},
    }


def _credential(state: dict[str, Any]) -> dict[str, Any]:
    auth: dict[str, Any] = {"type": "static_bearer", "mcp_server_url": state["target"]}
    if state["kind"] == "variable":
        auth = {
            "type": "environment_variable",
            "secret_name": state["target"],
            "networking": {"type": "unrestricted"},
            "injection_location": {"body": True, "header": True},
        }
    return {
        "id": ids.write("vcrd", state["id"]),
        "type": "vault_credential",
        "vault_id": ids.write("vlt", state["vault_id"]),
        "display_name": state["name"],
        "metadata": state["metadata"],
        "auth": auth,
        **{name: state[name] for name in ("created_at", "updated_at", "archived_at")},
    }


@routes.post("/vaults", response_model=ManagedObject, responses=errors(409, 413, shows=examples.VAULT))
async def create_managed_vault(core: CoreDep, caller: Configurer, body: ManagedVaultCreate) -> Response:
    """Create a vault, for the `vault_ids` of sessions."""
    return answer(_vault(await vaults.create(core.db, caller.tenant_id, body.display_name, body.metadata)))


@routes.get("/vaults", response_model=ManagedPage, responses=errors(shows=examples.page_of(examples.VAULT)))
async def list_managed_vaults(
    core: CoreDep, caller: Reader, limit: Limit = 20, page_of: PageOf = None, include_archived: Archived = False
) -> Response:
    """The tenant's vaults, newest first."""
    found = await vaults.list_page(core.db, caller.tenant_id, archived=include_archived, limit=limit, cursor=page_of)
    return page([_vault(state) for state in found.data], found.next_cursor)


@routes.get("/vaults/{vault_id}", response_model=ManagedObject, responses=errors(404, shows=examples.VAULT))
async def get_managed_vault(core: CoreDep, caller: Reader, vault_id: VaultId) -> Response:
    """One vault, without its credentials."""
    return answer(_vault(await vaults.get(core.db, caller.tenant_id, vault_id)))


@routes.post("/vaults/{vault_id}", response_model=ManagedObject, responses=errors(404, 409, 413, shows=examples.VAULT))
async def update_managed_vault(
    core: CoreDep, caller: Configurer, vault_id: VaultId, body: ManagedVaultUpdate
) -> Response:
    """Change a vault's name or metadata."""
    before = await vaults.get(core.db, caller.tenant_id, vault_id)
    metadata = None if body.metadata is None else patched(before["metadata"], body.metadata)
    return answer(_vault(await vaults.change(core.db, caller.tenant_id, vault_id, body.display_name, metadata)))


@routes.delete(
    "/vaults/{vault_id}", response_model=ManagedObject, responses=errors(404, shows=examples.gone(examples.VAULT))
)
async def delete_managed_vault(core: CoreDep, caller: Configurer, vault_id: VaultId) -> Response:
    """Remove a vault with what is in it. Sessions have its secrets no more from their next agent on."""
    await vaults.delete(core.db, caller.tenant_id, vault_id)
    return answer({"id": ids.write("vlt", vault_id), "type": "vault_deleted"})


@routes.post("/vaults/{vault_id}/archive", response_model=ManagedObject, responses=errors(404, shows=examples.VAULT))
async def archive_managed_vault(core: CoreDep, caller: Configurer, vault_id: VaultId) -> Response:
    """Forget the secrets of a vault, and let no session begin with it any more."""
    return answer(_vault(await vaults.archive(core.db, caller.tenant_id, vault_id)))


@routes.post(
    "/vaults/{vault_id}/credentials",
    response_model=ManagedObject,
    responses=errors(404, 409, 413, shows=examples.CREDENTIAL),
)
async def create_managed_credential(
    core: CoreDep, caller: Configurer, vault_id: VaultId, body: ManagedCredentialCreate
) -> Response:
    """Put a secret into a vault. Nobody reads it back."""
    _check(auth := body.auth)
    if isinstance(auth, StaticBearer):
        given = Given("bearer", auth.mcp_server_url, auth.token, body.display_name, body.metadata)
    else:
        assert isinstance(auth, EnvironmentVariable)  # noqa: S101 - for the type checker
        if environment.reserved([auth.secret_name]):
            raise ValidationError.of("auth.secret_name", "is reserved by the server")
        given = Given("variable", auth.secret_name, auth.secret_value, body.display_name, body.metadata)
    return answer(_credential(await vaults.add(core.db, core.settings, caller.tenant_id, vault_id, given)))


@routes.get(
    "/vaults/{vault_id}/credentials",
    response_model=ManagedPage,
    responses=errors(404, shows=examples.page_of(examples.CREDENTIAL)),
)
async def list_managed_credentials(
    core: CoreDep,
    caller: Reader,
    vault_id: VaultId,
    limit: Limit = 20,
    page_of: PageOf = None,
    include_archived: Archived = False,
) -> Response:
    """What is in a vault, without the secrets."""
    found = await vaults.credentials(
        core.db, caller.tenant_id, vault_id, archived=include_archived, limit=limit, cursor=page_of
    )
    return page([_credential(state) for state in found.data], found.next_cursor)


@routes.get(
    "/vaults/{vault_id}/credentials/{credential_id}",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.CREDENTIAL),
)
async def get_managed_credential(
    core: CoreDep, caller: Reader, vault_id: VaultId, credential_id: CredentialId
) -> Response:
    """A credential, without its secret."""
    return answer(_credential(await vaults.credential(core.db, caller.tenant_id, vault_id, credential_id)))


@routes.post(
    "/vaults/{vault_id}/credentials/{credential_id}",
    response_model=ManagedObject,
    responses=errors(404, 409, 413, shows=examples.CREDENTIAL),
)
async def update_managed_credential(
    core: CoreDep, caller: Configurer, vault_id: VaultId, credential_id: CredentialId, body: ManagedCredentialUpdate
) -> Response:
    """Replace the secret, or change name or metadata. Agents that run get the new one with their next turn."""
    before = await vaults.credential(core.db, caller.tenant_id, vault_id, credential_id)
    changes: dict[str, Any] = {}
    if body.auth is not None:
        _check(body.auth)
        if KINDS[body.auth.type] != before["kind"]:
            raise ValidationError.of("auth.type", "does not change")
        secret = "token" if isinstance(body.auth, StaticBearerChange) else "secret_value"
        changes["value"] = getattr(body.auth, secret)
    if "display_name" in body.model_fields_set:
        changes["name"] = body.display_name
    if body.metadata is not None:
        changes["metadata"] = patched(before["metadata"], body.metadata)
    revised = await vaults.revise(core.db, core.settings, caller.tenant_id, vault_id, credential_id, changes)
    return answer(_credential(revised))


@routes.delete(
    "/vaults/{vault_id}/credentials/{credential_id}",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.gone(examples.CREDENTIAL)),
)
async def delete_managed_credential(
    core: CoreDep, caller: Configurer, vault_id: VaultId, credential_id: CredentialId
) -> Response:
    """Remove a credential; agents that start later do without it."""
    await vaults.delete_credential(core.db, caller.tenant_id, vault_id, credential_id)
    return answer({"id": ids.write("vcrd", credential_id), "type": "vault_credential_deleted"})


@routes.post(
    "/vaults/{vault_id}/credentials/{credential_id}/archive",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.CREDENTIAL),
)
async def archive_managed_credential(
    core: CoreDep, caller: Configurer, vault_id: VaultId, credential_id: CredentialId
) -> Response:
    """Forget a credential's secret."""
    archived = await vaults.archive_credential(core.db, caller.tenant_id, vault_id, credential_id)
    return answer(_credential(archived))
