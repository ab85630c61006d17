"""Environments: where sessions work. What agents may reach is kept; what is installed is the operator's image."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Response
from pydantic import Field

from apps.api.core.config.names import Text
from apps.api.core.context import Core
from apps.api.core.tenant import environments
from apps.api.core.tenant.environments import Host, Network
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
from apps.api.web.callers import Configurer, Reader
from apps.api.web.route import CoreDep

routes = router()

EnvironmentId = Annotated[UUID, id_path("environment")]
MANAGERS = ("apt", "cargo", "gem", "go", "npm", "pip")


class UnrestrictedNetwork(Closed):
    """Whatever profile and server allow."""

    type: Literal["unrestricted"]


class LimitedNetwork(Closed):
    """Only these hosts, beside the model."""

    type: Literal["limited"]
    allowed_hosts: Annotated[list[Host], Field(max_length=200)] | None = None
    allow_mcp_servers: bool | None = None
    allow_package_managers: bool | None = None


class WantedPackages(Closed):
    """What is to be installed. Nothing is: what is there is in the image."""

    type: Literal["packages"] | None = None
    apt: list[str] | None = None
    cargo: list[str] | None = None
    gem: list[str] | None = None
    go: list[str] | None = None
    npm: list[str] | None = None
    pip: list[str] | None = None


class CloudConfig(Closed):
    """An environment on this server."""

    type: Literal["cloud"]
    networking: Annotated[UnrestrictedNetwork | LimitedNetwork, Field(discriminator="type")] | None = None
    packages: WantedPackages | None = None


class SelfHostedConfig(Closed):
    """Tools that run elsewhere. Not supported."""

    type: Literal["self_hosted"]


Config = Annotated[CloudConfig | SelfHostedConfig, Field(discriminator="type")]
Name = Annotated[Text, Field(min_length=1, max_length=256)]
Description = Annotated[Text, Field(max_length=2048)]


class EnvironmentCreate(Closed):
    """A new environment."""

    model_config = explained()

    name: Name
    config: Config | None = None
    description: Description | None = None
    metadata: Metadata = Field(default_factory=dict)
    scope: Literal["organization", "account"] | None = None


class EnvironmentUpdate(Closed):
    """What changes of an environment."""

    model_config = explained()

    name: Name | None = None
    config: Config | None = None
    description: Description | None = None
    metadata: MetadataPatch | None = None
    scope: Literal["organization", "account"] | None = None


def _network(core: Core, config: CloudConfig | SelfHostedConfig | None, scope: str | None) -> Network | None:
    """What is kept of it. Raises BadRequest."""
    if scope == "account":
        raise unsupported("scope", "every environment is its whole tenant's: 'organization'")
    if config is None:
        return None
    if isinstance(config, SelfHostedConfig):
        raise unsupported("config.type", "agents run their tools on this server: 'cloud'")
    if config.packages is not None:
        for manager in MANAGERS:
            if getattr(config.packages, manager):
                why = "nothing is installed for a session: packages are part of the operator's image"
                raise unsupported(f"config.packages.{manager}", why)
    match config.networking:
        case LimitedNetwork() as asked:
            if asked.allow_package_managers and not core.settings.package_registries:
                why = "this server's operator names no registries of packages: see PACKAGE_REGISTRIES"
                raise unsupported("config.networking.allow_package_managers", why)
            if not environments.kept(core):
                raise unsupported(
                    "config.networking", "this server does not isolate its agents: AGENT_ISOLATION is off"
                )
            hosts = tuple(asked.allowed_hosts or ())
            return Network(
                allowed_hosts=hosts,
                mcp_servers=bool(asked.allow_mcp_servers),
                registries=bool(asked.allow_package_managers),
            )
        case UnrestrictedNetwork() if core.settings.agent_network in ("limited", "model_only"):
            raise unsupported(
                "config.networking", f"this server's agents have a network that is {core.settings.agent_network}"
            )
    return None


def shown(state: dict[str, Any]) -> dict[str, Any]:
    """An environment as these clients know it."""
    network = state["network"]
    networking: dict[str, Any] = {"type": "unrestricted"}
    if network is not None:
        networking = {
            "type": "limited",
            "allowed_hosts": network["allowed_hosts"],
            "allow_mcp_servers": network["mcp_servers"],
            "allow_package_managers": network["registries"],
        }
    return {
        "id": ids.write("env", state["environment_id"]),
        "type": "environment",
        "name": state["name"],
        "description": state["description"],
        "metadata": state["metadata"],
        "config": {
            "type": "cloud",
            "networking": networking,
            "packages": {"type": "packages", **{manager: [] for manager in MANAGERS}},
        },
        "scope": "organization",
        "created_at": state["created_at"],
        "updated_at": state["updated_at"],
        "archived_at": state["archived_at"],
    }


@routes.post("/environments", response_model=ManagedObject, responses=errors(409, 413, shows=examples.ENVIRONMENT))
async def create_managed_environment(core: CoreDep, caller: Configurer, body: EnvironmentCreate) -> Response:
    """Create an environment."""
    network = _network(core, body.config, body.scope)
    made = await environments.create(core.db, caller.tenant_id, body.name, body.description, body.metadata, network)
    return answer(shown(made))


@routes.get("/environments", response_model=ManagedPage, responses=errors(shows=examples.page_of(examples.ENVIRONMENT)))
async def list_managed_environments(
    core: CoreDep,
    caller: Reader,
    limit: Limit = 20,
    page_of: PageOf = None,
    include_archived: Archived = False,
) -> Response:
    """The tenant's environments, newest first."""
    found = await environments.list_page(
        core.db, caller.tenant_id, archived=include_archived, limit=limit, cursor=page_of
    )
    return page([shown(state) for state in found.data], found.next_cursor)


