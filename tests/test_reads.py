"""Reads that are gathered: one call for many, and never an answer that is older than its question."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from apps.api.reads import Reads


class Store:
    """A store whose calls are answered when the test says so, each with what it held when it was called."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.calls: list[list[str]] = []
        self.called, self.answer = asyncio.Event(), asyncio.Event()

    async def read(self, names: list[str]) -> Sequence[str | None] | None:
        self.calls.append(names)
        entries = [self.held.get(name) for name in names]
        self.called.set()
        await self.answer.wait()
        return entries


async def test_what_is_asked_for_in_one_round_is_one_call() -> None:
    store = Store()
    store.held, reads = {"a": "1", "b": "2"}, Reads(store.read)
    store.answer.set()
    assert await asyncio.gather(*(reads.one(name) for name in ("a", "b", "none", "a"))) == ["1", "2", None, "1"]
    assert store.calls == [["a", "b", "none"]]


async def test_who_asks_after_a_call_has_been_sent_is_told_what_holds_then() -> None:
    store = Store()
    store.held, reads = {"key": "valid"}, Reads(store.read)
    before = asyncio.create_task(reads.one("key"))
    await store.called.wait()
    del store.held["key"]  # revoked
    after = asyncio.create_task(reads.one("key"))
    await asyncio.sleep(0)
    store.answer.set()
    assert [await before, await after] == ["valid", None]


async def test_one_who_gives_up_takes_nothing_from_the_others() -> None:
    store = Store()
    store.held, reads = {"a": "1"}, Reads(store.read)
    first, second = (asyncio.create_task(reads.one("a")) for _ in range(2))
    await store.called.wait()
    first.cancel()
    store.answer.set()
    assert await second == "1"


@pytest.mark.parametrize("sent", [False, True])
async def test_nobody_waits_for_ever_when_it_closes(sent: bool) -> None:
    store = Store()
    reads = Reads(store.read)
    waiting = asyncio.create_task(reads.one("a"))
    await (store.called.wait() if sent else asyncio.sleep(0))
    await reads.close()
    assert await asyncio.wait_for(waiting, 5) is None


async def test_what_cannot_be_read_is_none() -> None:
    async def away(names: list[str]) -> None:
        return None

    assert await asyncio.gather(*(Reads(away).one("a") for _ in range(2))) == [None, None]
