"""One agent process: the SDK's client, and the guard's process behind it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar
from uuid import UUID

import structlog
from claude_agent_sdk import (
    ClaudeAgentOptions,
    ClaudeSDKClient,
    CLIConnectionError,
    CLIJSONDecodeError,
    HookMatcher,
    Message,
)
from claude_agent_sdk.types import HookEvent

from apps.api import instruments
from apps.api.core.fleet.claims import Claim
from apps.api.errors import LeaseLost, Unavailable
from apps.api.runner.guard.cgroups import Group
from apps.api.runner.guard.limits import OUT_OF_MEMORY

log = structlog.get_logger(__name__)

T = TypeVar("T")

HookMatchers = dict[HookEvent, list[HookMatcher]]
"""The SDK's `hooks` option."""

START_TIMEOUT = 60.0
"""Seconds for a CLI to start and load its history."""

ANSWER_TIMEOUT = 15.0
"""Seconds for a CLI to read what it is told, and to answer. An MCP server's connection may take that long."""

REWIND_TIMEOUT = 60.0
"""Seconds for a CLI to restore files. The SDK itself waits no longer for any answer."""

SEND_TIMEOUT = 60.0
"""Seconds for a CLI to read a prompt: what is larger than the pipe to it, 64 KB, is sent while it reads."""

STOP_TIMEOUT = 5.0
"""Seconds that an interrupted turn gets to hand over its result, and an idle CLI to exit, before it is killed."""


class StartFailed(Exception):
    """The CLI did not start. Its message is for operators: the last lines that the CLI wrote."""

    @property
    def code(self) -> str:
        """The failure of its run."""
        return "agent_start_failed"

    @property
    def told(self) -> str:
        """What its client is told."""
        return "The agent process did not start."


class CannotStart(StartFailed):
    """What the agent was to be given is missing or not allowed. Its message is for the client, and holds no secret."""

    quotes = True

    @property
    def told(self) -> str:
        """The message itself."""
        return str(self)


class Exceeded(StartFailed):
    """What starts with the agent took more than it may. Its message is the code of the failure."""

    @property
    def code(self) -> str:
        """The message itself."""
        return str(self)

    @property
    def told(self) -> str:
        """Nothing beside the usual words of the code."""
        return ""


class TranscriptLost(Exception):
    """The SDK could not store what the agent has said."""

    quotes = True


class Poisoned(Exception):
    """The process remembers a turn that nobody asked for, and for which the model refuses every later one."""


class NotTaken(Exception):
    """The process would begin a turn with a message that it was given for one that is over."""


class Owner(Protocol):
    """Who has an agent, as what works for it knows it: to tell it this, and to call nothing else of it."""

    async def heard(self, agent: Agent, message: Message) -> None:
        """The agent's next message. What this raises ends the reading, and is told to `ended`."""

    async def ended(self, agent: Agent, failure: Exception | None) -> None:
        """There are no more messages; `failure` ended them, if not the CLI."""

    def lost(self, error: Exception) -> None:
        """The session is somebody else's, or may be soon."""


RECYCLE_AFTER_TURNS = 100
"""A CLI grows to some 300 MB in 200 turns; a fresh one resumes in 0.4 s."""


