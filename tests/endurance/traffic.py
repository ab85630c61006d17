"""Traffic that could go on for ever: that of the fault suite, slower; most of what is begun there is deleted again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from random import Random

import httpx

from apps.api.core import tasks
from tests.faults.checker import of_readers, of_runs
from tests.faults.load import ASKING, BYPASS, PAUSE, Broken, Load, Prompt, Session
from tests.faults.stage import Stage
from tests.free_ports import free_port
from tests.world import until

REST = 2.0
"""Seconds between two prompts of a client, on average: a small machine is not full."""

KEPT = 0.1
"""So many of the sessions are kept, without anybody who reads them."""


class Steady(Load):
    """Clients that prompt, follow, decide, fork, send and read files, look at previews, and delete.

    Attributes:
        wrong: what did not hold of a session, when its client was done with it.
    """

    def __init__(self, stage: Stage, client: httpx.AsyncClient, chance: Random) -> None:
        super().__init__(stage, client, chance)
        self.wrong: list[str] = []
        self._readers: dict[str, list[asyncio.Task[None]]] = {}

    async def client(self) -> None:
        """Use session after session until `end`."""
        while not self._over.is_set():
            session = Session(self._chance.choice((BYPASS, BYPASS, ASKING)))
            await self._begin(session)
            for _ in range(self._chance.randint(3, 6)):
                await self._prompt(session)
                await asyncio.sleep(self._chance.uniform(0, 2 * REST))
            await self._file(session)
            if self._chance.random() < 0.3:
                fork = await self._fork(session)
                await self._prompt(fork)
                await self._leave(fork)
            if session.config is BYPASS and self._chance.random() < 0.3:
                await self._preview(session)
            await self._leave(session)

    async def _file(self, session: Session) -> None:
        path = f"/api/v1/sessions/{session.id}/files/notes.txt"
        for method, content in (("PUT", b"x" * 10_000), ("GET", None)):
            response = await self._client.request(method, path, content=content)
            if response.status_code >= 300:
                raise Broken(f"{method} {path}: {response.status_code} {response.text[:300]}")

    async def _preview(self, session: Session) -> None:
        port = free_port()
        prompt = Prompt("serve", f"python3 -m http.server {port} --bind 127.0.0.1")
        body = {"prompt": f"run in background {prompt.token}"}
        prompt.run_id = (await self.ask("POST", f"/sessions/{session.id}/query", body, key=prompt.key))["run_id"]
        await self.run_of(prompt)

        async def served() -> bool:
            return (await self._client.get(f"/preview/{session.id}/{port}/notes.txt")).status_code == 200

        try:
            await until(served, every=PAUSE, seconds=60)
        except TimeoutError:
            raise Broken(f"no preview of {session.id} on {port}") from None

    async def _leave(self, session: Session) -> None:
        """Be done with a session. Its readers have theirs until now."""
        for prompt in session.prompts:
            await self.run_of(prompt)
        self.wrong += (f"session {session.id}: {told}" for told in (*of_runs(session), *of_readers(session)))
        if self._chance.random() >= KEPT:
            await self._delete(session)
        await tasks.end(*self._readers.pop(session.id))

    def _join(self, session: Session, session_id: str) -> None:
        super()._join(session, session_id)
        self._readers[session_id] = [self._following.pop() for _ in session.readers]

    async def close(self) -> None:
        """End all readers that are left."""
        await tasks.end(*(task for readers in self._readers.values() for task in readers))

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
