"""The start of an agent process: its directories, what it is given, the conversation so far, and then the CLI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from claude_agent_sdk import project_key_for_directory

from apps.api import instruments, tracing
from apps.api.core.config import client_tools
from apps.api.core.config.rules import Rule
from apps.api.core.context import Core
from apps.api.core.events.batches import Batches
from apps.api.core.events.log import Event, Writer
from apps.api.core.files import trees
from apps.api.core.fleet import ownership
from apps.api.core.fleet.claims import Claim
from apps.api.core.lease import Lease
from apps.api.core.sessions import workspaces
from apps.api.core.sessions.outcome import failure
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.db import CONNECTION_ERRORS
from apps.api.errors import LeaseLost
from apps.api.runner.agent import dangling, extensions, history, messages, options
from apps.api.runner.agent.process import Agent, CannotStart, Exceeded, StartFailed
from apps.api.runner.agent.scratch import Place
from apps.api.runner.egress.proxy import Local, Reason
from apps.api.runner.host import Host
from apps.api.runner.session.approvals import Approvals
from apps.api.runner.session.client_tools import server
from apps.api.runner.session.hooks import Hooks
from apps.api.runner.session.provisions import NotProvided, Provisions
from apps.api.runner.session.storing import Storing
from apps.api.runner.session.turn import Turn, Turns
from apps.api.runner.session.ways import Access, Ways

log = structlog.get_logger(__name__)

HOLD_SECONDS = 5.0
"""A start takes a core for about a second. One that has not ended by then waits for something, and needs no core."""


class StartGate:
    """How many agents start on this instance at a time, so that each start gets a core.

    Attributes:
        waiting: starts that wait for a place.
    """

    def __init__(self, places: int, moved: Callable[[], None], seconds: float = HOLD_SECONDS) -> None:
        """`moved` is called when it is crowded no more."""
        self._places, self._moved, self._seconds = places, moved, seconds
        self._free = asyncio.Semaphore(places)
        self.waiting = 0

    @property
    def is_crowded(self) -> bool:
        """Whether as many wait as have a place: one more start is better begun elsewhere, or later."""
        return self.waiting >= self._places

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place. After HOLD_SECONDS it is given to another."""
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._seconds, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            was_crowded = self.is_crowded
            self.waiting -= 1
            if was_crowded:
                self._moved()


@dataclass(frozen=True, slots=True)
class Means:
    """What all sessions of an instance are executed with."""

    lease: Lease
    host: Host
    gate: StartGate
    ways: Ways
    batches: Batches