@routes.get(
    "/environments/{environment_id}", response_model=ManagedObject, responses=errors(404, shows=examples.ENVIRONMENT)
)
async def get_managed_environment(core: CoreDep, caller: Reader, environment_id: EnvironmentId) -> Response:
    """One environment, also an archived one."""
    return answer(shown(await environments.get(core.db, caller.tenant_id, environment_id)))


@routes.post(
    "/environments/{environment_id}",
    response_model=ManagedObject,
    responses=errors(404, 409, 413, shows=examples.ENVIRONMENT),
)
async def update_managed_environment(
    core: CoreDep, caller: Configurer, environment_id: EnvironmentId, body: EnvironmentUpdate
) -> Response:
    """Change an environment. Sessions that exist keep what they have."""
    before = await environments.get(core.db, caller.tenant_id, environment_id)
    changes: dict[str, Any] = {}
    if body.name is not None:
        changes["name"] = body.name
    if "description" in body.model_fields_set:
        changes["description"] = body.description
    if body.metadata is not None:
        changes["metadata"] = patched(before["metadata"], {key: value or None for key, value in body.metadata.items()})
    network = _network(core, body.config, body.scope)
    if body.config is not None:
        changes["network"] = network.model_dump(mode="json") if network else None
    return answer(shown(await environments.change(core.db, caller.tenant_id, environment_id, changes)))


@routes.delete(
    "/environments/{environment_id}",
    response_model=ManagedObject,
    responses=errors(404, 409, shows=examples.gone(examples.ENVIRONMENT)),
)
async def delete_managed_environment(core: CoreDep, caller: Configurer, environment_id: EnvironmentId) -> Response:
    """Delete an environment in which no session is."""
    await environments.delete(core.db, caller.tenant_id, environment_id)
    return answer({"id": ids.write("env", environment_id), "type": "environment_deleted"})


@routes.post(
    "/environments/{environment_id}/archive",
    response_model=ManagedObject,
    responses=errors(404, shows=examples.ENVIRONMENT),
)
async def archive_managed_environment(core: CoreDep, caller: Configurer, environment_id: EnvironmentId) -> Response:
    """Let no session begin there any more."""
    return answer(shown(await environments.archive(core.db, caller.tenant_id, environment_id)))
