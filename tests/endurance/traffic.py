"""Traffic that could go on for ever: that of the fault suite, slower; most of what is begun there is deleted again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

from tests.faults.history import Broken, Session
from tests.faults.load import PAUSE, Load
from tests.free_ports import free_port
from tests.world import until

REST = 2.0
"""Seconds between two prompts of a client, on average: a small machine is not full."""

KEPT = 0.1
"""So many of the sessions are kept, without anybody who reads them."""


class Steady(Load):
    """Clients that prompt, follow, decide, fork, send and read files, look at previews, and delete."""

    async def _use(self, session: Session) -> None:
        await self._begin(session)
        for _ in range(self._chance.randint(3, 6)):
            await self._prompt(session)
            await asyncio.sleep(self._chance.uniform(0, 2 * REST))
        await self._file(session)
        if self._chance.random() < 0.3:
            fork = await self._fork(session)
            await self._prompt(fork)
            await self._done_with(fork)
        if session.config["permission_mode"] == "bypassPermissions" and self._chance.random() < 0.3:
            await self._preview(session)
        await self._done_with(session)

    async def _done_with(self, session: Session) -> None:
        await self.finish(session)
        if self._chance.random() >= KEPT:
            await self._delete(session)

    async def _file(self, session: Session) -> None:
        path = f"/api/v1/sessions/{session.id}/files/notes.txt"
        for method, content in (("PUT", b"x" * 10_000), ("GET", None)):
            await until(partial(self._is_done, method, path, content), every=PAUSE, seconds=60)

    async def _is_done(self, method: str, path: str, content: bytes | None) -> bool:
        response = await self._client.request(method, path, content=content)
        again = response.status_code in (409, 503)  # others are at the files, or the session changes hands
        if response.status_code >= 300 and not again:
            raise Broken(f"{method} {path}: {response.status_code} {response.text[:300]}")
        return not again

    async def _preview(self, session: Session) -> None:
        port = free_port()
        body = {"prompt": f"run in background python3 -m http.server {port} --bind 127.0.0.1"}
        await self.ask("POST", f"/sessions/{session.id}/query", body)

        async def served() -> bool:
            return (await self._client.get(f"/preview/{session.id}/{port}/notes.txt")).status_code == 200

        try:
            await until(served, every=PAUSE, seconds=60)
        except TimeoutError:
            raise Broken(f"no preview of {session.id} on {port}") from None

    @property
    def prompts(self) -> int:
        """So many there have been."""
        return _count(self.sessions)

    @property
    def stored(self) -> int:
        """Of these, those whose sessions are there still, what forks have from before included."""
        return _count(session for session in self.sessions if not session.deleted)


def _count(sessions: Iterable[Session]) -> int:
    return sum(len(session.prompts) + len(session.inherits) for session in sessions)
