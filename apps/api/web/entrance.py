"""Where keys are shown: what a wrong one costs, and how many of them are looked up.

A wrong key must cost next to nothing, and no flood of them may keep a right one out, though it comes from the same
address. So those that are wrong are known for a while; so are those that were right, and no limit holds for them. Of
the others each address, each beginning of a key, and all together may fail some times a minute. What comes beyond that
is still looked up, but together with all that come in the same quarter of a second, in one statement: who is right has
waited for that long, who is not is told 429.

All of it is this instance's alone, and in its memory: strangers write nothing into Redis.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from apps.api import addresses, auth, instruments, tracing
from apps.api.addresses import Address
from apps.api.auth import Principal, UnknownKey
from apps.api.core import tasks
from apps.api.core.config import grants
from apps.api.db import Database
from apps.api.errors import ApiError, Forbidden, RateLimited, Unauthorized, Unavailable
from apps.api.redis import Redis

log = structlog.get_logger(__name__)

T = TypeVar("T")

WINDOW = 60.0
"""Seconds for which failures are counted, from the first of them."""

OF_ALL = 10
"""Failures of all addresses together, times those of one, after which no key that is new here is looked up alone."""

WRONG_FOR = 10.0
"""Seconds for which a key that nobody has is known to be wrong. Only one that an operator chooses can become right."""

REMEMBERED = 10_000
"""Keys that are known to be wrong, keys that are known to be right, and counts of failures: of each so many."""

TOGETHER_SECONDS = 0.25
"""Between two statements that look up many keys."""

MAX_TOGETHER = 2_000
"""Keys that wait for the next one of them. More are told to come again without being looked up."""


def address_of(connection: HTTPConnection) -> Address | None:
    """The client's address, by the word of proxies that FORWARDED_ALLOW_IPS names."""
    return addresses.read(connection.client.host if connection.client else None)


@dataclass(slots=True)
class _Failures:
    """Of one address, of one beginning of keys, or of all, since some moment. What is under way counts as one."""

    since: float
    limit: int
    count: int = 0
    told: bool = False

    @property
    def too_many(self) -> bool:
        return 0 < self.limit <= self.count


class Entrance:
    """That of one instance."""

    def __init__(self, db: Database, redis: Redis, limit: int, sealing: Sequence[SecretStr] = ()) -> None:
        """
        Args:
            limit: failures of an address, and of a beginning of keys, a minute; 0 is no limit.
            sealing: what client tokens are sealed with, see `grants`.
        """
        self._db, self._redis, self._limit, self._sealing = db, redis, limit, sealing
        self._failures: OrderedDict[str, _Failures] = OrderedDict()  # the eldest first
        self._of_all = _Failures(time.monotonic(), limit * OF_ALL)
        self._wrong: OrderedDict[str, float] = OrderedDict()  # hash → since when, the eldest first
        self._right: OrderedDict[str, None] = OrderedDict()  # what was not shown for longest first
        self._together = _Together(db)

    async def close(self) -> None:
        """End what is being looked up."""
        await self._together.close()

    async def guest(self, no_hash: str, address: Address | None) -> Principal:
        """Who a caller without a key is. Raises as `auth.anonymous`."""
        return await auth.anonymous(self._db, self._redis, no_hash, address)

    async def authenticate(self, secret: str | None, address: Address | None) -> Principal:
        """Whose key this is, or for whom a client token is. What is no token of ours is a wrong key, and costs as much.

        Raises:
            Unauthorized, Forbidden: as `auth.authenticate`, `client_token_expired`.
            RateLimited: `too_many_wrong_keys`: this one is wrong too, or too many wait to be looked up.
        """
        try:
            if not secret:
                raise auth.no_key()
            if (token := grants.unseal(self._sealing, secret)) is not None:
                # Its key is asked for as if it had been shown, where that is cached: a token ends as soon as the key.
                secret_hash, grant = token
                return (await auth.of_hash(self._db, self._redis, secret_hash, address)).within(grant)
            return await self._authenticate(secret, auth.hash_of(secret), address)
        except (Unauthorized, RateLimited, Forbidden) as error:
            instruments.KEYS_REFUSED.labels(error.code).inc()
            raise

    async def _authenticate(self, secret: str, secret_hash: str, address: Address | None) -> Principal:
        if secret_hash in self._right:
            with suppress(Unauthorized):
                found = await auth.of_hash(self._db, self._redis, secret_hash, address)
                _remember(self._right, secret_hash, None)
                return found
            self._right.pop(secret_hash, None)
        counts = self._counts(secret, address)
        limited = any(failures.too_many for failures in counts[1:])
        crowded = limited or counts[0].too_many
        _add(counts, 1)  # before it is looked up: no more are looked up at the same time than may fail
        try:
            if self._is_wrong(secret_hash) or (crowded and not await self._together.exists(secret_hash)):
                raise UnknownKey
            found = await auth.of_hash(self._db, self._redis, secret_hash, address)
        except Unauthorized as error:
            if isinstance(error, UnknownKey):
                _remember(self._wrong, secret_hash, time.monotonic())
            self._tell(counts, address)
            if limited:
                raise _too_many(counts[1:]) from error
            raise
        except BaseException:
            _add(counts, -1)
            raise
        _add(counts, -1)
        _remember(self._right, secret_hash, None)
        return found

    def _counts(self, secret: str, address: Address | None) -> list[_Failures]:
        """Of all, of this address, of keys that begin as this one does."""
        if time.monotonic() - self._of_all.since >= WINDOW:
            self._of_all = _Failures(time.monotonic(), self._limit * OF_ALL)
        own = f"address {addresses.household(address)}", f"prefix {auth.prefix_of(secret)}"
        return [self._of_all, *map(self._count, own)]

    def _count(self, whose: str) -> _Failures:
        found, now = self._failures.get(whose), time.monotonic()
        if found is None or now - found.since >= WINDOW:
            found = _Failures(now, self._limit)
            _remember(self._failures, whose, found)
        return found

    def _is_wrong(self, secret_hash: str) -> bool:
        since = self._wrong.get(secret_hash)
        return since is not None and time.monotonic() - since < WRONG_FOR

    def _tell(self, counts: list[_Failures], address: Address | None) -> None:
        news = [failures for failures in counts[1:] if failures.too_many and not failures.told]
        for failures in news:
            failures.told = True
        if news:
            log.warning("keys.many_wrong", address=addresses.household(address), limit=self._limit)


