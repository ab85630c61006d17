"""Sessions over HTTP: created, described, listed, read page by page, deleted, and asked for twice with one key."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.routing import APIRoute

from apps.api.core.config.agent import DEFAULT_TOOLS
from apps.api.db import Database
from apps.api.dialects.native.common import NO_BODY
from apps.api.dialects.native.routes import routers as native
from apps.api.web.doors import FileRoute
from tests.fleet import Fleet, Instance, Sse, events_of
from tests.world import until

BYPASS = {"permission_mode": "bypassPermissions"}


@pytest.fixture
def tag() -> str:
    """A tag for the sessions of one test, since all tests share the tenant."""
    return uuid4().hex


async def state_of(instance: Instance, session_id: str) -> dict[str, Any]:
    response = await instance.get(f"/sessions/{session_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def listed(instance: Instance, **params: Any) -> list[str]:
    """Ids of a list that fits on one page."""
    response = await instance.get("/sessions", params={"limit": 200, **params})
    assert response.status_code == 200, response.text
    assert response.json()["next_cursor"] is None
    return [session["session_id"] for session in response.json()["data"]]


async def pages(instance: Instance, path: str, limit: int, **params: Any) -> list[list[Any]]:
    """All pages of a list."""
    found: list[list[Any]] = []
    cursor: dict[str, str] = {}
    while True:
        response = await instance.get(path, params={**params, **cursor, "limit": limit})
        assert response.status_code == 200, response.text
        found.append(response.json()["data"])
        if response.json()["next_cursor"] is None:
            return found
        cursor = {"cursor": response.json()["next_cursor"]}


async def posted(instance: Instance, path: str, body: dict[str, Any], **headers: str) -> tuple[Any, list[Sse]]:
    """Headers and events of a prompt's stream."""
    async with instance.client.stream("POST", f"/api/v1{path}", json=body, headers=headers) as response:
        assert response.status_code == 200, (await response.aread()).decode()
        return response.headers, [event async for event in events_of(response)]


@dataclass(frozen=True)
class Told:
    """A session that many tests go on with, each leaves it idle; and how the run was told that began it."""

    session_id: str
    run_id: str
    headers: Any
    events: list[Sse]

    @property
    def durable(self) -> list[Sse]:
        return [event for event in self.events if event.event != "partial"]


FIRST = {"prompt": "stream 5 words", **BYPASS}


@pytest.fixture(scope="module")
async def told(fleet: Fleet) -> Told:
    headers, events = await posted(fleet[0], "/query", FIRST)
    return Told(headers["X-Session-ID"], headers["X-Run-ID"], headers, events)


async def hanging(instance: Instance, session_id: str) -> str:
    """A run of this session that does not end by itself."""
    run_id = await instance.prompt(session_id, "hang after 1 words")
    async with instance.stream(f"/runs/{run_id}/events") as events:
        async for event in events:
            if event.event == "partial":
                return run_id
    raise AssertionError("the run ended")


async def stop(instance: Instance, session_id: str) -> None:
    assert (await instance.post(f"/sessions/{session_id}/interrupt")).status_code == 200


# --- one session ---------------------------------------------------------------------------------------------------


async def test_a_new_session_is_idle_and_the_same_on_every_instance(fleet: Fleet) -> None:
    body = {"title": "Weekly report", "tags": ["a", "b"], "metadata": {"customer": "42"}, "model": "claude-opus-5-5"}
    made = (await fleet[0].post("/sessions", body)).json()
    assert await state_of(fleet[1], made["session_id"]) == made
    assert made["created_at"].endswith("Z")
    assert made["created_at"] == made["updated_at"] == made["last_active_at"]
    told = {name: value for name, value in made.items() if not name.endswith("_at")}
    assert told == {
        "session_id": made["session_id"],
        "status": "idle",
        "active": False,
        "active_run_id": None,
        "queued_runs": 0,
        "title": "Weekly report",
        "tags": ["a", "b"],
        "metadata": {"customer": "42"},
        "model": "claude-opus-5-5",
        "permission_mode": "default",
        "tools": None,
        "agent": None,
        "profile": None,
        "config": {"model": "claude-opus-5-5"},
        "num_turns": 0,
        "total_cost_usd": "0",
        "usage": {
            "input_tokens": 0,
            "output_tokens": 0,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "web_search_requests": 0,
        },
        "last_seq": 0,
        "parent_session_id": None,
        "end_user": None,
        "owner": None,
        "surface": "native",
        "ports": [],
    }


