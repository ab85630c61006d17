"""Tickets of previews, and where instances reach each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from apps.api.core.fleet.instances import own_url
from apps.api.core.lease import Lease
from apps.api.core.sessions import ports
from apps.api.core.sessions.ports import PortAccess
from apps.api.errors import Unauthorized, Unavailable
from apps.api.settings import Settings
from tests.world import World


@pytest.fixture
def preview() -> PortAccess:
    return PortAccess(uuid4(), uuid4(), uuid4(), [8000], uuid4(), "http://10.0.0.1:54000", uuid4())


def test_a_ticket_is_for_one_port_of_one_session(preview: PortAccess) -> None:
    ticket = preview.ticket(8000)
    assert ports.tenant_of(ticket) == preview.tenant_id
    assert preview.admits(ticket, 8000)
    assert not preview.admits(ticket, 8001)
    assert not preview.admits(preview.ticket(8000, forwarded=True), 8000)
    for name in ("session_id", "tenant_id", "key"):
        other: dict[str, Any] = {name: uuid4()}
        assert not replace(preview, **other).admits(ticket, 8000)
    last = "A" if ticket[-1] != "A" else "Q"
    for spoilt in (ticket[:-1] + last, ticket[:-2], "", "é", "A" * len(ticket)):
        assert not preview.admits(spoilt, 8000)


def test_a_ticket_ends(preview: PortAccess) -> None:
    assert preview.admits(preview.ticket(8000, seconds=5), 8000)
    assert not preview.admits(preview.ticket(8000, seconds=-1), 8000)


async def test_a_ticket_between_instances_is_for_the_one_that_owns_the_session(world: World) -> None:
    sender, owner, next_owner = await world.instance(), await world.instance(), await world.instance()
    await world.queue()
    session_id = (await world.claim(owner)).session_id
    access = await ports.get(world.db, world.tenant_id, session_id)

    async def come(ticket: str, lease: Lease = owner, port: int = 8000) -> PortAccess:
        return await ports.get_forwarded(
            world.db, ticket, session_id, port, lease.instance_id, code="files_unavailable"
        )

    good = access.ticket(8000, forwarded=True)
    assert await come(good) == access
    with pytest.raises(Unauthorized):
        await come(good, port=8001)
    with pytest.raises(Unauthorized):
        await come(good, lease=sender)
    with pytest.raises(Unauthorized):
        await come(access.ticket(8000))
    with pytest.raises(Unavailable):  # stopped on the way for as long as it was good
        await come(access.ticket(8000, forwarded=True, seconds=-1))
    await world.db.pool.execute("UPDATE sessions SET owner_id = $1", next_owner.instance_id)
    with pytest.raises(Unavailable):
        await come(good)
    with pytest.raises(Unauthorized):
        await come(good, lease=next_owner)


def test_what_is_no_ticket_is_refused() -> None:
    with pytest.raises(Unauthorized):
        ports.tenant_of("nonsense")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"host": "127.0.0.1", "port": 54001}, "http://127.0.0.1:54001"),
        ({"host": "::1", "port": 54001}, "http://[::1]:54001"),
        ({"host": "127.0.0.1", "port": 0}, None),
        ({"host": "0.0.0.0", "advertise_url": "http://10.0.0.5:54000/"}, "http://10.0.0.5:54000"),
    ],
)
def test_an_instance_says_where_it_is_reached(given: dict[str, Any], url: str | None) -> None:
    assert own_url(Settings(_env_file=None, **given)) == url
