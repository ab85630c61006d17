"""Steady traffic, as applications make it: each repeats what was not answered, under one idempotency key."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx

from tests.faults import checker, stub
from tests.faults.history import Broken, Prompt, Reader, Session
from tests.faults.stage import Stage
from tests.fleet import HEADERS, events_of
from tests.world import until

PATIENCE = 180.0
"""Seconds in which whatever is asked must have an answer, whatever goes wrong meanwhile."""

RUN_PATIENCE = 900.0
"""Seconds in which a run must have its end. Where faults come faster than an agent starts, on a slow machine, its
owner is taken away again and again, and a run that has not begun is begun anew."""

PAUSE, STUB_PAUSE = 0.3, 0.05
"""Seconds between two attempts, or two prompts of one session; where the stub answers."""

BYPASS, ASKING = {"permission_mode": "bypassPermissions"}, {"permission_mode": "default", "tools": ["Bash"]}

SLOW = 0.5
"""Seconds that a slow reader takes for each event: of a run that streams it is always behind."""

CRAWL_SECONDS = 60.0
"""For which a client of a byte a second stays; then it comes back with another session."""

RECALLS = 3
"""Attempts to ask an agent what it knows, and what is in its files: a fault may end each."""


DELETION = "deletion"
"""What Heard is told beside events: that a session is about to be deleted."""


class Heard:
    """Who waits for any reader to hear of something."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[asyncio.Future[str]]] = defaultdict(list)

    def tell(self, kind: str, session_id: str) -> None:
        """A reader of this session was told an event of this kind just now."""
        for waiting in self._waiting.pop(kind, ()):
            if not waiting.done():
                waiting.set_result(session_id)

    async def next(self, kind: str, seconds: float) -> str | None:
        """The session of the next one; None when none comes in time."""
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[kind].append(waiting)
        with suppress(TimeoutError):
            return await asyncio.wait_for(waiting, seconds)
        return None


