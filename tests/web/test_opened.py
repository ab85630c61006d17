"""What stays open ends with the key that opened it, on every instance; and no key has more of it than its share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from apps.api import auth, keys
from apps.api.auth import Principal
from apps.api.core.config.limits import Limits
from apps.api.core.tasks import Loop
from apps.api.db import Database
from apps.api.errors import ApiError, RateLimited, Unavailable
from apps.api.redis import Redis
from apps.api.settings import Settings
from apps.api.shares import Kind, table
from apps.api.web.opened import Held, Opened
from tests.conftest import StartFleet
from tests.fleet import Fleet, Instance, Sse, events_of
from tests.sockets import open_socket

PATIENCE = 30.0
LOOP = Loop("opened")


@pytest.fixture
def opened(db: Database, settings: Settings) -> Opened:
    return Opened(db, table(settings, 1024))


async def a_key(db: Database, tenant: str = "acme", **more: Any) -> keys.CreatedKey:
    return await keys.create_key(db, tenant=tenant, name="k", **{"scopes": ("write",), **more})


async def ended(opened: Opened, *held: Held) -> list[str | None]:
    """By which error each of them has to end after one look."""
    await opened.check(LOOP)
    return [place.why.code if place.why else None for place in held]


@pytest.fixture
async def caller(db: Database, redis: Redis) -> Principal:
    return await auth.authenticate(db, redis, (await a_key(db)).secret)


async def test_a_key_that_is_as_it_was_ends_nothing(opened: Opened, caller: Principal) -> None:
    held = [opened.hold("streams", caller), opened.hold("sockets", caller), opened.hold(None, caller, "write")]
    assert await ended(opened, *held) == [None] * 3


async def test_what_ends_with_a_run_is_waited_for_before_an_instance_stops(opened: Opened, caller: Principal) -> None:
    of_run, of_session = opened.hold("streams", caller), opened.hold("streams", caller)
    of_session.endless = True
    waiting = asyncio.create_task(opened.until_told(asyncio.get_running_loop().time() + PATIENCE))
    for _ in range(3):
        await asyncio.sleep(0)
    late = opened.hold(None, caller)
    for held in (of_run, late):
        assert not waiting.done()
        held.close()
        for _ in range(3):
            await asyncio.sleep(0)
    async with asyncio.timeout(PATIENCE):
        await waiting
    assert not of_session.over.done()


async def test_what_comes_when_an_instance_has_stopped_ends_as_it_begins(opened: Opened, caller: Principal) -> None:
    opened.drain(only_endless=True)
    assert not (before := opened.hold("streams", caller)).over.done()
    opened.drain(only_endless=False)
    assert before.over.done()
    assert opened.hold("streams", caller).over.done()


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        ("revoked_at = now()", ["invalid_api_key", "invalid_api_key"]),
        ("expires_at = now()", ["invalid_api_key", "invalid_api_key"]),
        ("scopes = '{read}'", [None, "insufficient_scope"]),
        ("profiles = '{other}'", ["profile_not_permitted", "profile_not_permitted"]),
        ("name = 'another'", [None, None]),
    ],
)
async def test_what_a_key_has_opened_ends_with_what_the_key_may(
    opened: Opened, caller: Principal, db: Database, change: str, codes: list[str | None]
) -> None:
    held = opened.hold("streams", caller, "read"), opened.hold("streams", caller, "write")
    await db.pool.execute(f"UPDATE api_keys SET {change}")
    assert await ended(opened, *held) == codes


async def test_of_what_one_caller_has_opened_each_ends_by_what_it_is_for(
    opened: Opened, db: Database, redis: Redis
) -> None:
    key = await a_key(db)
    caller = await auth.authenticate(db, redis, key.secret)
    held = [opened.hold("streams", caller, scope) for scope in ("read", "write", "read", "write")]
    await db.pool.execute("UPDATE api_keys SET scopes = '{read}' WHERE id = $1", caller.key_id)
    assert await ended(opened, *held) == [None, "insufficient_scope"] * 2


async def test_it_ends_with_the_tenant(opened: Opened, caller: Principal, db: Database) -> None:
    held = opened.hold("streams", caller)
    await db.pool.execute("DELETE FROM tenants WHERE id = $1", caller.tenant_id)
    assert await ended(opened, held) == ["invalid_api_key"]


async def test_what_an_old_secret_has_opened_ends_with_that_secret(opened: Opened, db: Database, redis: Redis) -> None:
    made = await a_key(db)
    old = opened.hold("streams", await auth.authenticate(db, redis, made.secret))
    new_secret = (await keys.rotate_key(db, redis, made.id, 3600)).secret
    new = opened.hold("streams", await auth.authenticate(db, redis, new_secret))
    assert await ended(opened, old, new) == [None, None]
    await db.pool.execute("UPDATE api_keys SET previous_expires_at = now()")
    assert await ended(opened, old, new) == ["invalid_api_key", None]


async def test_nothing_is_asked_where_nothing_is_open(settings: Settings) -> None:
    opened = Opened(None, table(settings, 1024))  # type: ignore[arg-type] # it would raise
    opened.hold("strangers", None)
    await opened.check(LOOP)


async def test_a_database_that_is_away_ends_nothing(settings: Settings, caller: Principal) -> None:
    async with Database.open(settings) as gone:
        opened = Opened(gone, table(settings, 1024))
    held = opened.hold("streams", caller)
    assert await ended(opened, held) == [None]


# --- shares --------------------------------------------------------------------------------------------------------


def somebody(**same: Any) -> Principal:
    given = {"tenant_id": uuid4(), "key_id": uuid4(), **same}
    return Principal(tenant="t", key_name="k", prefix="cak_", scopes=("read",), expires_at=None, networks=None, **given)


def taken_by(opened: Opened, kind: Kind, caller: Principal, most: int = 10_000) -> tuple[int, ApiError]:
    for count in range(most):
        try:
            opened.hold(kind, caller)
        except ApiError as error:
            return count, error
    raise AssertionError(f"no bound below {most}")


async def test_the_next_stream_of_a_key_is_refused_and_others_have_theirs(opened: Opened) -> None:
    count, error = taken_by(opened, "streams", somebody())
    assert (count, type(error), error.code) == (100, RateLimited, "too_many_streams")
    assert opened.hold("streams", somebody()) is not None


async def test_a_key_and_a_tenant_may_have_limits_of_their_own(opened: Opened) -> None:
    more, few = Limits(streams=120), Limits(streams=2)
    assert taken_by(opened, "streams", somebody(limits=more))[0] == 120
    same = {"tenant_id": uuid4(), "tenant_limits": Limits(streams=3)}
    count, error = taken_by(opened, "streams", somebody(limits=few, **same))
    assert (count, error.code, error.details) == (2, "too_many_streams", {"scope": "key", "limit": 2, "used": 2})
    count, error = taken_by(opened, "streams", somebody(limits=more, **same))
    assert (count, error.code, error.details) == (1, "too_many_streams", {"scope": "tenant", "limit": 3, "used": 3})


async def test_a_limit_that_comes_later_counts_what_is_open(opened: Opened) -> None:
    before = somebody()
    for _ in range(3):
        opened.hold("streams", before)
    now = somebody(key_id=before.key_id, tenant_id=before.tenant_id, tenant_limits=Limits(streams=4))
    assert taken_by(opened, "streams", now)[0] == 1


async def test_an_instance_keeps_descriptors_whoever_asks(settings: Settings) -> None:
    opened = Opened(None, table(settings, 256))  # type: ignore[arg-type]
    total = 0
    while True:
        count, error = taken_by(opened, "streams", somebody())
        total += count
        if isinstance(error, Unavailable):
            break
    assert error.code == "instance_full"
    assert total <= 256 - 64
    assert error.headers["Retry-After"]


async def test_one_tenant_cannot_take_an_instance_with_many_keys(settings: Settings) -> None:
    opened, tenant = Opened(None, table(settings, 256)), uuid4()  # type: ignore[arg-type]
    while isinstance(error := taken_by(opened, "streams", somebody(tenant_id=tenant))[1], RateLimited):
        if "tenant" in error.message:
            break
    assert isinstance(error, RateLimited)
    assert opened.hold("streams", somebody())


async def test_what_has_ended_counts_no_more(opened: Opened) -> None:
    caller = somebody()
    held = [opened.hold("streams", caller) for _ in range(100)]
    for place in held:
        place.close()
        place.close()  # once is enough
    assert opened.count("streams") == 0
    assert taken_by(opened, "streams", caller)[0] == 100


async def test_a_refusal_takes_nothing(settings: Settings) -> None:
    opened = Opened(None, table(settings, 256))  # type: ignore[arg-type]
    caller = somebody()
    count, _ = taken_by(opened, "sockets", caller)
    for _ in range(500):
        with pytest.raises(ApiError):
            opened.hold("sockets", caller)
    assert opened.count("sockets") == count
    for place in opened:
        place.close()
    assert taken_by(opened, "sockets", caller)[0] == count


async def test_who_shows_a_key_is_no_stranger_any_more(opened: Opened) -> None:
    caller = somebody()
    held = opened.hold("strangers", None)
    opened.admit(held, "sockets", caller)
    assert (opened.count("strangers"), opened.count("sockets"), held.caller) == (0, 1, caller)
    held.close()
    assert taken_by(opened, "strangers", caller)[0] >= 1


# --- over HTTP -------------------------------------------------------------------------------------------------------


async def a_tenant(instance: Instance) -> str:
    name = f"t{uuid4().hex}"
    assert (await instance.post("/admin/tenants", {"name": name})).status_code == 201
    return name


async def a_key_of(instance: Instance, tenant: str) -> tuple[dict[str, str], str]:
    """Headers of a new key, and its id."""
    made = (await instance.post("/admin/keys", {"name": "k", "tenant": tenant, "scopes": ["write"]})).json()
    return {"X-API-Key": made["secret"]}, made["key_id"]


@asynccontextmanager
async def following(instance: Instance, session: str, headers: dict[str, str]) -> AsyncIterator[AsyncIterator[Sse]]:
    url = f"{instance.url}/api/v1/sessions/{session}/events"
    async with instance.client.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        yield events_of(response)


async def test_what_is_open_ends_with_its_key_on_every_instance(fleet: Fleet) -> None:
    tenant = await a_tenant(fleet[0])
    (headers, key_id), (others, _) = [await a_key_of(fleet[0], tenant) for _ in range(2)]
    session = (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]
    path = f"/sessions/{session}"
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(following(fleet[i], session, headers)) for i in (0, 1)]
        spared = await stack.enter_async_context(following(fleet[1], session, others))
        socket = await stack.enter_async_context(open_socket(fleet[2], headers))
        await socket.ask("follow", session_id=session)
        prompt = {"prompt": "ask Which colour? options red, green"}
        wait = asyncio.create_task(fleet[1].post(f"{path}/query?wait=300", prompt, headers=headers))
        for events in (*streams, spared):
            while (await anext(events)).event != "question":
                pass
        assert (await fleet[0].post(f"/admin/keys/{key_id}/revoke")).status_code == 200
        for events in streams:
            last = [event async for event in events][-1]
            assert (last.event, last.data["code"], last.id) == ("error", "invalid_api_key", "")
        assert await socket.closed() == 4401
        answer = await wait
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await fleet[1].get(f"{path}/events", headers=headers)).status_code == 401
        assert (await fleet[0].client.delete(f"/api/v1{path}", headers=others)).status_code == 200
        assert [event async for event in spared][-1].data["code"] == "session_deleted"


@pytest.mark.parametrize("path", ["/compat/chat-server/chat", "/compat/code-server/query"])
async def test_streams_of_older_servers_end_in_their_own_words(fleet: Fleet, path: str) -> None:
    headers, key_id = await a_key_of(fleet[0], await a_tenant(fleet[0]))
    lines: list[dict[str, Any]] = []
    url, body = f"{fleet[1].url}{path}", {"prompt": "hang after 3 words", "stream": True}
    if "chat" in path:
        del body["stream"]
    async with asyncio.timeout(PATIENCE), fleet[1].client.stream("POST", url, json=body, headers=headers) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                lines.append(json.loads(line.removeprefix("data: ")))
                if len(lines) == 1:
                    await fleet[0].post(f"/admin/keys/{key_id}/revoke")
    assert [line["type"] for line in lines[-2:]] == ["error", "done"]
    assert "not valid any more" in lines[-2]["error"]


CHANGES: list[tuple[dict[str, Any] | None, str, int]] = [
    (None, "invalid_api_key", 4401),
    ({"expires_at": "2001-01-01T00:00:00Z"}, "invalid_api_key", 4401),
    ({"profiles": ["readonly"]}, "profile_not_permitted", 4403),
    ({"networks": ["192.0.2.0/24"]}, "address_not_permitted", 4403),
]
"""What is changed of a key, None being its revocation; the code by which a stream ends, and that of a WebSocket."""


async def test_what_is_open_ends_with_its_key_where_redis_is_away_too(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(2, REDIS_URL="redis://127.0.0.1:1/0")
    tenant = await a_tenant(fleet[0])
    for change, code, close_code in CHANGES:
        headers, key_id = await a_key_of(fleet[0], tenant)
        session = (await fleet[1].post("/sessions", {}, headers=headers)).json()["session_id"]
        async with (
            asyncio.timeout(PATIENCE),
            following(fleet[1], session, headers) as events,
            open_socket(fleet[1], headers) as socket,
        ):
            await socket.ask("follow", session_id=session)
            if change is None:
                done = await fleet[0].post(f"/admin/keys/{key_id}/revoke")
            else:
                done = await fleet[0].client.patch(f"/api/v1/admin/keys/{key_id}", json=change)
            assert done.status_code == 200, done.text
            last = [event async for event in events][-1]
            assert (last.event, last.data["code"]) == ("error", code)
            assert await socket.closed() == close_code
