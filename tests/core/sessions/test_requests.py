"""Requests: what was allowed for the rest of a session."""

from __future__ import annotations

from apps.api.core.pages import PAGE_BYTES
from apps.api.core.sessions import requests
from tests.world import World

_ALLOWED = """
INSERT INTO requests (id, tenant_id, session_id, kind, data, status, decision, remember, expires_at, resolved_at)
SELECT gen_random_uuid(), $1, $2, 'permission',
  '{"tool_name":"Bash","input":{"command":"echo ' || n || '"},"suggestions":[]}', 'answered',
  '{"decision":"allow"}', n > 0, now(), now() + make_interval(secs => n)
FROM generate_series(0, $3::int) AS n
"""


_ASKED = """
INSERT INTO requests (id, tenant_id, session_id, kind, data, expires_at, created_at)
SELECT gen_random_uuid(), $1, $2, 'question', json_build_object('questions', repeat('x', $3))::text, now(),
  now() - make_interval(secs => n)
FROM generate_series(1, 5) AS n
"""


async def test_a_page_of_requests_has_a_bounded_size(world: World) -> None:
    session_id = await world.session()
    await world.db.pool.execute(_ASKED, world.tenant_id, session_id, PAGE_BYTES // 3)
    sizes: list[int] = []
    cursor, seen = None, set()
    while not sizes or cursor is not None:
        page = await requests.list_page(world.db, world.tenant_id, None, status="open", limit=200, cursor=cursor)
        sizes.append(len(page.data))
        seen |= {request["request_id"] for request in page.data}
        cursor = page.next_cursor
    assert (sizes, len(seen)) == ([2, 2, 1], 5)


async def test_all_that_was_allowed_for_the_rest_of_a_session_is_remembered(world: World) -> None:
    session_id = await world.session()
    await world.db.pool.execute(_ALLOWED, world.tenant_id, session_id, 501)
    found = await requests.remembered(world.db, session_id, None)
    assert [before.tool_input["command"] for before in found] == [f"echo {n}" for n in range(1, 502)]