async def test_values_of_environment_variables_are_not_shown(fleet: Fleet, tag: str) -> None:
    made = await fleet[0].post("/sessions", {"tags": [tag], "env": {"TOKEN": "s3cret"}})
    shown = await fleet[1].get(f"/sessions/{made.json()['session_id']}")
    found = await fleet[2].get("/sessions", params={"tag": tag})
    for answer in (made, shown, found):
        assert '"TOKEN":"***"' in answer.text
        assert "s3cret" not in answer.text


async def test_a_change_is_seen_at_once_on_every_instance(fleet: Fleet) -> None:
    session_id = await fleet[0].session(title="before", tags=["a"], metadata={"k": "v"})
    for instance in fleet.instances:
        await state_of(instance, session_id)  # so that it is cached
    answer = await fleet[1].client.patch(f"/api/v1/sessions/{session_id}", json={"title": "after"})
    assert answer.json()["title"] == "after"
    for instance in fleet.instances:
        state = await state_of(instance, session_id)
        assert (state["title"], state["tags"], state["metadata"]) == ("after", ["a"], {"k": "v"})
        assert state["updated_at"] >= state["created_at"]


async def test_tags_and_metadata_are_replaced_whole(fleet: Fleet) -> None:
    session_id = await fleet[0].session(title="t", tags=["a", "b"], metadata={"k": "v", "l": "w"})
    path = f"/api/v1/sessions/{session_id}"
    state = (await fleet[0].client.patch(path, json={"tags": ["c"], "metadata": {"k": "x"}})).json()
    assert (state["title"], state["tags"], state["metadata"]) == ("t", ["c"], {"k": "x"})
    state = (await fleet[0].client.patch(path, json={"tags": [], "metadata": {}})).json()
    assert (state["title"], state["tags"], state["metadata"]) == ("t", [], {})


async def test_a_run_is_counted_in_its_sessions_state(fleet: Fleet, told: Told) -> None:
    session_id = told.session_id
    before = await state_of(fleet[1], session_id)
    first = await fleet[0].ask(session_id, "run echo hi")
    state = await state_of(fleet[1], session_id)
    assert (state["status"], state["active"], state["active_run_id"], state["queued_runs"]) == ("idle", True, None, 0)
    assert state["owner"] in [instance.id for instance in fleet.instances]
    assert first["num_turns"] == 2
    assert state["num_turns"] == before["num_turns"] + 2
    spent = [float(told["total_cost_usd"]) for told in (before, first, state)]
    assert spent[2] == pytest.approx(spent[0] + spent[1])
    assert spent[2] > spent[0] > 0
    for tokens in ("input_tokens", "output_tokens"):
        assert state["usage"][tokens] > before["usage"][tokens] > 0
    assert {"Bash", "Read"} <= set(state["tools"]) <= set(DEFAULT_TOOLS)
    assert state["permission_mode"] == "bypassPermissions"
    assert state["last_active_at"] > state["created_at"]

    second = await fleet[2].ask(session_id, "say more")
    after = await state_of(fleet[1], session_id)
    assert after["num_turns"] == state["num_turns"] + second["num_turns"]
    assert float(after["total_cost_usd"]) == pytest.approx(spent[2] + float(second["total_cost_usd"]))
    assert after["usage"]["input_tokens"] > state["usage"]["input_tokens"]
    assert after["last_seq"] > state["last_seq"]


# --- lists ---------------------------------------------------------------------------------------------------------