class Load:
    """The traffic of one run of the suite.

    Attributes:
        sessions: all of them, deleted ones included.
        operations: how many answers clients have had.
        refused: what they were told each time that they had to ask again.
        wrong: what did not hold, of no session.
    """

    def __init__(self, stage: Stage, client: httpx.AsyncClient, chance: Random, *, harmless: bool = False) -> None:
        """`harmless`: see `checker.of_runs`."""
        self._stage, self._client, self._chance, self._harmless = stage, client, chance, harmless
        self.sessions: list[Session] = []
        self.wrong, self.refused = list[str](), list[str]()
        self.operations = 0
        self.heard = Heard()
        self._tokens = (f"w{number}x" for number in itertools.count())
        self._over = asyncio.Event()
        self._following: dict[str, list[asyncio.Task[None]]] = {}

    # --- one client ----------------------------------------------------------------------------------------------

    async def client(self, *, stubs: bool = False) -> None:
        """Use session after session until `end`. `stubs`: of the stub, and more of them."""
        while not self._over.is_set():
            config = dict(self._chance.choice((BYPASS, BYPASS, ASKING))) | ({"model": stub.MODEL} if stubs else {})
            session = Session(config, stubs)
            try:
                await self._use(session)
            except Broken as error:
                (session.wrong if session.id else self.wrong).append(str(error))
                session.over = True
                await self._leave(session)

    async def _use(self, session: Session) -> None:
        await self._begin(session)
        for _ in range(self._chance.randint(3, 10) * (3 if session.stub else 1)):
            if self._over.is_set():
                break
            await self._prompt(session)
        fork = None
        if self._chance.random() < 0.3:
            fork = await self._fork(session)
            await self._prompt(fork)
        for each in filter(None, (session, fork)):
            if self._chance.random() < 0.2:
                await self._delete(each)  # in the middle of whatever it is at
            else:
                await self.finish(each)
            if not each.deleted and self._chance.random() < 0.3:
                await self._delete(each)

    def end(self) -> None:
        """Let clients end what they are at."""
        self._over.set()

    async def crawl(self) -> None:
        """Read the events of one session after the other, a byte a second, of a connection that holds few."""
        address = urlsplit(self._stage.front)
        while not self._over.is_set():
            live = [session for session in self.sessions if not session.over]
            if live:
                session = self._chance.choice(live)
                with suppress(OSError, TimeoutError), socket.socket() as opened:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                    opened.setblocking(False)
                    loop = asyncio.get_running_loop()
                    async with asyncio.timeout(CRAWL_SECONDS):
                        await loop.sock_connect(opened, (address.hostname, address.port))
                        head = f"GET /api/v1/sessions/{session.id}/events?after=0 HTTP/1.1\r\nHost: x\r\n"
                        head += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
                        await loop.sock_sendall(opened, f"{head}\r\n".encode())
                        while await loop.sock_recv(opened, 1) and not await self._is_over(1.0):
                            pass
            await asyncio.sleep(1)

    async def _is_over(self, seconds: float) -> bool:
        """Whether the end comes in so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)
        return self._over.is_set()

    async def _begin(self, session: Session) -> None:
        """Half of them with their first prompt, which may find an agent that was started ahead."""
        if self._chance.random() < 0.5:
            made = await self.ask("POST", "/sessions", dict(session.config), key=uuid4().hex)
            self._join(session, made["session_id"])
            return
        prompt = Prompt("say", next(self._tokens))
        session.prompts.append(prompt)
        body = {"prompt": prompt.text, "on_disconnect": "continue", **session.config}
        made = await self.ask("POST", "/query", body, key=prompt.key)
        prompt.run_id = made["run_id"]
        self._join(session, made["session_id"])

    def _join(self, session: Session, session_id: str) -> None:
        session.id = session_id
        self.sessions.append(session)
        for name, pause in (("one", 0.0), ("slow", SLOW)):
            reader = Reader(name, pause)
            session.readers.append(reader)
            task = asyncio.create_task(self._follow(session, reader))
            self._following.setdefault(session_id, []).append(task)

    async def _prompt(self, session: Session) -> None:
        asks = session.config["permission_mode"] == "default"
        kinds = (*["say"] * (6 if session.stub else 2), "stream", "ask" if asks else "marks")
        words = (100, 10) if session.stub else (300, 20)
        prompt = Prompt(self._chance.choice(kinds), next(self._tokens), words)
        before = next((p for p in reversed(session.prompts) if p.run), None)
        session.prompts.append(prompt)
        path = f"/sessions/{session.id}/query"
        prompt.run_id = (await self.ask("POST", path, {"prompt": prompt.text}, key=prompt.key))["run_id"]
        if before is not None and self._chance.random() < 0.2:
            await self._interrupt_late(session, before)
        if self._chance.random() < 0.3:
            await self._steer(session)
        if prompt.kind == "stream" and self._chance.random() < 0.7:
            await asyncio.sleep(self._chance.uniform(0.0, 1.0 if session.stub else 3.0))
            await self._interrupt(session, prompt)
        if prompt.kind == "ask":
            await self._answer(session, prompt)
        if self._chance.random() < 0.8:
            await self.run_of(session, prompt)
        if self._chance.random() < 0.3:  # once more, as a client that does not know that it had its answer
            again = await self.ask("POST", path, {"prompt": prompt.text}, key=prompt.key)
            if again["run_id"] != prompt.run_id:
                raise Broken(f"prompt {prompt.token} was run {prompt.run_id}, and again {again['run_id']}")
        await asyncio.sleep(self._chance.uniform(0, 2 * _pause(session)))

    async def _steer(self, session: Session) -> None:
        """Say something to whatever the session is at, at any point of it."""
        await asyncio.sleep(self._chance.choice((0.0, 0.01, 0.05, 0.2, 1.0)))
        prompt = Prompt("say", next(self._tokens), steered=True)
        session.prompts.append(prompt)
        body = {"prompt": prompt.text, "on_busy": "steer"}
        prompt.run_id = (await self.ask("POST", f"/sessions/{session.id}/query", body, key=prompt.key))["run_id"]

    async def _interrupt(self, session: Session, prompt: Prompt) -> None:
        prompt.interrupted = True
        path = f"/sessions/{session.id}/interrupt"
        told = await self.ask("POST", path, {"run_id": prompt.run_id}, accept=("no_live_run",))
        prompt.stopped = told.get("status") == "applied"

    async def _interrupt_late(self, session: Session, before: Prompt) -> None:
        """Interrupt what is over, while another run is at work: as a request that was long on its way."""
        path = f"/sessions/{session.id}/interrupt"
        told = await self.ask("POST", path, {"run_id": before.run_id}, accept=("no_live_run",))
        if "code" not in told:
            raise Broken(f"run {before.run_id} was over, and its interrupt was answered {told}")

    async def _answer(self, session: Session, prompt: Prompt) -> None:
        """Decide what the run asks, unless it ends before."""
        async with asyncio.timeout(RUN_PATIENCE):
            while True:
                run = await self.ask("GET", f"/runs/{prompt.run_id}")
                if run["finished_at"] is not None:
                    return
                asked = await self.ask("GET", f"/sessions/{session.id}/requests?status=open")
                for request in asked["data"]:
                    if request["run_id"] == prompt.run_id:
                        path = f"/sessions/{session.id}/permissions/{request['request_id']}"
                        decision = self._chance.choice(("allow", "deny"))
                        taken = ("request_resolved", "no_live_run")
                        told = await self.ask("POST", path, {"decision": decision}, accept=taken)
                        if "code" not in told:
                            prompt.decided = decision
                await asyncio.sleep(_pause(session))

    async def _fork(self, session: Session) -> Session:
        for prompt in session.prompts:
            await self.run_of(session, prompt)
        made = await self.ask("POST", f"/sessions/{session.id}/fork", {}, key=uuid4().hex, repeat=("session_busy",))
        fork = Session(session.config, session.stub, inherits=[*session.inherits, *session.prompts])
        self._join(fork, made["session_id"])
        return fork

    async def _delete(self, session: Session) -> None:
        gone = ("session_deleted", "session_not_found")
        self.heard.tell(DELETION, session.id)
        await self.ask("DELETE", f"/sessions/{session.id}", accept=gone)
        session.deleted = session.over = True
        await self._leave(session)

    async def run_of(self, session: Session, prompt: Prompt) -> dict[str, Any]:
        """Its run, once it is over. Raises Broken when it is not in time."""
        try:
            async with asyncio.timeout(RUN_PATIENCE):
                while not prompt.run:
                    run = await self.ask("GET", f"/runs/{prompt.run_id}")
                    if run["finished_at"] is not None:
                        prompt.run = run
                    else:
                        await asyncio.sleep(_pause(session))
        except TimeoutError:
            raise Broken(f"run {prompt.run_id} of {prompt.token} has no end after {RUN_PATIENCE} s") from None
        return prompt.run

    # --- the end of a session ------------------------------------------------------------------------------------

    async def finish(self, session: Session) -> None:
        """Wait until all its runs are over, ask what its agent knows, wait until every reader has come to the end, and
        note what does not hold. Raises Broken."""
        for prompt in list(session.prompts):
            await self.run_of(session, prompt)
        marked = any(prompt.kind == "marks" for prompt in (*session.inherits, *session.prompts))
        for kind in ("files", "recall") if marked else ("recall",):
            await self._recall(session, kind)
        last = int((await self.ask("GET", f"/sessions/{session.id}"))["last_seq"])
        for reader in session.readers:
            reader.pause = 0.0
            try:
                await until(lambda reader=reader: reader.end >= last, every=0.05, seconds=PATIENCE)  # type: ignore[misc]
            except TimeoutError:
                raise Broken(f"reader {reader.name} of {session.id} has come to {reader.end} of {last}") from None
        await self._leave(session)
        session.over = True
        session.wrong += checker.of_session(session, self._stage.marks_of(session.id), harmless=self._harmless)

    async def _recall(self, session: Session, kind: str) -> None:
        for _ in range(RECALLS):
            recall = Prompt(kind, f"{kind}-{uuid4().hex}")
            session.prompts.append(recall)
            path = f"/sessions/{session.id}/query"
            recall.run_id = (await self.ask("POST", path, {"prompt": recall.text}, key=recall.key))["run_id"]
            if (await self.run_of(session, recall))["status"] == "succeeded":
                break

    async def _leave(self, session: Session) -> None:
        """End its readers."""
        tasks = self._following.pop(session.id, [])
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """End all readers."""
        for session in self.sessions:
            await self._leave(session)

    # --- requests ------------------------------------------------------------------------------------------------

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: str = "",
        accept: tuple[str, ...] = (),
        repeat: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """Ask until there is an answer. Raises Broken for one that nobody who does this should get, or when none comes.

        Args:
            accept: codes of errors that are an answer.
            repeat: codes of errors after which to ask again, beside those that say so.
        """
        last = ""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        response = await self._answer_to(method, path, body, {"Idempotency-Key": key} if key else {})
                    except httpx.TransportError as error:
                        last = repr(error)
                    else:
                        self.operations += 1
                        if "X-Run-ID" in response.headers:
                            return {name: response.headers[f"X-{name[:-3]}-ID"] for name in ("session_id", "run_id")}
                        if response.status_code < 300:
                            return dict(response.json()) if response.content else {}
                        last = f"{response.status_code} {response.text[:300]}"
                        code = _code_of(response)
                        if code in accept:
                            return {"code": code}
                        if response.status_code not in (429, 502, 503, 504) and code not in repeat:
                            raise Broken(f"{method} {path}: {last}")
                    self.refused.append(f"{method} {path}: {last}")
                    await asyncio.sleep(self._chance.uniform(0.5, 1.5) * PAUSE)
        except TimeoutError:
            raise Broken(f"{method} {path}: no answer in {PATIENCE} s, at last {last}") from None

    async def _answer_to(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> httpx.Response:
        """An answer; of a stream its head alone."""
        async with self._client.stream(method, f"/api/v1{path}", json=body, headers=headers) as response:
            if response.headers.get("content-type", "").partition(";")[0] != "text/event-stream":
                await response.aread()
            return response

    async def _follow(self, session: Session, reader: Reader) -> None:
        """Hear everything, through one broken connection after the other."""
        while True:
            with suppress(httpx.TransportError):
                headers = {"Last-Event-ID": reader.reached} if reader.reached else {}
                path, patience = f"/api/v1/sessions/{session.id}/events", httpx.Timeout(20, read=20)
                params = {"after": "0"} if not reader.reached else {}
                async with self._client.stream(
                    "GET", path, headers=headers, params=params, timeout=patience
                ) as response:
                    if response.status_code == 404:
                        return
                    if response.status_code == 200:
                        async for event in events_of(response):
                            reader.hear(event)
                            self.heard.tell(event.event, session.id)
                            await asyncio.sleep(reader.pause)
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * PAUSE)


def _pause(session: Session) -> float:
    return STUB_PAUSE if session.stub else PAUSE


def _code_of(response: httpx.Response) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(response.json()["error"]["code"])
    return ""