class Launch:
    """What the processes of a session are started with, one after the other.

    Attributes:
        provisions: what the session's workspace is given.
        starting: the agent that is being started.
    """

    def __init__(
        self,
        core: Core,
        means: Means,
        turns: Turns,
        writer: Writer,
        store: Transcripts,
        storing: Storing,
        approvals: Approvals,
        hooks: Hooks,
        local: Local,
        denied: Callable[[str, int, Reason], None],
    ) -> None:
        """`local`, `denied`: see `egress.proxy.Member`."""
        self._core, self._turns, self._writer = core, turns, writer
        self._lease, self._host, self._gate, self._ways = means.lease, means.host, means.gate, means.ways
        self._scratch = means.host.scratch
        self._store, self._storing, self._approvals, self._hooks = store, storing, approvals, hooks
        self._place: Place | None = None
        self._access: Access | None = None
        self._local, self._denied = local, denied
        self.provisions = Provisions(core, writer, storing)
        self.starting: Agent | None = None
        self._ahead: Agent | None = None

    async def begin_ahead(self, claim: Claim) -> None:
        """Start the first agent of a session that is not there yet. Nothing of it is stored.

        Raises StartFailed, OSError, CONNECTION_ERRORS.
        """
        # What starts with the agent works for this session, and the loop that starts it goes on with others.
        async with self._gate.place():
            with tracing.working_on(self._turns):
                await self._begin_ahead(claim)

    async def _begin_ahead(self, claim: Claim) -> None:
        began = time.monotonic()
        self._place = await self._core.blocking.starts.run(self._scratch.make)
        self._ahead = await self._process(claim, self._place, ahead=True)
        instruments.STARTED_AHEAD.observe(time.monotonic() - began)

    @property
    def waits(self) -> bool:
        """Whether an agent that was started ahead is there, and lives."""
        return self._ahead is not None and self._ahead.is_alive

    async def end_ahead(self) -> None:
        """End what `begin_ahead` has started, if it is still there."""
        agent, self._ahead = self._ahead, None
        if agent is not None:
            await agent.close("unused")
        self.clear()

    async def start(self, claim: Claim, turn: Turn) -> Agent:
        """Start an agent that knows the conversation so far, in a workspace with what it is given; or take the one that
        was started ahead, if it is fit.

        What fails for the host's reasons goes back to the queue, with the session.

        Raises:
            NotProvided, StartFailed, LeaseLost, Unavailable.
        """
        if self._ahead is not None and (self._ahead.unfit(claim, tasks=False, at_work=False) or claim.parked):
            await self.end_ahead()
        if not turn.lost and self._ahead is None:
            await self.note_sent(turn, False)
        try:
            agent = await self._join(claim) if self._ahead else await self._start(claim)
        except CONNECTION_ERRORS as error:
            failed, code, words = error, "storage_failed", ""
        except (StartFailed, NotProvided, OSError) as error:
            if isinstance(error, CannotStart | Exceeded) or not await self._host.is_to_blame(error):
                raise
            self._host.has_failed()
            failed, code, words = error, "agent_start_failed", "The host could not start an agent."
        else:
            self._host.has_started()
            return agent
        turn.end()
        log.error("launch.given_back", session_id=str(claim.session_id), detail=failed)
        await self._give_back(failure(code, words))
        raise LeaseLost(f"session {claim.session_id}: given back, since no agent started here")

    async def note_sent(self, turn: Turn, sent: bool) -> None:
        """Note that the turn's prompt is about to be sent, or that there is no agent that could have it.

        Raises LeaseLost, Unavailable.
        """
        if turn.claim is None or turn.unsent is not sent:
            return
        db, session_id, generation = self._core.db, self._writer.session_id, self._writer.generation
        await self._writer.repeat(lambda: ownership.note_sent(db, session_id, generation, turn.run_id, sent))
        turn.unsent = not sent

    async def _give_back(self, error: Mapping[str, Any]) -> None:
        """Give the session back with its run, which no agent was given. Raises LeaseLost, Unavailable."""
        core, session_id, generation = self._core, self._writer.session_id, self._writer.generation
        orphan = await self._writer.repeat(
            lambda: ownership.disown(core.db, self._lease.instance_id, session_id, generation, error)
        )
        if orphan is not None:
            ownership.announce(core, orphan)

    async def _join(self, claim: Claim) -> Agent:
        """The agent that was started ahead, in a session that is new."""
        await self._storing.bring(claim.run_id)
        await self.provisions.add(claim)
        agent, self._ahead = self._ahead, None
        assert agent is not None  # noqa: S101 - for the type checker
        return agent

    async def _start(self, claim: Claim) -> Agent:
        is_new = False
        if not await self._storing.bring(claim.run_id):
            await self._tell_missing_files(claim)
            is_new = claim.config.resources is not None and not await self._store.has_any()
        await self.provisions.begin(claim, is_new=is_new)
        await self.provisions.add(claim)
        async with self._gate.place():
            self.clear()  # of one that did not start
            began = time.monotonic()
            self._place = await self._core.blocking.starts.run(self._scratch.make)
            agent = await self._process(claim, self._place)
            instruments.STARTED.observe(time.monotonic() - began)
            return agent

    def clear(self) -> None:
        """Take back what the process alone was given: it has ended, or was not started."""
        if self._access is not None:
            self._access.end()
            self._access = None
        if self._place is not None:
            self._scratch.forget(self._place)
            self._place = None

    def expect(self) -> None:
        """The process has a prompt, and will ask the model soon."""
        if self._access is not None and not self._core.settings.agents_hold_the_credential:
            self._access.expect()

    def settle(self, told: float) -> None:
        """The process has told what its turn cost: see whether the gateway has counted the same."""
        if self._access is not None and not self._core.settings.agents_hold_the_credential:
            self._access.settle(told)

    async def _tell_missing_files(self, claim: Claim) -> None:
        """Say that a session in which an agent has been at work has no files on this host."""
        root = workspaces.root_of(self._core.settings, claim.session_id)
        if not await self._core.blocking.starts.run(trees.is_directory, root) and await self._store.has_any():
            log.warning("launch.workspace_missing", session_id=str(claim.session_id))
            await self._writer.append(Event("status", {"status": "workspace_missing"}, claim.run_id))

    async def _waiting_call(self, claim: Claim, key: str) -> dangling.Dangling | None:
        """The call that a parked run goes on with. Calls that can go on no more get a result. Raises CannotStart."""
        if claim.parked is None:
            return None
        call = await dangling.find(self._store, claim.parked.tool_use_id)
        if call is None:
            raise CannotStart("The tool call that was waited for is not in the conversation any more.")
        if call.others:
            told = [event for message in call.messages() for event in messages.events(message, claim.run_id)]
            await self._store.append({"project_key": key, "session_id": str(self._store.conversation)}, call.refusals())
            await self._writer.append(*told)
        await self._approvals.take_up(claim.parked)
        return call

    async def _process(self, claim: Claim, place: Place, *, ahead: bool = False) -> Agent:
        """`ahead`: of a session that is not there, and whose first conversation this is."""
        settings, starts = self._core.settings, self._core.blocking.starts
        self._access = access = await self._ways.admit(claim, self._turns, self._local, self._denied)
        if not ahead and not await self._store.exists(self._store.conversation):
            await self._store.begin()
        conversation = self._store.conversation
        try:
            wanted = (claim.config.cwd, claim.config.add_dirs)
            workspace = await starts.run(workspaces.create, settings, claim.session_id, *wanted)
            config_dir = await starts.run(workspaces.point, settings, claim.session_id, place.config)
            key = await starts.run(project_key_for_directory, workspace.cwd)
            project = place.config / "projects" / key
            await starts.run(workspaces.link_results, workspace, conversation, project)
            call = await self._waiting_call(claim, key)
            resume = await history.write(self._store, conversation, project, call.deferral() if call else None)
        except CONNECTION_ERRORS:
            raise
        except (OSError, ValueError) as error:
            raise StartFailed(f"no workspace: {error}") from error
        if any(server.type in ("stdio", "registered") for server in claim.config.servers().values()):
            self._storing.may_change()
        given = await extensions.prepare(self._core, claim, place.given)
        allowed = [*await self._approvals.recall(claim.profile), *options.own_outputs(config_dir, workspace)]
        allowed += [Rule(client_tools.full_name(tool.name)) for tool in claim.config.client_tools or ()]
        write = partial(extensions.write_permissions, hosts_are_listed=access.network.mode == "limited")
        permissions = await starts.run(
            write,
            place.given / "permissions.json",
            claim.config,
            allowed,
            dangling.asking_hook(call.call["id"]) if call else None,
        )
        await self._store.adopt(conversation, key)
        process = options.Process(
            workspace=workspace,
            extensions=given,
            place=place,
            config_dir=config_dir,
            launcher=self._scratch.launcher,
            lease=self._scratch.lease.path,
            store=self._store,
            sdk_session_id=conversation,
            resume=resume,
            hooks=self._hooks.matchers(claim.config),
            can_use_tool=self._approvals.can_use_tool,
            client_tools=server(claim.config.client_tools or (), self._approvals),
            permissions=permissions,
            profile=claim.profile,
            model=access.env,
            network=access.network,
        )
        built = options.build(settings, options.left_of(claim), process)
        try:
            options.check_size(built)
            return await Agent.start(claim, built, process.stderr, self._begun)
        finally:
            self.starting = None
            await starts.run(given.forget_secrets)

    def _begun(self, agent: Agent) -> None:
        self.starting = agent
        agent.group = self._place.group if self._place else None
