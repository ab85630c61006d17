"""Resources of sessions and prompts: whether they are there and allowed."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from apps.api.core.config.resources import Resource
from apps.api.core.context import Core
from apps.api.core.tenant import repositories, uploads
from apps.api.errors import NotFound, Problem, noting


async def problems(core: Core, tenant_id: UUID, resources: Sequence[Resource]) -> list[Problem]:
    """What is wrong with them, as far as can be told without fetching any."""
    found = list[Problem]()
    missing = await uploads.missing(core.db, tenant_id, {UUID(one.file_id) for one in resources if one.file_id})
    for number, one in enumerate(resources):
        field = f"resources.{number}"
        with noting(found, f"{field}.file_id"):
            if one.file_id is not None and UUID(one.file_id) in missing:
                raise NotFound.of("file")
        with noting(found, field):
            repositories.check(core.settings, one.repository, f"{field}.repository.url")
    return found
