"""The object store that sessions' files travel through: a directory, or a bucket of S3, GCS or Azure, by one URL.

What it takes to speak with each is obstore's, which reads the usual variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing, contextmanager, suppress
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID
from weakref import WeakValueDictionary

import obstore
import structlog
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotSupportedError, PreconditionError
from obstore.store import LocalStore, from_url

from apps.api import clock
from apps.api.settings import Settings
from apps.api.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from obstore.store import ClientConfig, ObjectStore, RetryConfig

log = structlog.get_logger(__name__)

LOCAL = ".store"
"""The directory in WORKSPACES_DIR that is the store where no other is given."""

REMOVED_AT_A_TIME = 8

TRIAL_SECONDS = 30.0
"""For finding out what may be done with a store."""

_TRIAL = "doctor"
"""The name of an object that nobody stores."""

PUTS = 10
"""Times that storing is tried in a directory that goes at that moment, since somebody has removed the last that was in
it."""

_RETRIES: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}


class StoreFailed(Exception):
    """The store cannot be reached, refuses, or does not hold what it should. Its message is for operators."""


class Found(NamedTuple):
    """An object that is there. `modified`: Unix time."""

    name: str
    size: int
    modified: float


class Objects:
    """The objects of a store, by names with slashes.

    Attributes:
        shown: where it is, without what is secret in its URL.
    """

    def __init__(self, opening: Callable[[], ObjectStore], shown: str) -> None:
        """`opening`: makes what speaks with the store, when it is used first; it may raise what obstore does."""
        self._opening, self.shown = opening, shown
        self._turns: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()

    def turn(self, session_id: UUID) -> asyncio.Lock:
        """Held by whoever changes what is stored of a session that nobody owns: on this instance one after the
        other."""
        return self._turns.setdefault(session_id, asyncio.Lock())

    @classmethod
    def of(cls, settings: Settings, *, make: bool = True) -> Objects:
        """The store of WORKSPACE_STORE_URL, or the directory that stands in for one, which is made unless `make` says
        not to."""
        if settings.workspace_store_url is None:
            return cls.in_directory(settings.workspaces_root / LOCAL, make=make)
        url = settings.workspace_store_url.get_secret_value()
        return cls(partial(from_url, url, client_options=_client(), retry_config=_RETRIES), _shown(url))

    @classmethod
    def in_directory(cls, directory: Path, *, make: bool = True) -> Objects:
        """A directory of this host, made when it is used first. Directories in it go with the last that is in them."""

        def opening() -> ObjectStore:
            if not make and not directory.exists():
                raise FileNotFoundError(directory)
            return LocalStore(directory, mkdir=make, automatic_cleanup=True)

        return cls(opening, str(directory))

    @cached_property
    def _store(self) -> ObjectStore:
        return self._opening()

    async def put(self, name: str, content: bytes) -> None:
        """Store an object, whole or not at all. Raises StoreFailed."""
        for _ in range(PUTS):
            with suppress(_Missing), self._failing(name):
                await obstore.put_async(self._store, name, content)
                return
        raise StoreFailed(f"{name}: its directory goes again and again")

    async def put_new(self, name: str, content: bytes) -> None:
        """Store an object unless there is one of this name. Of two at once the first is kept, or the last where the
        store cannot tell: whoever wants to know gets it. Raises StoreFailed."""
        with self._failing(name):
            try:
                await obstore.put_async(self._store, name, content, mode="create")
            except AlreadyExistsError:
                return
            except NotSupportedError:
                await obstore.put_async(self._store, name, content)

    async def get(self, name: str) -> memoryview | None:
        """What an object holds; None if there is none. Raises StoreFailed."""
        try:
            with self._failing(name):
                return memoryview(await (await obstore.get_async(self._store, name)).bytes_async())
        except _Missing:
            return None

    async def is_younger(self, name: str, seconds: float) -> bool:
        """Whether an object is there, and was stored within so many seconds. Raises StoreFailed."""
        modified = await self.modified(name)
        return modified is not None and modified > clock.now().timestamp() - seconds

    async def modified(self, name: str) -> float | None:
        """When an object was stored, in Unix time; None if there is none. Raises StoreFailed."""
        try:
            with self._failing(name):
                return (await obstore.head_async(self._store, name))["last_modified"].timestamp()
        except _Missing:
            return None

    async def try_out(self) -> None:
        """Find out whether objects can be listed, read and stored, without storing one.

        Raises:
            StoreFailed: they cannot.
            TimeoutError: no answer.
        """
        async with asyncio.timeout(TRIAL_SECONDS):
            with self._failing(_TRIAL):
                store = self._store
                async for _ in obstore.list(store, chunk_size=1):
                    break
            await self.get(_TRIAL)
            if isinstance(store, LocalStore):
                if store.prefix is not None and not os.access(store.prefix, os.W_OK | os.X_OK):
                    raise StoreFailed("it cannot be written to by this user")
                return
            with self._failing(_TRIAL):
                try:
                    # On the condition that another one is there: who may store is told that it is not.
                    await obstore.put_async(store, _TRIAL, b"", mode={"e_tag": '"none"', "version": "1"})
                except (PreconditionError, NotFoundError, FileNotFoundError):
                    return
            await self.remove([_TRIAL])  # a store that knows no conditions has stored it

    async def below(self, prefix: str) -> AsyncGenerator[list[Found]]:
        """The objects whose names are below `prefix`, some hundred at a time. Raises StoreFailed."""
        with self._failing(prefix):
            async for some in obstore.list(self._store, prefix, chunk_size=500):
                yield [Found(one["path"], one["size"], one["last_modified"].timestamp()) for one in some]

    async def remove(self, names: Sequence[str]) -> None:
        """Remove objects, if they are there. Raises StoreFailed."""
        async with Flight(REMOVED_AT_A_TIME) as flight:
            for name in names:
                await flight.add(self._remove(name))

    async def _remove(self, name: str) -> None:
        with suppress(_Missing), self._failing(name):
            await obstore.delete_async(self._store, name)

    async def copy(self, name: str, to: str) -> bool:
        """Store what an object holds once more, under another name. Returns whether there is such an object. Raises
        StoreFailed."""
        try:
            with self._failing(name):
                await obstore.copy_async(self._store, name, to)
                if isinstance(self._store, LocalStore) and self._store.prefix is not None:
                    # It is the same file with two names, which is as old as it was.
                    await asyncio.to_thread(os.utime, Path(self._store.prefix) / to)
        except _Missing:
            return False
        return True

    async def discard_unfinished(self, prefix: str, seconds: float, threads: Threads) -> None:
        """Remove what somebody has left who died while storing something below `prefix`, so many seconds ago. Only
        directories know such a thing, and show it to nobody. Raises StoreFailed."""
        with self._failing(prefix):
            if isinstance(self._store, LocalStore) and self._store.prefix is not None:
                until = clock.now().timestamp() - seconds
                await threads.run(_discard_unfinished, Path(self._store.prefix) / prefix, until)

    async def remove_below(self, prefix: str, most: float = math.inf) -> bool:
        """Remove objects whose names are below `prefix`, about so many. Returns whether it was all of them. Raises
        StoreFailed."""
        async with aclosing(self.below(prefix)) as found:
            async for some in found:
                if most <= 0:
                    return False
                await self.remove([one.name for one in some])
                most -= len(some)
        return True

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise _Missing(name) from error
        except (BaseError, OSError, ValueError) as error:
            log.warning("objects.failed", store=self.shown, object=name, error=_first_line(error))
            raise StoreFailed(f"{name}: {_first_line(error)}") from error


_UNFINISHED = re.compile(r".+#[0-9]+")
"""Names of what LocalStore writes to before it gives it the object's name."""