async def test_sessions_are_listed_newest_first_without_gap_or_repeat(fleet: Fleet, tag: str) -> None:
    made = [await fleet[n % 3].session(tags=[tag]) for n in range(7)]
    for limit, sizes in ((3, [3, 3, 1]), (7, [7]), (1, [1] * 7)):
        found = await pages(fleet[1], "/sessions", limit, tag=tag)
        assert [len(page) for page in found] == sizes
        assert [session["session_id"] for page in found for session in page] == made[::-1]


async def test_sessions_of_the_same_moment_are_paged_without_gap_or_repeat(
    fleet: Fleet, fleet_db: Database, tag: str
) -> None:
    made = [await fleet[0].session(tags=[tag]) for _ in range(6)]
    moment = datetime(2020, 1, 31, tzinfo=UTC)
    await fleet_db.pool.execute("UPDATE sessions SET created_at = $2 WHERE tags = ARRAY[$1]", tag, moment)
    found = await pages(fleet[1], "/sessions", 2, tag=tag)
    assert [len(page) for page in found] == [2, 2, 2]
    assert sorted(session["session_id"] for page in found for session in page) == sorted(made)


async def test_what_is_created_or_deleted_meanwhile_does_not_shift_the_next_page(fleet: Fleet, tag: str) -> None:
    made = [await fleet[0].session(tags=[tag]) for _ in range(4)]
    first = (await fleet[0].get("/sessions", params={"tag": tag, "limit": 2})).json()
    await fleet[0].session(tags=[tag])
    await fleet[0].client.delete(f"/api/v1/sessions/{made[3]}")
    rest = {"tag": tag, "limit": 2, "cursor": first["next_cursor"]}
    second = (await fleet[0].get("/sessions", params=rest)).json()
    assert [s["session_id"] for s in first["data"] + second["data"]] == made[::-1]


async def test_a_list_shows_the_same_state_as_the_session_itself(fleet: Fleet, told: Told, tag: str) -> None:
    await fleet[0].client.patch(f"/api/v1/sessions/{told.session_id}", json={"tags": [tag], "title": "t"})
    page = (await fleet[1].get("/sessions", params={"tag": tag})).json()
    assert page["data"] == [await state_of(fleet[1], told.session_id)]
    assert (page["data"][0]["title"], page["data"][0]["owner"] is None) == ("t", False)


async def test_sessions_are_found_by_tag(fleet: Fleet, tag: str) -> None:
    both, one, _ = [await fleet[0].session(tags=tags) for tags in ([tag, f"{tag}-x"], [tag], [f"{tag}-y"])]
    assert await listed(fleet[1], tag=tag) == [one, both]
    assert await listed(fleet[1], tag=f"{tag}-x") == [both]
    assert await listed(fleet[1], tag=tag[:-1]) == []


async def test_sessions_are_found_by_a_part_of_the_title(fleet: Fleet, tag: str) -> None:
    percent, under, plain = [
        await fleet[0].session(title=title, tags=[tag]) for title in ("100% ÄPFEL", "a_b", "axb äpfel")
    ]
    await fleet[0].session(tags=[tag])  # without a title
    for search, found in (
        ("%", [percent]),
        ("a_b", [under]),
        ("äpfel", [plain, percent]),
        ("ÄPFEL", [plain, percent]),
        ("A", [plain, under]),
        ("nothing", []),
    ):
        assert await listed(fleet[1], tag=tag, search=search) == found, search


async def test_sessions_are_found_by_metadata(fleet: Fleet, tag: str) -> None:
    one, other = [
        await fleet[0].session(tags=[tag], metadata={"customer": "42", "where.is-it": where}) for where in ("x", "y")
    ]
    assert await listed(fleet[1], **{"metadata.customer": "42", "tag": tag}) == [other, one]
    assert await listed(fleet[1], **{"metadata.customer": "42", "metadata.where.is-it": "x", "tag": tag}) == [one]
    assert await listed(fleet[1], **{"metadata.customer": "4", "tag": tag}) == []
    assert await listed(fleet[1], **{"metadata.other": "42", "tag": tag}) == []