class Agent:
    """A started CLI. Whoever starts it also closes it, in the same task; its messages are read in another.

    Attributes:
        config: what it was started with, and changed to since.
        cwd: where it was started.
        isolation: its layer, see `launcher.Wall`.
        group: its control group, if it has one.
    """

    def __init__(self, claim: Claim, client: ClaudeSDKClient, cwd: str = "") -> None:
        """`claim`: the run for which it is started."""
        self._session_id, self.client, self.cwd = claim.session_id, client, cwd
        self.isolation = client.options.env.get("CLI_GUARD_LAYER", "off")
        self.config, self._provisions = claim.config, claim.provisions
        self._reader: asyncio.Task[None] | None = None
        self._turns, self._used_up, self._killed = 0, False, False
        self._exceeded: str | None = None
        self._why: str | None = None
        self.group: Group | None = None

    @classmethod
    async def start(
        cls, claim: Claim, options: ClaudeAgentOptions, stderr: list[str], begun: Callable[[Agent], None]
    ) -> Agent:
        """Start the CLI, within START_TIMEOUT. Raises StartFailed; then, and when it is cut off, nothing is left.

        `begun` is told of it at once: what starts with it, such as MCP servers, is at work before it answers.
        """
        agent = cls(claim, ClaudeSDKClient(options), str(options.cwd))
        begun(agent)
        connecting = asyncio.create_task(agent.client.connect(), name=f"connect-{claim.session_id}")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.shield(connecting)
        except asyncio.CancelledError:
            await agent._put_down(connecting)
            raise
        except Exception as error:
            await agent._put_down(connecting)
            if agent.exceeded:
                raise Exceeded(agent.exceeded) from error
            if refused := next((line for line in stderr if "--json-schema" in line), None):
                raise CannotStart(f"output_format: {refused}") from error  # a pattern that JavaScript cannot read
            raise StartFailed("; ".join(stderr[-3:]) or str(error) or type(error).__name__) from error
        return agent

    @property
    def is_alive(self) -> bool:
        """Whether its messages are still being read, which end with the process, and it has not been killed. Before
        anybody reads them: whether there is a process."""
        reads = self.pid is not None if self._reader is None else not self._reader.done()
        return reads and not self._killed

    @property
    def pid(self) -> int | None:
        """Of the guard, above all that the agent has started; None when it has ended. Private attributes: see kill."""
        process = getattr(getattr(self.client, "_transport", None), "_process", None)
        return process.pid if process is not None and process.returncode is None else None

    @property
    def exceeded(self) -> str | None:
        """Why it was ended, as a failure of a run, if it took more than it may."""
        if self._exceeded is None and self.group is not None and self.group.ran_out_of_memory():
            self._exceeded = OUT_OF_MEMORY
        return self._exceeded

    def why_it_ended(self, failure: Exception | None) -> str:
        """The code for the run of an agent whose messages have ended without a result."""
        if self.exceeded:
            return self.exceeded
        if isinstance(failure, CLIJSONDecodeError) and "maximum buffer size" in str(failure):
            return "agent_message_too_large"
        if isinstance(failure, TranscriptLost):
            return "storage_failed"
        return "agent_crashed"

    def unfit(self, claim: Claim, *, tasks: bool, at_work: bool) -> str | None:
        """Why this agent is not for that run, if it is not.

        `tasks`: whether any of its own are left. They outweigh what the tenant has changed meanwhile, not what the
        client asks for; those that are still `at_work` also outweigh its size.
        """
        if not self.is_alive:
            return "agent_ended"
        if claim.config != self.config or (claim.provisions != self._provisions and not tasks):
            return "reconfigured"
        return "recycled" if self._used_up or (self._turns >= RECYCLE_AFTER_TURNS and not at_work) else None

    def use_up(self) -> None:
        """Let no later turn come into the process: it has spent its budget, knows what it should not, or has left its
        conversation for a new one."""
        self._used_up = True

    def read(self, owner: Owner) -> None:
        """Hand every message to the owner, in order, and say once that they have ended."""

        async def reading() -> None:
            failure: Exception | None = None
            try:
                async for message in self.client.receive_messages():
                    await owner.heard(self, message)
            except Exception as error:  # a dead CLI raises a bare Exception
                failure = error
            by_itself = "owner_lost" if isinstance(failure, LeaseLost | Unavailable) else "agent_ended"
            instruments.agent_ended(self.exceeded or self._why or by_itself)
            await owner.ended(self, failure)

        self._reader = asyncio.create_task(reading(), name=f"read-{self._session_id}")

    async def send(self, message_id: UUID, content: Any, *, expand: bool = False) -> None:
        """Give the agent a user's message, a string or content blocks, under an id of ours.

        `expand`: slash commands and `@file` mentions in it mean something; else it is taken as it is.
        """

        async def prompt() -> AsyncIterator[dict[str, Any]]:
            message = {"role": "user", "content": content}
            yield {
                "type": "user",
                "uuid": str(message_id),
                "message": message,
                "parent_tool_use_id": None,
                "client_composed": not expand,
            }

        async with self._whole(SEND_TIMEOUT):
            await self.client.query(prompt())
        self._turns += 1

    async def interrupt(self, *, drop: bool = False) -> frozenset[str]:
        """Ask the current turn to end; kill the process when it does not take the request.

        `drop`: what it was given for the turn and has not taken is not to become a turn of its own; returns the ids of
        what it has dropped. The SDK's own method cannot say that: hence the private one.
        """
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                if drop:
                    asked = {"subtype": "interrupt", "cancel_queued": True}
                    answer = await self.client._query._send_control_request(asked)  # type: ignore[union-attr]
                    return frozenset(map(str, answer.get("cancelled") or ()))
                await self.client.interrupt()
        except Exception as error:
            log.warning("agent.interrupt_failed", session_id=str(self._session_id), error=error)
            self.kill()
        return frozenset()

    async def change(self, changes: Mapping[str, Any]) -> None:
        """Use another `model` or `permission_mode` from now on. Raises Exception with the CLI's words, TimeoutError."""
        if "model" in changes:
            await self._told(self.client.set_model(changes["model"]))
            self.config = self.config.model_copy(update={"model": changes["model"]})
        if "permission_mode" in changes:
            await self._told(self.client.set_permission_mode(changes["permission_mode"]))
            self.config = self.config.model_copy(update={"permission_mode": changes["permission_mode"]})

    async def context(self) -> dict[str, Any]:
        """How full the context window is, in the SDK's own figures."""
        return dict(await self._told(self.client.get_context_usage()))

    async def mcp_status(self) -> dict[str, Any]:
        """`{"mcp_servers": [...]}`: name, status and tools of each, without what may hold secrets."""
        status = await self._told(self.client.get_mcp_status())
        shown = ("name", "status", "serverInfo", "error", "tools")
        return {"mcp_servers": [{k: v for k, v in s.items() if k in shown} for s in status["mcpServers"]]}

    async def stop_task(self, task_id: str) -> None:
        """End one of its background tasks."""
        await self._told(self.client.stop_task(task_id))

    async def reconnect_mcp_server(self, name: str) -> None:
        """Connect to an MCP server again."""
        await self._told(self.client.reconnect_mcp_server(name))

    async def toggle_mcp_server(self, name: str, enabled: bool) -> None:
        """Let its tools be used, or not."""
        await self._told(self.client.toggle_mcp_server(name, enabled))

    @asynccontextmanager
    async def _whole(self, seconds: float) -> AsyncIterator[None]:
        """For what the agent must do wholly, and not later. Cut off in it, it is killed: else it would go on by itself.

        Raises CLIConnectionError after so many seconds.
        """
        try:
            async with asyncio.timeout(seconds):
                yield
        except asyncio.CancelledError:
            self.kill()
            raise
        except TimeoutError as error:
            self.kill()
            raise CLIConnectionError(f"The agent took no notice for {seconds:.0f} s.") from error

    async def _told(self, telling: Awaitable[T]) -> T:
        # Only a CLI that reads and answers ends what the SDK waits for: a full pipe to one that is stuck never does.
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await telling

    async def rewind(self, message_id: UUID, *, dry_run: bool) -> dict[str, Any]:
        """Restore tracked files as they were before a user's message; with `dry_run` only say what that would change.

        Returns `{"canRewind", "error"?}`, of a dry run also `filesChanged` (absolute paths), `insertions`, `deletions`
        (lines). Raises Exception with the CLI's words. The SDK's own method has no dry run: hence the private one.
        """
        asked = {"subtype": "rewind_files", "user_message_id": str(message_id), "dry_run": dry_run}
        async with self._whole(REWIND_TIMEOUT):
            answer: dict[str, Any] = await self.client._query._send_control_request(asked)  # type: ignore[union-attr]
        return answer

    def kill(self, why: str = "killed") -> None:
        """End the process and all that it started, now. The guard does it when it is told to end.

        The SDK offers no public way to signal the process, and its own close() gives a hung one 10 s. Hence the
        private attributes; the SDK's version is pinned.
        """
        self._killed, self._why, pid = True, self._why or why, self.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGCONT)  # one that was stopped would not hear it

    def exceed(self, code: str) -> None:
        """It has taken more than it may: end it. `code`: the failure of its run."""
        self._exceeded = self._exceeded or code
        self.kill()

    async def _put_down(self, connecting: asyncio.Task[None]) -> None:
        """End a process that has not got as far as to be told to exit."""
        self.kill()
        connecting.cancel()
        await asyncio.wait({connecting}, timeout=2 * STOP_TIMEOUT)
        await self.close("not_started")

    async def close(self, why: str) -> None:
        """Let an idle CLI exit and its transcript be stored; kill one that does not, or when this is cut off.

        `why`: as which its end counts, see `instruments.REASONS`.
        """
        self._why = self._why or why
        if self._reader is None:  # nobody has heard anything of it, or will
            instruments.agent_ended(self.exceeded or why)
        closing = asyncio.create_task(self.client.disconnect(), name=f"disconnect-{self._session_id}")
        try:
            done, _ = await asyncio.wait({closing}, timeout=STOP_TIMEOUT)
        except asyncio.CancelledError:
            self.kill()
            raise
        if not done:
            self.kill()
            await asyncio.wait({closing}, timeout=2 * STOP_TIMEOUT)
        if closing.done() and (error := closing.exception()):
            log.warning("agent.close_failed", session_id=str(self._session_id), error=error)
        reader = self._reader
        if reader is not None and reader is not asyncio.current_task():
            # It ends by itself with the stream. Cancelled in a write, it would leave the writer's position in doubt.
            done, _ = await asyncio.wait({reader}, timeout=STOP_TIMEOUT)
            if not done:
                reader.cancel()
                await asyncio.wait({reader}, timeout=STOP_TIMEOUT)
