"""The heartbeat: renews the lease of an instance in a thread of its own, with a loop and a connection of its own.

So neither requests that take all connections nor an event loop that is late with everything cost the lease, and a
renewal counts when its answer has come, whenever the rest of the server gets to it. What the database said with it is
handed to the server's loop; a server whose loop takes nothing for LONGEST_SILENCE is not kept alive any longer.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from threading import Thread

import asyncpg
import structlog

from apps.api.core.fleet import instances
from apps.api.core.fleet.instances import Renewed
from apps.api.core.lease import Lease
from apps.api.core.tasks import retry_pause
from apps.api.db import connect
from apps.api.errors import LeaseLost
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

LONGEST_SILENCE = 30.0
"""Seconds that the server's loop may be busy with something else. One that is stuck must lose its sessions."""

LONGEST_PAUSE = 0.5
"""Seconds after a renewal that failed, at most."""


class Heartbeat:
    """Renews `lease` from `start` to `stop`, four times in its length."""

    def __init__(self, settings: Settings, lease: Lease, *, longest_silence: float = LONGEST_SILENCE) -> None:
        self._settings, self._lease, self._longest_silence = settings, lease, longest_silence
        self._thread = Thread(target=self._run, name="heartbeat", daemon=True)
        self._server: asyncio.AbstractEventLoop | None = None
        self._newest: Renewed | Exception = LeaseLost("no renewal yet")
        self._told, self._taken = asyncio.Event(), True
        self._heard_at, self._server_is_gone = 0.0, False
        self._own: asyncio.AbstractEventLoop | None = None
        self._renewing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the lease has been registered."""
        self._server, self._heard_at = asyncio.get_running_loop(), time.monotonic()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        own, renewing = self._own, self._renewing
        if own is not None and renewing is not None:
            with suppress(RuntimeError):  # it has ended already
                own.call_soon_threadsafe(renewing.cancel)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, self._lease.seconds)

    async def next(self) -> Renewed:
        """What came of the newest renewal, once there is one that was not asked for yet.

        Raises:
            LeaseLost: the database says that the lease has run out.
            TimeoutError: no renewal has been tried for the time of a lease.
            Exception: why it failed.
        """
        async with asyncio.timeout(self._lease.seconds):
            await self._told.wait()
        self._told.clear()
        if isinstance(self._newest, Exception):
            raise self._newest
        return self._newest

    def _hear(self) -> None:
        self._taken, self._heard_at = True, time.monotonic()
        self._told.set()

    # --- in the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._renew_for_ever())

    async def _renew_for_ever(self) -> None:
        self._own, self._renewing = asyncio.get_running_loop(), asyncio.current_task()
        connection: asyncpg.Connection | None = None
        failed = 0
        try:
            while not self._server_is_gone:
                if time.monotonic() - self._heard_at < self._longest_silence:
                    try:
                        connection = connection or await connect(self._settings)
                        self._tell(await self._renew(connection))
                        failed = 0
                    except Exception as error:
                        log.warning("heartbeat.failed", error=error, left=self._lease.remaining())
                        if connection is not None:
                            connection.terminate()
                        connection, failed = None, failed + 1
                        self._tell(error)
                else:
                    log.error("heartbeat.withheld", reason="the event loop stands still")
                regular = self._lease.seconds / 4 * random.uniform(0.9, 1.0)
                await asyncio.sleep(min(retry_pause(failed, LONGEST_PAUSE), regular) if failed else regular)
        finally:
            if connection is not None:
                connection.terminate()

    async def _renew(self, connection: asyncpg.Connection) -> Renewed | Exception:
        # Half of the lease is left for another try, by another connection.
        async with asyncio.timeout(self._lease.seconds / 2):
            try:
                return await instances.renew(connection, self._lease)
            except LeaseLost as lost:
                return lost

    def _tell(self, outcome: Renewed | Exception) -> None:
        self._newest = outcome
        if self._taken and self._server is not None:
            self._taken = False
            try:
                self._server.call_soon_threadsafe(self._hear)
            except RuntimeError:  # it has been closed
                self._server_is_gone = True
