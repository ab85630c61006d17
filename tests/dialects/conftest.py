"""What the tests of the dialects share: a stranger's key, and shapes of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from uuid import uuid4

import pytest

from apps.api import auth
from apps.api.db import Database
from apps.api.settings import Settings
from tests.fleet import Fleet

NewKey = Callable[..., Awaitable[dict[str, str]]]


@pytest.fixture(scope="session")
async def fleet_db(fleet: Fleet) -> AsyncIterator[Database]:
    async with Database.open(Settings(_env_file=None, database_url=fleet.env["DATABASE_URL"])) as db:
        yield db


@pytest.fixture
def new_key(fleet_db: Database) -> NewKey:
    """Headers of a new key; of a new tenant unless one is named."""

    async def make(tenant: str | None = None, **more: Any) -> dict[str, str]:
        made = await auth.create_key(fleet_db, tenant=tenant or f"t{uuid4().hex}", name="k", **more)
        return {"X-API-Key": made.secret}

    return make


def shaped(body: Any, shape: Mapping[str, Any]) -> dict[str, Any]:
    """The body, once it has these fields, in this order, and each is of its type (a tuple: of one of them)."""
    assert isinstance(body, dict), body
    assert list(body) == list(shape), body
    for name, kind in shape.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        assert type(body[name]) in kinds, f"{name}: {body[name]!r}"
    return body
