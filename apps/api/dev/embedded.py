"""Embedded PostgreSQL and Valkey: real servers on unix sockets in a private directory.

`Servers` is what tests use; the supervisor puts the same parts together one by one, because DATABASE_URL and
REDIS_URL replace each of them independently.
"""

from __future__ import annotations

import signal
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from apps.api.dev import postgres, valkey
from apps.api.dev.datadir import DataDir
from apps.api.dev.processes import Child, Reaper, remove

Name = Literal["postgres", "valkey"]


@dataclass(frozen=True)
class Addresses:
    """What a `dev` uses, by setting: where its servers are reached, None for one that does not run, and what is stored
    there is encrypted with. Each URL holds its password."""

    database_url: str | None
    database_owner_url: str | None
    redis_url: str | None
    workspaces_dir: Path | None
    encryption_keys: str | None


def find(data_dir: Path) -> Addresses:
    """The servers that a running `dev` has started in this data directory, for the other commands."""
    home = DataDir.at(data_dir)
    has_database = postgres.is_running(home)
    return Addresses(
        postgres.url(home, postgres.DATABASE) if has_database else None,
        postgres.owner_url(home, postgres.DATABASE) if has_database else None,
        valkey.url(home) if valkey.is_running(home) else None,
        home.workspaces,
        home.known_encryption_key() if has_database else None,
    )


class Servers:
    """A PostgreSQL and a Valkey server. A context manager; entering takes about a second the first time.

    The servers end with this process, however it ends.

    Args:
        data_dir: where the data and the sockets lie. One process at a time can use it.
        ephemeral: for tests: nothing is synced to disk, and stopping removes the directory.

    Raises:
        RefusedError: on entering: another process uses the directory.
        DevError: on entering: a server does not start.
    """

    def __init__(self, data_dir: Path, *, ephemeral: bool = False) -> None:
        self._home = DataDir.at(data_dir)
        self._ephemeral = ephemeral
        self._stack = ExitStack()
        self._children: dict[Name, Child] = {}

    def __enter__(self) -> Servers:
        home = self._home
        with ExitStack() as stack:
            lock = stack.enter_context(home.hold())
            doomed = (home.root, home.sockets) if self._ephemeral else ()
            for path in doomed:
                stack.callback(remove, path)
            reaper = Reaper(home.logs / "reaper.log", lock, doomed)
            stack.callback(reaper.close)
            self._reaper = reaper
            for name in ("valkey", "postgres"):
                self._start(name)
                stack.callback(self._end, name)
            self._stack = stack.pop_all()
        return self

    def restart(self, name: Name) -> None:
        """Stop one server and start it again, for tests of what outlives that."""
        self._stop(name)
        self._start(name)

    def kill(self, name: Name) -> None:
        """Kill one server and all its processes, for tests of what outlives that: `restart` starts it again."""
        self._children[name].kill()

    def _start(self, name: Name) -> None:
        start = postgres.start if name == "postgres" else valkey.start
        self._children[name] = start(self._home, self._reaper, ephemeral=self._ephemeral)

    def _end(self, name: Name) -> None:
        if self._ephemeral and name == "postgres":
            # "Immediate": a checkpoint of many databases takes long, and these are thrown away.
            self._children[name].process.send_signal(signal.SIGQUIT)
        self._stop(name)

    def _stop(self, name: Name) -> None:
        self._reaper.stop(self._children.pop(name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def redis_url(self) -> str:
        """REDIS_URL of the server. Holds the password."""
        return valkey.url(self._home)

    def database_url(self, name: str) -> str:
        """DATABASE_URL of a database on the server, whether or not it exists. Holds the password.

        Its role is made by the first migration with `database_owner_url` on the server.
        """
        return postgres.url(self._home, name)

    def database_owner_url(self, name: str) -> str:
        """DATABASE_OWNER_URL of that database. Holds the password."""
        return postgres.owner_url(self._home, name)

    async def create_database(self, name: str, template: str = "template1") -> None:
        """Create a database unless it exists; a copy of `template`, to which nobody may be connected."""
        await postgres.create_database(self._home, name, template)