def _discard_unfinished(directory: Path, until: float) -> None:
    for above, _, names in os.walk(directory):
        for name in names:
            path = Path(above, name)
            with suppress(FileNotFoundError):
                if _UNFINISHED.fullmatch(name) and path.lstat().st_mtime < until:
                    path.unlink()
                    log.info("objects.unfinished_removed", path=str(path))


class _Missing(StoreFailed):
    """There is no such object."""


def _client() -> ClientConfig:
    """Of what is given here nothing is read from the usual variables any more; nor whether TLS may be done without,
    as with a store in the same cluster."""
    given = (os.environ.get(f"{cloud}_ALLOW_HTTP", "").lower() for cloud in ("AWS", "GOOGLE", "AZURE"))
    return {"connect_timeout": "5s", "timeout": "60s", "allow_http": any(each in ("1", "true") for each in given)}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _shown(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


class Flight:
    """Work that is done at the same time, so much of it at most. When the block ends all is done; what fails first ends
    the rest, and is raised."""

    def __init__(self, most: int) -> None:
        self._room, self._work = asyncio.Semaphore(most), asyncio.TaskGroup()

    async def __aenter__(self) -> Flight:
        await self._work.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._work.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def add(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin it as soon as there is room."""
        await self._room.acquire()
        self._work.create_task(work).add_done_callback(lambda _: self._room.release())
