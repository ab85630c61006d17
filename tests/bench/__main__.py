"""`python -m tests.bench`: print this machine's figures beside the targets."""

from __future__ import annotations

import asyncio

import uvloop

from tests.bench import sdk, turns
from tests.bench.report import Report
from tests.bench.stage import AGENTS, opened


async def main() -> None:
    report = Report()
    async with opened() as stage, sdk.opened(stage.settings(AGENTS)) as driven:
        report.title("x")
        await turns.cold(stage, driven, report, 6)
        await turns.warm(stage, driven, report, 40)
    report.summary()


with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