def _remember(known: OrderedDict[str, T], name: str, value: T) -> None:
    known[name] = value
    known.move_to_end(name)
    if len(known) > REMEMBERED:
        known.popitem(last=False)


def _add(counts: Iterable[_Failures], by: int) -> None:
    for failures in counts:
        failures.count += by


def _too_many(counts: Iterable[_Failures]) -> ApiError:
    end = max(failures.since for failures in counts if failures.too_many) + WINDOW
    seconds = max(math.ceil(end - time.monotonic()), 1)
    return RateLimited(
        "Too many wrong keys came from this address, or began as this one does. This one is wrong too.",
        code="too_many_wrong_keys",
        details={"retry_after_seconds": seconds},
        headers={"Retry-After": str(seconds)},
    )


class _Together:
    """Looks up all keys that come within a while in one statement."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: dict[str, asyncio.Future[bool | None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            await tasks.end(self._task)

    async def exists(self, secret_hash: str) -> bool:
        """Whether a key has this secret.

        Raises:
            RateLimited: too many wait already.
            Unavailable: the database does not answer.
        """
        answer = self._waiting.get(secret_hash)
        if answer is None:
            if len(self._waiting) >= MAX_TOGETHER:
                raise RateLimited(
                    "Too many keys wait to be looked up. Try again.",
                    code="too_many_wrong_keys",
                    details={"retry_after_seconds": 1},
                    headers={"Retry-After": "1"},
                )
            answer = self._waiting[secret_hash] = asyncio.get_running_loop().create_future()
        if self._task is None:
            self._task = asyncio.create_task(self._look_up(), name="keys-together")
        found = await asyncio.shield(answer)
        if found is None:
            raise Unavailable("The database did not answer in time.")
        return found

    async def _look_up(self) -> None:
        tracing.work_on(None)  # for all that wait
        asked: dict[str, asyncio.Future[bool | None]] = {}
        try:
            while self._waiting:
                await asyncio.sleep(TOGETHER_SECONDS)
                asked, self._waiting = self._waiting, {}
                try:
                    found = await auth.existing(self._db, asked)
                except Exception as error:
                    log.warning("keys.not_looked_up", count=len(asked), error=type(error).__name__)
                    _answer(asked, None)
                else:
                    _answer(asked, found)
        finally:
            _answer({**asked, **self._waiting}, None)
            self._waiting, self._task = {}, None


def _answer(asked: Mapping[str, asyncio.Future[bool | None]], found: set[str] | None) -> None:
    for secret_hash, answer in asked.items():
        if not answer.done():
            answer.set_result(None if found is None else secret_hash in found)
