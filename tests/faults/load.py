"""Steady traffic, as applications make it: each repeats what was not answered, under one idempotency key."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any
from uuid import uuid4

import httpx
import orjson

from tests.faults.stage import Stage
from tests.fleet import Sse, events_of
from tests.world import until

PATIENCE = 180.0
"""Seconds in which whatever is asked must have an answer, whatever goes wrong meanwhile, and a run its end."""

PAUSE = 0.3
"""Seconds between two attempts, or two prompts of one session."""

BYPASS, ASKING = {"permission_mode": "bypassPermissions"}, {"permission_mode": "default", "tools": ["Bash"]}

SLOW = 0.5
"""Seconds that a slow reader takes for each event: of a run that streams it is always behind."""

MARKS = 12
"""Lines that a prompt of the kind `marks` writes, a tenth of a second apart."""


class Broken(AssertionError):
    """Something that is promised did not hold."""


@dataclass
class Prompt:
    """What became of one.

    Attributes:
        token: a word that is in no other.
        interrupted: somebody has asked to interrupt its run.
        answered: what a person has decided on what it asked.
        run: as it was read when it was over.
    """

    kind: str
    token: str
    key: str = field(default_factory=lambda: uuid4().hex)
    run_id: str | None = None
    interrupted: bool = False
    answered: str | None = None
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        match self.kind:
            case "stream":
                return f"stream 300 words every 20 ms {self.token}"
            case "ask":
                return f"run touch {self.token} && echo {self.token}"
            case "marks":
                write = f"echo {self.token} $(date +%s%N) >> marks; sleep 0.1"
                return f"run i=0; while [ $i -lt {MARKS} ]; do {write}; i=$((i+1)); done"
        return f"say {self.token}"


@dataclass
class Reader:
    """What one reader of a session's events was told: by number, what it was; and the numbers in their order.

    Attributes:
        pause: seconds after each event in which it reads nothing.
        faults: what it should not have been told.
        reached: the position from which it goes on.
    """

    name: str
    pause: float = 0.0
    told: dict[int, tuple[str, str]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    reached: str = ""

    @property
    def end(self) -> int:
        """The number of the last event that is stored."""
        return self.order[-1] if self.order else 0

    def hear(self, event: Sse) -> None:
        if event.event == "resync":
            self.faults.append(f"resync after {self.reached}: {event.data}")
        if not event.id:
            return
        self.reached = event.id
        if event.event == "partial":
            return
        number = int(event.id)
        digest = sha256(orjson.dumps([event.event, event.data])).hexdigest()[:16]
        if self.told.setdefault(number, (event.event, digest)) != (event.event, digest):
            self.faults.append(f"event {number} was {self.told[number]}, and is {event.event} {digest}")
        self.order.append(number)


@dataclass
class Session:
    """One session of the load.

    Attributes:
        config: of its agent.
        inherits: prompts that its conversation began with, of the session that it is a fork of.
    """

    config: Mapping[str, Any]
    id: str = ""
    prompts: list[Prompt] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    inherits: list[Prompt] = field(default_factory=list)
    deleted: bool = False


class Load:
    """The traffic of one run of the suite.

    Attributes:
        sessions: all of them, deleted ones included.
        operations: how many answers clients have had.
        refused: what they were told each time that they had to ask again.
    """

    def __init__(self, stage: Stage, client: httpx.AsyncClient, chance: Random) -> None:
        self._stage, self._client, self._chance = stage, client, chance
        self.sessions: list[Session] = []
        self.operations, self.refused = 0, list[str]()
        self._tokens = (f"w{number}x" for number in itertools.count())
        self._over = asyncio.Event()
        self._following: list[asyncio.Task[None]] = []

    # --- one client ----------------------------------------------------------------------------------------------

    async def client(self) -> None:
        """Use session after session until `end`."""
        while not self._over.is_set():
            session = Session(self._chance.choice((BYPASS, BYPASS, ASKING)))
            await self._begin(session)
            for _ in range(self._chance.randint(3, 10)):
                if self._over.is_set():
                    return
                await self._prompt(session)
            if self._chance.random() < 0.3:
                session = await self._fork(session)
                await self._prompt(session)
            if self._chance.random() < 0.4:
                await self._delete(session)

    def end(self) -> None:
        """Let clients end what they are at."""
        self._over.set()

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
            self._following.append(asyncio.create_task(self._follow(session, reader)))

    async def _prompt(self, session: Session) -> None:
        kinds = ("say", "say", "stream", "ask") if session.config is ASKING else ("say", "say", "stream", "marks")
        prompt = Prompt(self._chance.choice(kinds), next(self._tokens))
        session.prompts.append(prompt)
        path = f"/sessions/{session.id}/query"
        prompt.run_id = (await self.ask("POST", path, {"prompt": prompt.text}, key=prompt.key))["run_id"]
        if prompt.kind == "stream" and self._chance.random() < 0.7:
            await asyncio.sleep(self._chance.uniform(0.0, 3.0))
            await self._interrupt(session, prompt)
        if prompt.kind == "ask":
            await self._answer(session, prompt)
        if self._chance.random() < 0.8:
            await self.run_of(prompt)
        if self._chance.random() < 0.3:  # once more, as a client that does not know that it had its answer
            again = await self.ask("POST", path, {"prompt": prompt.text}, key=prompt.key)
            if again["run_id"] != prompt.run_id:
                raise Broken(f"prompt {prompt.token} was run {prompt.run_id}, and again {again['run_id']}")
        await asyncio.sleep(self._chance.uniform(0, 2 * PAUSE))

    async def _interrupt(self, session: Session, prompt: Prompt) -> None:
        prompt.interrupted = True
        path = f"/sessions/{session.id}/interrupt"
        await self.ask("POST", path, {"run_id": prompt.run_id}, accept=("no_live_run",))

    async def _answer(self, session: Session, prompt: Prompt) -> None:
        """Decide what the run asks, unless it ends before."""
        async with asyncio.timeout(PATIENCE):
            while True:
                run = await self.ask("GET", f"/runs/{prompt.run_id}")
                if run["finished_at"] is not None:
                    return
                asked = await self.ask("GET", f"/sessions/{session.id}/requests?status=open")
                for request in asked["data"]:
                    if request["run_id"] == prompt.run_id:
                        path = f"/sessions/{session.id}/permissions/{request['request_id']}"
                        decision = self._chance.choice(("allow", "deny"))
                        prompt.answered = decision
                        taken = ("request_resolved", "no_live_run")
                        await self.ask("POST", path, {"decision": decision}, accept=taken)
                await asyncio.sleep(PAUSE)

    async def _fork(self, session: Session) -> Session:
        for prompt in session.prompts:
            await self.run_of(prompt)
        made = await self.ask("POST", f"/sessions/{session.id}/fork", {}, key=uuid4().hex, repeat=("session_busy",))
        fork = Session(session.config, inherits=[*session.inherits, *session.prompts])
        self._join(fork, made["session_id"])
        return fork

    async def _delete(self, session: Session) -> None:
        gone = ("session_deleted", "session_not_found")
        await self.ask("DELETE", f"/sessions/{session.id}", accept=gone)
        session.deleted = True

    async def run_of(self, prompt: Prompt) -> dict[str, Any]:
        """Its run, once it is over. Raises Broken when it is not in time."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    prompt.run = await self.ask("GET", f"/runs/{prompt.run_id}")
                    if prompt.run["finished_at"] is not None:
                        return prompt.run
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise Broken(f"run {prompt.run_id} of {prompt.token} has no end after {PATIENCE} s") from None

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
                            if not self._over.is_set():
                                await asyncio.sleep(reader.pause)
            await asyncio.sleep(self._chance.uniform(0.5, 1.5) * PAUSE)

    # --- the end -------------------------------------------------------------------------------------------------

    async def settle(self) -> None:
        """Wait until all runs are over, and every reader has come to the end. Raises Broken."""
        for session in self.sessions:
            if session.deleted:
                continue
            for prompt in session.prompts:
                await self.run_of(prompt)
            state = await self.ask("GET", f"/sessions/{session.id}")
            for reader in session.readers:
                await self._until_read(session, reader, int(state["last_seq"]))

    async def _until_read(self, session: Session, reader: Reader, last: int) -> None:
        try:
            await until(lambda: reader.end >= last, every=PAUSE, seconds=60)
        except TimeoutError:
            raise Broken(f"reader {reader.name} of {session.id} has come to {reader.end} of {last}") from None

    async def close(self) -> None:
        """End all readers."""
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)


def _code_of(response: httpx.Response) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(response.json()["error"]["code"])
    return ""
