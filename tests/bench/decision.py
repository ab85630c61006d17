"""From a person's decision to the start of the tool: through the API, and by the SDK's callback in one process."""

from __future__ import annotations

import re
import time

from claude_agent_sdk import (
    ClaudeSDKClient,
    PermissionResult,
    PermissionResultAllow,
    ResultMessage,
    ToolPermissionContext,
)

from tests.acceptance.asking import asked, path_of
from tests.bench import sdk
from tests.bench.client import Connection
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk
from tests.bench.stage import Stage
from tests.fleet import Instance

COMMAND = "run date +%s%N > started && cat started"
"""The tool says when it started, by the clock that all processes share. Writing a file needs permission."""


def _started(result: str) -> int:
    found = re.search(r"\b\d{19}\b", result)
    if found is None:
        raise RuntimeError(f"the tool did not say when it started: {result[:300]}")
    return int(found[0])


class _Asked:
    """The same decision on both sides by turns: by the SDK's callback, and by a request.

    Attributes:
        alone, through: milliseconds from the decision to the start of the tool.
        answered: milliseconds until the request that decides has its answer.
    """

    def __init__(self) -> None:
        self._decided = 0
        self.alone: list[float] = []
        self.through: list[float] = []
        self.answered: list[float] = []

    async def can_use_tool(
        self, _tool: str, _input: dict[str, object], _context: ToolPermissionContext
    ) -> PermissionResult:
        self._decided = time.time_ns()
        return PermissionResultAllow()

    async def by_callback(self, client: ClaudeSDKClient) -> None:
        await client.query(sdk.prompt_messages(COMMAND))
        async for message in client.receive_response():
            if isinstance(message, ResultMessage):
                self.alone.append((_started(message.result or "") - self._decided) / 1e6)

    async def by_request(self, front: Instance, session_id: str, connection: Connection) -> None:
        run_id = await front.prompt(session_id, COMMAND)
        request = await asked(front, run_id)
        decide = connection.prepare("POST", f"/api/v1{path_of(request)}", {"decision": "allow"})
        began = time.time_ns()
        status, body = await connection.send(decide)
        self.answered.append((time.time_ns() - began) / 1e6)
        if status != 200:
            raise RuntimeError(f"{status}: {body[:300]!r}")
        result = next(e for e in await front.follow(run_id) if e.event == "result")
        self.through.append((_started(result.data["result"]) - began) / 1e6)


async def decisions(stage: Stage, driven: Sdk, report: Report, rounds: int) -> None:
    """Warm agents; the API's client is on a pure API node, the agent on another instance."""
    seen, session_id = _Asked(), await stage.front.session()
    connection = await stage.connect(stage.front)
    async with driven.client(can_use_tool=seen.can_use_tool) as client:
        for _ in range(rounds):
            await seen.by_callback(client)
            await seen.by_request(stage.front, session_id, connection)
    connection.close()
    await stage.front.client.delete(f"/api/v1/sessions/{session_id}")
    report.head("from the decision to the start of the tool, ms")
    report.row("SDK alone, can_use_tool in the same process", seen.alone)
    report.row("API, decided on another instance", seen.through)
    report.row("API, until the answer to the decision", seen.answered)
    middle, other = percentile(seen.alone, 0.5), percentile(seen.through, 0.5)
    report.note(f"{other - middle:+.1f} ms (p50)")
    report.at_most("decision to tool, other instance", other / middle, 1.3, "× SDK (p50)")