async def test_sessions_are_found_by_the_time_of_their_creation(fleet: Fleet, fleet_db: Database, tag: str) -> None:
    made = [await fleet[0].session(tags=[tag]) for _ in range(3)]
    noon = datetime(2020, 1, 31, 12, tzinfo=UTC)
    for hours, session_id in enumerate(made):
        moment = noon + timedelta(hours=hours)
        await fleet_db.pool.execute("UPDATE sessions SET created_at = $2 WHERE id = $1", UUID(session_id), moment)
    for after, found in (
        ("2020-01-31T11:59:59Z", made[::-1]),
        ("2020-01-31T12:00:00Z", made[:0:-1]),
        ("2020-01-31T14:00:00+01:00", [made[2]]),
        ("2020-01-31T15:00:00.000+00:00", []),
    ):
        assert await listed(fleet[1], tag=tag, created_after=after) == found, after


async def test_sessions_are_found_by_what_they_do(fleet: Fleet, told: Told, tag: str) -> None:
    busy = told.session_id
    idle = await fleet[0].session(tags=[tag])
    run_id = await hanging(fleet[0], busy)
    await fleet[0].client.patch(f"/api/v1/sessions/{busy}", json={"tags": [tag]})
    await fleet[1].prompt(busy, "say later")
    state = await state_of(fleet[2], busy)
    assert (state["status"], state["active_run_id"], state["queued_runs"]) == ("running", run_id, 1)
    for status, found in (("running", [busy]), ("idle", [idle]), ("queued", []), ("requires_action", [])):
        assert await listed(fleet[1], tag=tag, status=status) == found, status
    await stop(fleet[2], busy)

    async def is_idle() -> bool:
        return await listed(fleet[1], tag=tag, status="idle") == [idle, busy]

    await until(is_idle)


# --- deleting ------------------------------------------------------------------------------------------------------


