"""The start of one agent process: its directories, what it is given, the conversation so far, and then the CLI."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog
from claude_agent_sdk import project_key_for_directory

from apps.api.core.context import Core
from apps.api.core.events.log import Event, Writer
from apps.api.core.fleet.claims import Claim
from apps.api.core.sessions import files, workspaces
from apps.api.runner.agent import extensions, history, options
from apps.api.runner.agent.process import Agent, StartFailed
from apps.api.runner.agent.scratch import Place
from apps.api.runner.agent.transcripts import Transcripts
from apps.api.runner.session.conversation import Conversation
from apps.api.runner.session.hooks import Hooks

log = structlog.get_logger(__name__)


async def tell_missing_files(core: Core, store: Transcripts, writer: Writer, claim: Claim) -> None:
    """Say that a session in which an agent has been at work has no files on this host."""
    root = workspaces.root_of(core.settings, claim.session_id)
    if not await asyncio.to_thread(files.is_directory, root) and await store.has_any():
        log.warning("launch.workspace_missing", session_id=str(claim.session_id))
        await writer.append(Event("status", {"status": "workspace_missing"}, claim.run_id))


@dataclass(frozen=True, slots=True)
class Launch:
    """What a process of a session is started with. `place`: fresh directories of that process alone."""

    core: Core
    launcher: Path
    place: Place
    store: Transcripts
    talk: Conversation
    hooks: Hooks

    async def start(self, claim: Claim) -> Agent:
        """Start an agent that knows the conversation so far. Raises StartFailed, LeaseLost, what the
        database raises."""
        settings = self.core.settings
        if not await self.store.exists(self.talk.sdk_session_id):
            self.talk.sdk_session_id = await self.store.begin()
        conversation = self.talk.sdk_session_id
        try:
            wanted = (claim.config.cwd, claim.config.add_dirs)
            workspace = await asyncio.to_thread(workspaces.create, settings, claim.session_id, *wanted)
            config_dir = await asyncio.to_thread(workspaces.point, settings, claim.session_id, self.place.config)
            key = await asyncio.to_thread(project_key_for_directory, workspace.cwd)
            project = self.place.config / "projects" / key
            await asyncio.to_thread(workspaces.link_results, workspace, conversation, project)
            resume = await history.write(self.store, conversation, project)
        except (OSError, ValueError) as error:
            raise StartFailed(f"no workspace: {error}") from error
        given = await extensions.prepare(self.core, claim, self.place.given)
        allowed = [*await self.talk.approvals.recall(claim.profile), *options.own_outputs(config_dir, workspace)]
        permissions = await asyncio.to_thread(
            extensions.write_permissions, self.place.given / "permissions.json", claim.config, allowed
        )
        await self.store.adopt(conversation, key)
        process = options.Process(
            workspace=workspace,
            extensions=given,
            place=self.place,
            config_dir=config_dir,
            launcher=self.launcher,
            store=self.store,
            sdk_session_id=conversation,
            resume=resume,
            hooks=self.hooks.matchers(claim.config),
            can_use_tool=self.talk.approvals.can_use_tool,
            permissions=permissions,
            profile=claim.profile,
        )
        built = options.build(settings, claim.config, process)
        try:
            options.check_size(built)
            return await Agent.start(claim.session_id, built, process.stderr, claim.timeout_seconds)
        finally:
            await asyncio.to_thread(given.forget_secrets)
