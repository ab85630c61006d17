"""Tickets of previews, and where instances reach each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from apps.api.core.fleet.instances import own_url
from apps.api.core.sessions import ports
from apps.api.core.sessions.ports import PortAccess
from apps.api.errors import Unauthorized
from apps.api.settings import Settings


@pytest.fixture
def preview() -> PortAccess:
    return PortAccess(uuid4(), uuid4(), uuid4(), [8000], uuid4(), "http://10.0.0.1:54000", uuid4())


def test_a_ticket_is_for_one_port_of_one_session(preview: PortAccess) -> None:
    ticket = preview.ticket(8000)
    assert ports.tenant_of(ticket) == preview.tenant_id
    assert preview.admits(ticket, 8000)
    assert not preview.admits(ticket, 8001)
    assert not preview.admits(ticket, 8000, forwarded=True)
    for name in ("session_id", "tenant_id", "key"):
        other: dict[str, Any] = {name: uuid4()}
        assert not replace(preview, **other).admits(ticket, 8000)
    last = "A" if ticket[-1] != "A" else "Q"
    for spoilt in (ticket[:-1] + last, ticket[:-2], "", "é", "A" * len(ticket)):
        assert not preview.admits(spoilt, 8000)


def test_a_ticket_ends(preview: PortAccess) -> None:
    assert preview.admits(preview.ticket(8000, seconds=5), 8000)
    assert not preview.admits(preview.ticket(8000, seconds=-1), 8000)


def test_a_ticket_between_instances_is_signed_with_the_owners_key(preview: PortAccess) -> None:
    ticket = preview.ticket(8000, forwarded=True)
    assert preview.admits(ticket, 8000, forwarded=True)
    assert not preview.admits(ticket, 8000)
    assert not replace(preview, forward_key=None).admits(ticket, 8000, forwarded=True)


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