async def test_a_deleted_session_is_gone_on_every_instance_with_all_that_was_said(
    fleet: Fleet, fleet_db: Database, tag: str
) -> None:
    session_id = await fleet[0].session(tags=[tag], title="s3cret-title", env={"TOKEN": "s3cret-env"})
    run_id = (await fleet[0].ask(session_id, "say s3cret-word"))["run_id"]
    for word in ("s3cret-title", "s3cret-env", "s3cret-word"):
        assert word in await stored(fleet_db)
    for instance in fleet.instances:
        await state_of(instance, session_id)
    assert (await fleet[1].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200

    async def forgotten(instance: Instance) -> bool:
        return (await instance.get(f"/sessions/{session_id}")).status_code == 404

    for instance in fleet.instances:
        await until(partial(forgotten, instance))
        for path in ("/messages", "/events", "/runs"):
            gone = await instance.get(f"/sessions/{session_id}{path}")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "session_not_found"), path
        assert (await instance.get(f"/runs/{run_id}/events")).status_code == 404
        for path in (f"/sessions/{session_id}/query", f"/sessions/{session_id}/resume"):
            refused = await instance.post(path, {"prompt": "say hi"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_deleted"), path
    assert await listed(fleet[2], tag=tag) == []
    again = await fleet[2].client.delete(f"/api/v1/sessions/{session_id}")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "session_deleted")
    assert (await fleet[2].client.patch(f"/api/v1/sessions/{session_id}", json={"title": "x"})).status_code == 404

    async def no_secret() -> bool:
        return "s3cret-" not in await stored(fleet_db)

    await until(no_secret)


async def stored(db: Database) -> str:
    """Every row of every table."""
    tables = await db.pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    rows = [await db.pool.fetch(f'SELECT t::text FROM "{table["tablename"]}" t') for table in tables]
    return "\n".join(str(row[0]) for found in rows for row in found)


async def test_a_deletion_ends_the_run_and_tells_who_follows_it(fleet: Fleet) -> None:
    session_id = await fleet[0].session()
    run_id = await hanging(fleet[0], session_id)
    async with fleet[1].stream(f"/sessions/{session_id}/events") as events:
        assert (await anext(events)).event in ("queued", "init", "message")
        assert (await fleet[2].client.delete(f"/api/v1/sessions/{session_id}")).status_code == 200
        last = [event async for event in events][-1]
    assert (last.event, last.data["code"], last.data["retryable"]) == ("error", "session_deleted", False)
    run = (await fleet[2].get(f"/runs/{run_id}")).json()
    assert (run["status"], run["error"]["code"], run["result"]) == ("interrupted", "session_deleted", None)


# --- the same key twice --------------------------------------------------------------------------------------------


async def test_one_key_creates_one_session_however_often_it_is_sent(fleet: Fleet, tag: str) -> None:
    headers, body = {"Idempotency-Key": tag}, {"tags": [tag], "title": "once"}
    answers = await asyncio.gather(*(fleet[n % 3].post("/sessions", body, headers=headers) for n in range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["session_id"] for answer in answers}) == 1
    assert len(await listed(fleet[0], tag=tag)) == 1


async def test_a_key_stands_for_one_request_only(fleet: Fleet, tag: str) -> None:
    headers = {"Idempotency-Key": tag}
    assert (await fleet[0].post("/sessions", {"title": "one"}, headers=headers)).status_code == 201
    for path, body in (("/sessions", {"title": "other"}), ("/query", {"prompt": "say hi"})):
        refused = await fleet[1].post(path, body, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize("continued", [False, True], ids=["new session", "session that exists"])
async def test_one_key_streams_one_run_however_often_it_is_sent(
    fleet: Fleet, told: Told, tag: str, continued: bool
) -> None:
    body: dict[str, Any] = {"prompt": "say hi then say ho", "tags": [tag]}
    before = []
    if continued:
        body["session_id"] = told.session_id
        before = (await fleet[2].get(f"/sessions/{told.session_id}/runs")).json()["data"]
    first, seen = await posted(fleet[0], "/query", body, **{"Idempotency-Key": tag})
    second, again = await posted(fleet[1], "/query", body, **{"Idempotency-Key": tag})
    for name in ("X-Run-ID", "X-Session-ID"):
        assert first[name] == second[name]
    assert {event.data["run_id"] for event in seen} == {first["X-Run-ID"]}
    assert [e for e in again if e.event != "partial"] == [e for e in seen if e.event != "partial"]
    assert again[-1].event == "done"
    runs = (await fleet[2].get(f"/sessions/{first['X-Session-ID']}/runs")).json()["data"]
    assert runs[0]["run_id"] == first["X-Run-ID"]
    assert runs[1:] == before


async def test_requests_with_one_key_at_the_same_moment_get_the_same_result(fleet: Fleet, tag: str) -> None:
    body, headers = {"prompt": "say hi", "tags": [tag]}, {"Idempotency-Key": tag}
    answers = await asyncio.gather(
        *(instance.post("/query/single", body, headers=headers) for instance in fleet.instances)
    )
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].json() == answers[1].json() == answers[2].json()
    assert len(await listed(fleet[0], tag=tag)) == 1


async def test_without_a_key_every_request_is_another_run(fleet: Fleet, told: Told) -> None:
    again, _ = await posted(fleet[1], "/query", FIRST)
    assert again["X-Run-ID"] != told.run_id
    assert again["X-Session-ID"] != told.session_id


# --- prompts -------------------------------------------------------------------------------------------------------


async def test_a_prompt_is_streamed_from_its_beginning_to_its_done(told: Told) -> None:
    assert told.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert told.headers["Cache-Control"] == "no-store"
    assert told.headers["X-Accel-Buffering"] == "no"
    durable = told.durable
    assert [event.data["seq"] for event in durable] == list(range(1, len(durable) + 1))
    assert [event.id for event in durable] == [str(n) for n in range(1, len(durable) + 1)]
    kinds = [event.event for event in durable]
    assert kinds[-2:] == ["result", "done"]
    assert kinds.index("init") < kinds.index("result")
    assert durable[-1].data["status"] == "succeeded"
    text = "".join(event.data["delta"]["text"] for event in told.events if event.event == "partial")
    assert text == "word1 word2 word3 word4 word5"
    assert text == durable[-2].data["result"]


async def test_a_client_that_wants_no_deltas_gets_none(fleet: Fleet, told: Told) -> None:
    body = {"prompt": "stream 5 words", "include_partial_messages": False, "session_id": told.session_id}
    _, events = await posted(fleet[0], "/query", body)
    kinds = [event.event for event in events]
    assert "partial" not in kinds
    assert kinds[-1] == "done"


async def test_a_session_is_continued_on_another_instance(fleet: Fleet, told: Told) -> None:
    _, events = await posted(fleet[1], f"/sessions/{told.session_id}/resume", {"prompt": "recall"})
    assert "1. stream 5 words" in next(event.data["result"] for event in events if event.event == "result")


async def test_a_wait_answers_with_the_result_or_with_the_run(fleet: Fleet, told: Told) -> None:
    session_id = told.session_id
    path = f"/sessions/{session_id}/query"
    waited = await fleet[0].post(path, {"prompt": "say hi"}, params={"wait": 60})
    assert waited.status_code == 200
    assert waited.json()["result"].endswith("hi")
    too_short = await fleet[1].post(path, {"prompt": "hang"}, params={"wait": 0.05})
    assert too_short.status_code == 202
    assert too_short.json() == {
        "session_id": session_id,
        "run_id": too_short.json()["run_id"],
        "status": "accepted",
    }
    assert (await fleet[0].get(f"/runs/{too_short.json()['run_id']}")).json()["status"] in ("queued", "running")
    refused = await fleet[2].post(path, {"prompt": "say hi", "on_busy": "reject"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_busy")
    assert (await fleet[2].post(f"/runs/{too_short.json()['run_id']}/cancel")).is_success
    await fleet[2].follow(too_short.json()["run_id"])


async def test_nothing_is_interrupted_where_nothing_runs(fleet: Fleet) -> None:
    path = f"/sessions/{await fleet[0].session()}/interrupt"
    for body in (None, {}, {"run_id": None}, {"run_id": str(uuid4())}):
        refused = await fleet[0].post(path, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_live_run"), body
    unknown: Any
    for unknown in ({"run": str(uuid4())}, {"run_id": "x"}, [], "x"):
        refused = await fleet[0].client.post(f"/api/v1{path}", json=unknown)
        assert refused.status_code == 422, unknown


async def test_what_a_client_says_where_nothing_is_to_be_said_is_refused(fleet: Fleet) -> None:
    cancel = f"/runs/{uuid4()}/cancel"
    assert (await fleet[0].post(cancel, {"session_id": "x"})).status_code == 422
    assert (await fleet[0].post(cancel, {})).status_code == 404


def test_every_route_that_takes_no_body_says_so() -> None:
    silent = [
        route.path
        for router in native
        for route in router.routes
        if isinstance(route, APIRoute) and {"POST", "PUT", "PATCH"} & (route.methods or set())
        if route.body_field is None and not route.openapi_extra  # which tells of a body that is read by itself
        if not isinstance(route, FileRoute)
        if NO_BODY.dependency not in [inner.call for inner in route.dependant.dependencies]
    ]
    assert silent == []


# --- what was said -------------------------------------------------------------------------------------------------


async def test_stored_events_are_read_page_by_page_as_they_were_streamed(fleet: Fleet, told: Told) -> None:
    path = f"/sessions/{told.session_id}/events"
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        page = await fleet[1].get(path, params={"limit": 3, **after}, headers={"Accept": "application/json"})
        assert page.headers["Content-Type"] == "application/json"
        found += page.json()["data"]
        if page.json()["next_cursor"] is None:
            break
        assert len(page.json()["data"]) == 3
        after = {"after": page.json()["next_cursor"]}
    streamed = [{"id": event.id, "event": event.event, "data": event.data} for event in told.durable]
    assert len(streamed) > 3
    assert found[: len(streamed)] == streamed
    assert [event["data"]["seq"] for event in found] == list(range(1, len(found) + 1))


async def test_events_of_one_run_leave_out_the_others(fleet: Fleet, told: Told) -> None:
    session_id = told.session_id
    runs = [(await fleet[0].ask(session_id, f"say {n}"))["run_id"] for n in range(2)]
    accept = {"Accept": "application/json"}
    for run_id in runs:
        by_session = await fleet[1].get(f"/sessions/{session_id}/events", params={"run_id": run_id}, headers=accept)
        by_run = await fleet[2].get(f"/runs/{run_id}/events", headers=accept)
        assert by_session.json() == by_run.json()
        assert {event["data"]["run_id"] for event in by_run.json()["data"]} == {run_id}
        assert by_run.json()["data"][-1]["event"] == "done"


async def test_a_stream_goes_on_after_the_position_that_is_asked_for(fleet: Fleet, told: Told) -> None:
    for n, event in enumerate(told.durable):
        rest = await fleet[1].follow(told.run_id, headers={"Last-Event-ID": event.id})
        assert [e for e in rest if e.event != "partial"] == told.durable[n + 1 :]


async def test_runs_are_listed_newest_first_page_by_page(fleet: Fleet, told: Told) -> None:
    session_id = told.session_id
    runs = [(await fleet[0].ask(session_id, f"say {n}"))["run_id"] for n in range(3)]
    found = await pages(fleet[1], f"/sessions/{session_id}/runs", 2)
    assert [len(page) for page in found[:-1]] == [2] * (len(found) - 1)
    listed = [run["run_id"] for page in found for run in page]
    assert listed[:3] == runs[::-1]
    assert listed[-1] == told.run_id
    assert len(set(listed)) == len(listed)
    one = (await fleet[2].get(f"/runs/{runs[0]}")).json()
    assert one == found[1][0]
    assert (one["status"], one["origin"], one["error"]) == ("succeeded", "client", None)
    assert one["created_at"] <= one["started_at"] <= one["finished_at"]
    extents = [(run["first_seq"], run["last_seq"]) for run in (found[1][0], found[0][1], found[0][0])]
    assert all(before[1] < after[0] for before, after in pairwise(extents))


async def test_messages_of_a_subagent_stand_under_their_caller(fleet: Fleet, told: Told) -> None:
    session_id = told.session_id
    before = (await state_of(fleet[1], session_id))["last_seq"]
    await fleet[0].ask(session_id, 'delegate to general-purpose: "run echo deep then say hi"')
    await fleet[0].ask(session_id, "say goodbye")
    page = (await fleet[1].get(f"/sessions/{session_id}/messages", params={"limit": 200})).json()
    assert page["next_cursor"] is None
    messages = [message for message in page["data"] if message["seq"] > before]
    assert all(message["parent_tool_use_id"] is None for message in messages)
    assert [message["seq"] for message in messages] == sorted(message["seq"] for message in messages)
    assert messages[0]["role"] == "user"
    assert messages[0]["content"][0]["text"].startswith("delegate to")
    assert messages[-1]["role"] == "assistant"
    assert messages[-1]["content"][0]["text"].endswith("goodbye")

    [caller] = [message for message in messages if message["subagent_messages"]]
    [call] = [block for block in caller["content"] if block["type"] == "tool_use"]
    nested = caller["subagent_messages"]
    assert {message["parent_tool_use_id"] for message in nested} == {call["id"]}
    assert nested[0]["role"] == "user"
    assert nested[0]["content"] == [{"type": "text", "text": "run echo deep then say hi"}]
    blocks = [block for message in nested[1:] for block in message["content"]]
    assert [block["input"]["command"] for block in blocks if block["type"] == "tool_use"] == ["echo deep"]
    assert [block["content"] for block in blocks if block["type"] == "tool_result"] == ["deep"]
    assert [block["text"] for block in blocks if block["type"] == "text"][-1].endswith("hi")
    assert not {message["seq"] for message in nested} & {message["seq"] for message in messages}

    paged = await pages(fleet[2], f"/sessions/{session_id}/messages", 1)
    assert [len(part) for part in paged] == [1] * len(page["data"])
    assert [message for part in paged for message in part] == page["data"]
