"""What clients did and were told: the model that the checker has of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import uuid4

import orjson

from tests.fleet import Sse

MARKS = 12
"""Lines that a prompt of the kind `marks` writes, a tenth of a second apart."""


class Broken(AssertionError):
    """Something that is promised did not hold."""


@dataclass
class Prompt:
    """What became of one.

    Attributes:
        token: a word that is in no other.
        words: that a prompt of the kind `stream` has said, and how many milliseconds apart.
        interrupted: somebody has asked to interrupt its run.
        stopped: that was answered with `applied`.
        steered: it was sent to go into the turn that ran then.
        decided: what a person has decided on what it asked, and was told that it counts.
        run: as it was read when it was over.
    """

    kind: str
    token: str
    words: tuple[int, int] = (300, 20)
    key: str = field(default_factory=lambda: uuid4().hex)
    run_id: str | None = None
    interrupted: bool = False
    stopped: bool = False
    steered: bool = False
    decided: str | None = None
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        match self.kind:
            case "stream":
                return "say {} then stream {} words every {} ms".format(self.token, *self.words)
            case "ask":
                return f"run touch {self.token} && echo {self.token}"
            case "marks":
                write = f"echo {self.token} $(date +%s%N) >> marks || exit 1; sleep 0.1"
                return f"run i=0; while [ $i -lt {MARKS} ]; do {write}; i=$((i+1)); done; echo {self.written}"
            case "recall":
                return "recall"
            case "files":
                return "run cut -d' ' -f1 marks | uniq -c"
        return f"say {self.token}"

    @property
    def written(self) -> str:
        """What a command says that has written all of its marks: not where its disk was full meanwhile."""
        return f"wrote all of {self.token}"


@dataclass
class Reader:
    """What one reader of a session's events was told: by number, what it was; and the numbers in their order.

    Attributes:
        pause: seconds after each event in which it reads nothing.
        told: by number: the type, the run, and a digest of all.
        faults: what it should not have been told.
        statuses: what events of the type `status` have said.
        reached: the position from which it goes on.
    """

    name: str
    pause: float = 0.0
    told: dict[int, tuple[str, str | None, str]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    statuses: set[str] = field(default_factory=set)
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
        if event.event == "status":
            self.statuses.add(event.data["status"])
        number = int(event.id)
        digest = sha256(orjson.dumps([event.event, event.data])).hexdigest()[:16]
        told = (event.event, event.data.get("run_id"), digest)
        if self.told.setdefault(number, told) != told:
            self.faults.append(f"event {number} was {self.told[number]}, and is {told}")
        self.order.append(number)


@dataclass
class Session:
    """One session of the load.

    Attributes:
        config: of its agent.
        stub: its agent is the stub.
        inherits: prompts that its conversation began with, of the session that it is a fork of.
        over: its client is done with it: nothing more is to come.
        wrong: what did not hold.
    """

    config: Mapping[str, Any]
    stub: bool = False
    id: str = ""
    prompts: list[Prompt] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    inherits: list[Prompt] = field(default_factory=list)
    deleted: bool = False
    over: bool = False
    wrong: list[str] = field(default_factory=list)
