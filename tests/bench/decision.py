"""From a person's decision to the start of the tool: through the API, and by the SDK's callback in one process."""

from __future__ import annotations

import re
import time

from claude_agent_sdk import PermissionResult, PermissionResultAllow, ResultMessage, ToolPermissionContext

from tests.acceptance.asking import asked, path_of
from tests.bench import sdk
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk
from tests.bench.stage import Stage

COMMAND = "run date +%s%N > started && cat started"
"""The tool says when it started, by the clock that all processes share. Writing a file needs permission."""


def _started(result: str) -> int:
    found = re.search(r"\b\d{19}\b", result)
    if found is None:
        raise RuntimeError(f"the tool did not say when it started: {result[:300]}")
    return int(found[0])


async def _by_callback(driven: Sdk, rounds: int) -> list[float]:
    decided: list[int] = []

    async def can_use_tool(_tool: str, _input: dict[str, object], _context: ToolPermissionContext) -> PermissionResult:
        decided.append(time.time_ns())
        return PermissionResultAllow()

    taken = []
    async with driven.client(can_use_tool=can_use_tool) as client:
        for _ in range(rounds):
            await client.query(sdk.prompt_messages(COMMAND))
            async for message in client.receive_response():
                if isinstance(message, ResultMessage):
                    taken.append((_started(message.result or "") - decided[-1]) / 1e6)
    return taken


async def _by_request(stage: Stage, rounds: int) -> tuple[list[float], list[float]]:
    session_id = await stage.front.session()
    connection = await stage.connect(stage.front)
    taken, answered = [], []
    for _ in range(rounds):
        run_id = await stage.front.prompt(session_id, COMMAND)
        request = await asked(stage.front, run_id)
        decide = connection.prepare("POST", f"/api/v1{path_of(request)}", {"decision": "allow"})
        began = time.time_ns()
        status, body = await connection.send(decide)
        answered.append((time.time_ns() - began) / 1e6)
        if status != 200:
            raise RuntimeError(f"{status}: {body[:300]!r}")
        result = next(e for e in await stage.front.follow(run_id) if e.event == "result")
        taken.append((_started(result.data["result"]) - began) / 1e6)
    connection.close()
    await stage.front.client.delete(f"/api/v1/sessions/{session_id}")
    return taken, answered


async def decisions(stage: Stage, driven: Sdk, report: Report, rounds: int) -> None:
    """Warm agents; the API's client is on a pure API node, the agent on another instance."""
    alone = await _by_callback(driven, rounds)
    through, answered = await _by_request(stage, rounds)
    report.head("from the decision to the start of the tool, ms")
    report.row("SDK alone, can_use_tool in the same process", alone)
    report.row("API, decided on another instance", through)
    report.row("API, until the answer to the decision", answered)
    middle, other = percentile(alone, 0.5), percentile(through, 0.5)
    report.note(f"{other / middle:.2f} × SDK, {other - middle:+.1f} ms (p50)")
