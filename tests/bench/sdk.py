"""The other side of every comparison: the Claude Agent SDK, driven directly, with the service's own CLI options.

Where it differs: no guard process around the CLI (unless asked for), the CLI inherits this process's environment, and
the transcripts go to the SDK's in-memory store instead of PostgreSQL. All three are in favour of the SDK.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

from claude_agent_sdk import (
    CanUseTool,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    InMemorySessionStore,
    PermissionResult,
    PermissionResultAllow,
    ResultMessage,
    StreamEvent,
    ToolPermissionContext,
)

from apps.api.core.config.agent import AgentConfig
from apps.api.core.sessions import workspaces
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.runner.agent import options
from apps.api.runner.agent.extensions import Extensions, write_permissions
from apps.api.runner.agent.scratch import Scratch
from apps.api.runner.guard.launcher import bundled_cli
from apps.api.settings import Layer, Settings


async def _allow(_tool: str, _input: dict[str, Any], _context: ToolPermissionContext) -> PermissionResult:
    return PermissionResultAllow()


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds from the prompt to its first text delta and to its result."""

    first_delta: float
    result: float


@dataclass
class Sdk:
    """Makes clients of the SDK. Use `opened()`."""

    settings: Settings
    scratch: Scratch
    token: str = "none"
    store: InMemorySessionStore = field(default_factory=InMemorySessionStore)

    def options(
        self, session_id: UUID, *, resume: bool = False, layer: Layer | None = None, can_use_tool: CanUseTool = _allow
    ) -> ClaudeAgentOptions:
        """Built by the service's own code, then stripped of the guard, unless there is to be one with this layer."""
        place = self.scratch.make()
        process = options.Process(
            workspace=workspaces.create(self.settings, session_id, None),
            place=place,
            config_dir=place.config,
            launcher=self.scratch.launcher,
            lease=None,
            store=cast(Transcripts, self.store),
            sdk_session_id=session_id,
            resume=False,
            extensions=Extensions(None, None),
            hooks=None,
            can_use_tool=can_use_tool,
            permissions=write_permissions(place.given / "permissions.json", AgentConfig(), ()),
            profile=None,
            model=options.to_the_model(self.settings, self.settings.anthropic_base_url or "", self.token),
        )
        settings = self.settings.model_copy(update={"agent_isolation": layer or "off"})
        built = options.build(settings, AgentConfig(), process)
        if resume:  # from a store in memory, by the SDK's own means
            built = replace(built, resume=str(session_id), session_id=None)
        if layer:
            return built
        env = {name: value for name, value in built.env.items() if not name.startswith("CLI_GUARD_")}
        return replace(built, cli_path=bundled_cli(), env=env)

    @asynccontextmanager
    async def client(self, session_id: UUID | None = None, **how: Any) -> AsyncIterator[ClaudeSDKClient]:
        """A connected client."""
        async with ClaudeSDKClient(self.options(session_id or uuid4(), **how)) as client:
            yield client


@asynccontextmanager
async def opened(settings: Settings, directory: Path) -> AsyncIterator[Sdk]:
    """The SDK with a scratch directory that is removed at the end. `directory`: for workspaces, which no instance must
    take for those of sessions that are gone."""
    scratch = Scratch()
    try:
        yield Sdk(settings.model_copy(update={"workspaces_dir": directory}), scratch)
    finally:
        scratch.close()


def delta_of(message: object) -> str | None:
    """The text of a message that is a text delta."""
    if not isinstance(message, StreamEvent) or message.event.get("type") != "content_block_delta":
        return None
    text = message.event["delta"].get("text")
    return text if isinstance(text, str) else None


async def prompt_messages(prompt: str) -> AsyncIterator[dict[str, Any]]:
    """A prompt, as the service sends it."""
    message = {"role": "user", "content": prompt}
    yield {"type": "user", "uuid": str(uuid4()), "message": message, "parent_tool_use_id": None}


async def ask(client: ClaudeSDKClient, prompt: str, heard: Callable[[str], None]) -> None:
    """One turn; `heard` gets each text delta."""
    await client.query(prompt_messages(prompt))
    async for message in client.receive_messages():
        text = delta_of(message)
        if text is not None:
            heard(text)
        elif isinstance(message, ResultMessage):
            if message.is_error:
                raise RuntimeError(f"the turn failed: {message.result}")
            return


async def timed(client: ClaudeSDKClient, prompt: str, started: float | None = None) -> Turn:
    """One turn, timed from `started` (monotonic seconds; now, unless given)."""
    began = time.monotonic() if started is None else started
    first: list[float] = []

    def heard(_text: str) -> None:
        if not first:
            first.append(time.monotonic() - began)

    await ask(client, prompt, heard)
    return Turn(first[0], time.monotonic() - began)
