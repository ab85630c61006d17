"""Wrong keys cost next to nothing however many come, and keep no right one out that comes from the same address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from apps.api import addresses, keys
from apps.api.addresses import Address
from apps.api.auth import Principal
from apps.api.db import REQUESTS, Database
from apps.api.errors import ApiError, Forbidden, RateLimited, Unauthorized, Unavailable
from apps.api.redis import Redis
from apps.api.settings import Settings
from apps.api.web import entrance
from apps.api.web.entrance import OF_ALL, Entrance
from tests.conftest import StartFleet, make_key
from tests.fleet import API_KEY, HEADERS, NO_TLS, Fleet
from tests.world import until

PATIENCE = 30.0
LIMIT = 5
HERE = addresses.read("192.0.2.1")
THERE = addresses.read("198.51.100.9")


@pytest.fixture
async def door(db: Database, redis: Redis) -> AsyncIterator[Entrance]:
    made = Entrance(db, redis, LIMIT)
    yield made
    await made.close()


@pytest.fixture
async def statements(db: Database) -> list[str]:
    """Those about keys that go to the database, as they go."""
    seen = list[str]()

    def note(query: asyncpg.connection.LoggedQuery) -> None:
        if "api_keys" in query.query:
            seen.append(query.query)

    taken = [await db.pool.acquire() for _ in range(REQUESTS)]
    for connection in taken:
        connection.add_query_logger(note)
        await db.pool.release(connection)
    return seen


async def count(statements: list[str]) -> int:
    """The loop tells of each a turn later."""
    await asyncio.sleep(0)
    return len(statements)


async def a_key(db: Database, **more: Any) -> keys.CreatedKey:
    return await keys.create_key(db, tenant="acme", name="k", scopes=("write",), **more)


async def shown(door: Entrance, secret: str, address: Address | None = HERE) -> str:
    """`ok`, or the code of the refusal."""
    try:
        await door.authenticate(secret, address)
    except ApiError as error:
        return error.code
    return "ok"


def wrong(number: int) -> str:
    """A key that nobody has; none begins as another does."""
    return f"{number:08x}".ljust(47, "x")


def unlike() -> str:
    """The same, unlike any other."""
    return uuid4().hex


async def use_up(door: Entrance, address: Address | None = HERE) -> None:
    for number in range(LIMIT):
        assert await shown(door, wrong(number), address) == "invalid_api_key"


async def test_a_flood_of_wrong_keys_costs_a_few_statements(door: Entrance, statements: list[str]) -> None:
    codes = await asyncio.gather(*(shown(door, wrong(number)) for number in range(1_500)))
    assert (codes.count("invalid_api_key"), codes.count("too_many_wrong_keys")) == (LIMIT, 1_500 - LIMIT)
    assert LIMIT < await count(statements) <= LIMIT + 5


async def test_the_same_wrong_key_is_looked_up_once(door: Entrance, statements: list[str]) -> None:
    codes = [await shown(door, "nobody's") for _ in range(20)]
    assert codes == ["invalid_api_key"] * LIMIT + ["too_many_wrong_keys"] * 15
    assert await count(statements) == 1


async def test_a_refusal_says_when_to_come_again(door: Entrance) -> None:
    await use_up(door)
    with pytest.raises(RateLimited) as caught:
        await door.authenticate("one more", HERE)
    seconds = int(caught.value.headers["Retry-After"])
    assert 1 <= seconds <= entrance.WINDOW
    assert caught.value.details == {"retry_after_seconds": seconds}


async def test_the_right_key_gets_in_from_an_address_with_too_many_wrong_ones(door: Entrance, db: Database) -> None:
    used, new = [(await a_key(db)).secret for _ in range(2)]
    assert await shown(door, used) == "ok"
    flood = asyncio.gather(*(shown(door, wrong(number)) for number in range(500)))
    right = await asyncio.gather(shown(door, used), shown(door, new), *(shown(door, new) for _ in range(50)))
    assert set(right) == {"ok"}
    await flood


async def test_a_key_that_was_right_before_waits_for_nobody(
    door: Entrance, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = (await a_key(db)).secret
    assert await shown(door, secret) == "ok"
    await use_up(door)
    monkeypatch.setattr(entrance, "TOGETHER_SECONDS", 3600)
    async with asyncio.timeout(PATIENCE):
        assert await shown(door, secret) == "ok"


async def test_right_keys_that_come_at_once_use_up_nothing(door: Entrance, db: Database) -> None:
    secrets = [(await a_key(db)).secret for _ in range(3 * LIMIT)]
    assert {await shown(door, secret) for secret in secrets} == {"ok"}
    await use_up(door)
    assert await shown(door, "one more") == "too_many_wrong_keys"


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ("192.0.2.2", "invalid_api_key"),
        ("::ffff:192.0.2.1", "too_many_wrong_keys"),
        ("2001:db8::1", "invalid_api_key"),
    ],
)
async def test_addresses_are_counted_apart(door: Entrance, other: str, code: str) -> None:
    await use_up(door)
    assert await shown(door, "one more", addresses.read(other)) == code


async def test_a_network_of_ipv6_counts_as_one(door: Entrance) -> None:
    for number in range(LIMIT):
        assert await shown(door, wrong(number), addresses.read(f"2001:db8::{number:x}:1")) == "invalid_api_key"
    assert await shown(door, "one more", addresses.read("2001:db8::ffff:1:2:3")) == "too_many_wrong_keys"
    assert await shown(door, "one more", addresses.read("2001:db8:0:1::1")) == "invalid_api_key"


async def test_keys_that_begin_as_one_does_are_counted_from_all_addresses(door: Entrance, db: Database) -> None:
    secret = (await a_key(db)).secret
    guesses = [secret[:8] + f"{number:x}".rjust(39, "-") for number in range(2 * LIMIT)]
    codes = [await shown(door, guess, addresses.read(f"203.0.113.{number}")) for number, guess in enumerate(guesses)]
    assert codes == ["invalid_api_key"] * LIMIT + ["too_many_wrong_keys"] * LIMIT
    assert await shown(door, secret, THERE) == "ok"


async def test_many_addresses_together_cost_a_few_statements_too(door: Entrance, statements: list[str]) -> None:
    codes = await asyncio.gather(
        *(shown(door, wrong(number), addresses.read(f"10.1.{number >> 8}.{number & 255}")) for number in range(1_500))
    )
    assert set(codes) == {"invalid_api_key"}  # none of them has failed before
    assert await count(statements) <= OF_ALL * LIMIT + 5


async def test_failures_are_forgotten(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    await use_up(door)
    assert await shown(door, "one more") == "too_many_wrong_keys"
    monkeypatch.setattr(entrance, "WINDOW", 0.0)
    assert await shown(door, "one more") == "invalid_api_key"


async def test_no_limit_is_no_limit(db: Database, redis: Redis) -> None:
    door = Entrance(db, redis, 0)
    assert {await shown(door, wrong(number)) for number in range(50)} == {"invalid_api_key"}


async def test_a_key_that_is_made_after_it_was_tried_is_right_soon(
    door: Entrance, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await shown(door, API_KEY) == "invalid_api_key"
    await a_key(db, secret=API_KEY)
    assert await shown(door, API_KEY) == "invalid_api_key"
    monkeypatch.setattr(entrance, "WRONG_FOR", 0.0)
    assert await shown(door, API_KEY) == "ok"


async def test_a_key_that_was_right_is_refused_once_it_is_revoked_and_counts_then(
    door: Entrance, db: Database, redis: Redis
) -> None:
    made = await a_key(db)
    assert await shown(door, made.secret) == "ok"
    await keys.revoke_key(db, redis, made.id)
    codes = [await shown(door, made.secret) for _ in range(LIMIT + 1)]
    assert codes == ["invalid_api_key"] * LIMIT + ["too_many_wrong_keys"]


async def test_an_expired_key_counts_and_is_right_as_soon_as_it_is_extended(
    door: Entrance, db: Database, redis: Redis
) -> None:
    made = await a_key(db)
    await db.pool.execute("UPDATE api_keys SET expires_at = now() - interval '1 day'")
    codes = [await shown(door, made.secret) for _ in range(LIMIT + 1)]
    assert codes == ["invalid_api_key"] * LIMIT + ["too_many_wrong_keys"]
    await keys.change_key(db, redis, made.id, {"expires_at": None})
    assert await shown(door, made.secret) == "ok"


async def test_a_secret_before_the_last_is_right_while_it_may_be(door: Entrance, db: Database, redis: Redis) -> None:
    made = await a_key(db)
    await use_up(door)
    await keys.rotate_key(db, redis, made.id, 3600)
    assert await shown(door, made.secret) == "ok"


async def test_what_is_kept_in_mind_has_a_size(door: Entrance, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "REMEMBERED", 10)
    for number in range(60):
        await shown(door, wrong(number), addresses.read(f"10.1.1.{number}"))
    for _ in range(20):
        assert await shown(door, (await a_key(db)).secret) == "ok"
    assert max(len(door._failures), len(door._wrong), len(door._right)) <= 10


async def test_more_than_may_wait_are_told_to_come_again(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "MAX_TOGETHER", 10)
    await use_up(door)
    with pytest.raises(RateLimited) as caught:
        await asyncio.gather(*(door.authenticate(wrong(100 + number), HERE) for number in range(11)))
    assert caught.value.code == "too_many_wrong_keys"


async def test_a_database_that_is_away_makes_no_key_wrong(settings: Settings, redis: Redis) -> None:
    async with Database.open(settings) as gone:
        door = Entrance(gone, redis, LIMIT)
        await use_up(door)
    with pytest.raises(Unavailable):
        await door.authenticate("one more", HERE)
    async with Database.open(settings) as db:
        door._db = door._together._db = db
        await a_key(db, secret="one more key that is right")
        assert await shown(door, "one more key that is right") == "ok"


async def test_whoever_leaves_while_keys_are_looked_up_keeps_nobody_waiting(door: Entrance, db: Database) -> None:
    secret = (await a_key(db)).secret
    await use_up(door)
    left = asyncio.create_task(door.authenticate(secret, HERE))
    stays = asyncio.create_task(door.authenticate(secret, HERE))
    await asyncio.sleep(0)
    left.cancel()
    async with asyncio.timeout(PATIENCE):
        assert (await stays).tenant == "acme"
    with pytest.raises(asyncio.CancelledError):
        await left
    assert door._failures["address 192.0.2.1"].count == LIMIT


async def test_what_is_being_looked_up_ends_with_the_entrance(door: Entrance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "TOGETHER_SECONDS", 3600)
    await use_up(door)
    waiting = asyncio.create_task(door.authenticate("one more", HERE))
    await until(lambda: bool(door._together._waiting))
    await door.close()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(Unavailable):
            await waiting


# --- networks --------------------------------------------------------------------------------------------------------


async def test_a_key_is_right_in_its_networks_only(door: Entrance, db: Database) -> None:
    secret = (await a_key(db, networks=["192.0.2.0/24", "2001:db8::/32"])).secret

    async def from_(address: str | None) -> str:
        return await shown(door, secret, addresses.read(address))

    for _ in range(2):  # from the database, and from the cache
        assert await from_("192.0.2.77") == await from_("::ffff:192.0.2.77") == await from_("2001:db8::7") == "ok"
        assert {await from_(one) for one in ("192.0.3.1", "2001:db9::7", None, "unix")} == {"address_not_permitted"}
    assert await shown(door, "nobody's", THERE) == "invalid_api_key"


async def test_a_key_that_is_used_from_elsewhere_is_no_wrong_key(door: Entrance, db: Database) -> None:
    secret = (await a_key(db, networks=["192.0.2.0/24"])).secret
    for _ in range(3 * LIMIT):
        with pytest.raises(Forbidden):
            await door.authenticate(secret, THERE)
    assert await shown(door, "nobody's", THERE) == "invalid_api_key"


async def test_callers_without_a_key_are_bound_as_their_key_is(door: Entrance, db: Database, redis: Redis) -> None:
    no_hash = await keys.ensure_anonymous_key(db, "acme")
    guest: Principal = await door.guest(no_hash, THERE)
    await keys.change_key(db, redis, guest.key_id, {"networks": ["192.0.2.0/24"]})
    assert (await door.guest(no_hash, HERE)).key_id == guest.key_id
    with pytest.raises(Forbidden):
        await door.guest(no_hash, THERE)


async def test_what_an_older_release_has_cached_is_no_key_without_networks(
    door: Entrance, db: Database, redis: Redis
) -> None:
    secret = (await a_key(db, networks=["192.0.2.0/24"])).secret
    assert await shown(door, secret) == "ok"
    [name] = [key async for key in redis.client.scan_iter(f"{redis.keys.prefix}key:*")]
    cached = json.loads(await redis.client.get(name) or b"")
    del cached["networks"]
    await redis.client.set(name, json.dumps(cached))
    assert await shown(door, secret, THERE) == "address_not_permitted"


# --- on a server -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def limited(start_lasting_fleet: StartFleet) -> Fleet:
    return await start_lasting_fleet(1, KEY_FAILURES_PER_MINUTE=str(LIMIT))


async def ask(fleet: Fleet, path: str, key: str, address: str, method: str = "GET") -> httpx.Response:
    headers = {"X-API-Key": key, "X-Forwarded-For": address}
    async with httpx.AsyncClient(base_url=fleet[0].url, timeout=60, verify=NO_TLS) as client:
        return await client.request(method, path, headers=headers)


PATHS = [
    ("GET", "/api/v1/whoami"),
    ("POST", "/api/v1/query"),
    ("GET", f"/preview/{'0' * 8}-0000-4000-8000-{'0' * 12}/3000/"),
    ("POST", "/compat/code-server/query"),
    ("POST", "/compat/chat-server/chat"),
    ("POST", "/compat/execute-server/execute/"),
    ("POST", "/ui/chat"),
    ("POST", "/ag-ui/helper"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_wrong_keys_are_limited_wherever_they_are_shown(limited: Fleet, method: str, path: str) -> None:
    address = f"192.0.2.{PATHS.index((method, path))}"
    answers = [await ask(limited, path, unlike(), address, method) for _ in range(LIMIT + 1)]
    assert [answer.status_code for answer in answers] == [401] * LIMIT + [429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert (await ask(limited, "/api/v1/whoami", API_KEY, address)).status_code == 200


@pytest.mark.parametrize("handshake", [True, False])
async def test_wrong_keys_on_websockets_are_limited(limited: Fleet, handshake: bool) -> None:
    url = limited[0].url.replace("http://", "ws://") + "/api/v1/query/ws"
    address = f"203.0.113.{handshake:d}"

    async def shown(key: str) -> int:
        """The status of the refusal, or the code of the end."""
        headers = {"X-Forwarded-For": address, **({"X-API-Key": key} if handshake else {})}
        try:
            async with asyncio.timeout(PATIENCE), connect(url, additional_headers=headers) as socket:
                if handshake:
                    return 101
                await socket.send(json.dumps({"type": "auth", "api_key": key}))
                told = json.loads(await socket.recv())
                if told["type"] == "ack":
                    return 101
                with suppress(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 4000 + told["status"]
                return int(socket.close_code or 0)
        except InvalidStatus as refused:
            return refused.response.status_code

    codes = [await shown(unlike()) for _ in range(LIMIT + 1)]
    assert codes == ([401] * LIMIT + [429] if handshake else [4401] * LIMIT + [4429])
    assert await shown(API_KEY) == 101


async def test_an_address_with_too_many_wrong_keys_still_sees_health(limited: Fleet) -> None:
    for _ in range(LIMIT + 1):
        last = await ask(limited, "/api/v1/whoami", unlike(), "192.0.2.200")
    assert last.status_code == 429
    for path in ("/health", "/health/live", "/health/ready", "/api/v1/health"):
        for key in ("", "wrong"):
            assert (await ask(limited, path, key, "192.0.2.200")).status_code == 200


async def test_refused_keys_are_counted_and_a_flood_is_logged(limited: Fleet) -> None:
    shown = [unlike() for _ in range(LIMIT + 1)]
    for key in shown:
        await ask(limited, "/api/v1/whoami", key, "192.0.2.201")
    metrics = (await limited[0].client.get("/metrics")).text
    counted = {
        sample.labels["code"]: sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "claude_agent_api_keys_refused_total"
    }
    assert counted["invalid_api_key"] >= LIMIT
    assert counted["too_many_wrong_keys"] >= 1
    lines = [line for line in limited[0].log.read_text().splitlines() if "keys.many_wrong" in line]
    assert sum('"192.0.2.201"' in line for line in lines) == 1
    assert not [key for key in shown if key[:8] in "".join(lines)]


async def test_a_key_is_bound_to_networks_over_http_at_once_and_on_what_is_open(
    fleet: Fleet, fleet_db: Database
) -> None:
    headers = await make_key(fleet_db)
    made = (await fleet[0].get("/whoami", headers=headers)).json()
    assert made["networks"] is None
    session = (await fleet[0].post("/sessions", {}, headers=headers)).json()["session_id"]
    url = fleet[0].url.replace("http://", "ws://") + "/api/v1/query/ws"
    here = {**headers, "X-Forwarded-For": "192.0.2.5"}
    async with (
        asyncio.timeout(PATIENCE),
        connect(url, additional_headers=here) as socket,
        fleet[0].client.stream("GET", f"/api/v1/sessions/{session}/events", headers=here) as stream,
    ):
        path = f"/api/v1/admin/keys/{made['key_id']}"
        bound = await fleet[1].client.patch(path, json={"networks": ["198.51.100.0/24", "::ffff:10.0.0.0/104"]})
        assert bound.json()["networks"] == ["198.51.100.0/24", "10.0.0.0/8"]
        assert "address_not_permitted" in (await stream.aread()).decode()
        await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (4403, "address_not_permitted")
    for address, status in {"192.0.2.5": 403, "198.51.100.5": 200, "10.9.9.9": 200, "::ffff:10.9.9.9": 200}.items():
        for instance in fleet.instances:
            answer = await instance.get("/whoami", headers={**headers, "X-Forwarded-For": address})
            assert answer.status_code == status, address
    assert (await fleet[0].get("/whoami", headers=headers)).status_code == 403  # 127.0.0.1
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, additional_headers=here)
    assert refused.value.response.status_code == 403
    await fleet[2].client.patch(path, json={"networks": None})
    assert (await fleet[0].get("/whoami", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("networks", "field"),
    [
        (["10.0.0.0/8", "10.0.0.5/8"], "networks.1"),
        (["example.org"], "networks.0"),
        ([""], "networks.0"),
        ([1], "networks.0"),
        ([None], "networks.0"),
        (["1" * 65], "networks.0"),
        ([], "networks"),
        ("10.0.0.0/8", "networks"),
        (["10.0.0.0/8"] * 51, "networks"),
    ],
)
async def test_a_network_that_is_none_is_named(fleet: Fleet, networks: Any, field: str) -> None:
    body = {"tenant": "default", "name": "n", "networks": networks}
    made = (await fleet[0].post("/admin/keys", {"tenant": "default", "name": "n"})).json()
    for answer in (
        await fleet[0].post("/admin/keys", body),
        await fleet[0].client.patch(
            f"/api/v1/admin/keys/{made['key_id']}", json={"networks": networks}, headers=HEADERS
        ),
    ):
        assert answer.status_code == 422
        assert [error["field"] for error in answer.json()["error"]["details"]["errors"]] == [field]


async def test_what_is_wrong_is_refused(door: Entrance) -> None:
    for secret in (None, ""):
        with pytest.raises(Unauthorized) as caught:
            await door.authenticate(secret, HERE)
        assert caught.value.code == "authentication_required"
