"""Repositories that sessions begin with: from which hosts, and with which of the tenant's secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

from apps.api.core.config.parts import Repository
from apps.api.core.context import Core
from apps.api.core.tenant import vault
from apps.api.errors import ValidationError
from apps.api.settings import Settings

TOKEN = "GIT_TOKEN"  # noqa: S105 - the name of a secret
"""The tenant's secret for all hosts; `GIT_TOKEN_GITHUB_COM` is the one for github.com, and goes before it."""

_USERS = {"bitbucket.org": "x-token-auth"}
"""Users that hosts want with a token; the others take any."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where to clone from.

    Attributes:
        addresses: of the host, checked: git connects to one of these, and asks for no other.
        credential: user and password, for when the host asks for them.
    """

    url: str
    host: str
    port: int
    addresses: tuple[str, ...]
    ref: str | None
    credential: tuple[str, str] | None


def check(settings: Settings, repository: Repository | None, field: str = "repository.url") -> None:
    """Whether the operator allows its host (REPOSITORY_HOSTS). Raises ValidationError about `field`."""
    if repository is not None:
        host, port = _place(repository.url)
        allowed = {entry.lower() for entry in settings.repository_hosts}
        if not allowed & {host, f"{host}:{port}"}:
            raise ValidationError.of(field, f"no repositories are cloned from {host} (REPOSITORY_HOSTS)")


async def resolve(core: Core, tenant_id: UUID, repository: Repository) -> Source:
    """What the runner clones from.

    Raises:
        ValidationError: the host is not allowed.
        outbound.Refused, outbound.Failed: its address is not one that the server connects to, or not to be found.
        Unavailable: `encryption_not_configured`.
    """
    check(core.settings, repository)
    host, port = _place(repository.url)
    addresses = await core.outbound.resolve(host, port, tenant_id)
    names = (f"{TOKEN}_{re.sub('[^A-Z0-9]', '_', host.upper())}", TOKEN)
    there = await vault.known(core.db, tenant_id, names)
    name = next((name for name in names if name in there), None)
    credential = None
    if name is not None:
        value = (await vault.resolve(core.db, core.settings, tenant_id, [name]))[name]
        user, found, password = value.partition(":")
        credential = (user, password) if found else (_USERS.get(host, "x-access-token"), value)
    return Source(repository.url, host, port, tuple(addresses), repository.ref, credential)


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
