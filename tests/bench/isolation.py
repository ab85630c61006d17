"""What isolation costs at the start of an agent: the plain process beside each layer, by turns in one run."""

from __future__ import annotations

import time

from apps.api.runner.guard import trial
from apps.api.runner.guard.launcher import LAYERS
from apps.api.settings import Layer
from tests.bench import sdk
from tests.bench.report import Report, percentile
from tests.bench.sdk import Sdk
from tests.bench.turns import PROMPT

TARGET = 1.15


async def starts(driven: Sdk, report: Report, rounds: int) -> None:
    """First deltas of new CLIs, `rounds` of each kind."""
    found = await trial.strongest(driven.settings.model_copy(update={"agent_isolation": "auto"}))
    layers: tuple[Layer | None, ...] = (None, *LAYERS[: LAYERS.index(found.layer) + 1])
    taken: dict[Layer | None, list[float]] = {layer: [] for layer in layers}
    for _ in range(rounds):
        for layer in layers:
            began = time.monotonic()
            async with driven.client(layer=layer) as client:
                taken[layer].append((await sdk.timed(client, PROMPT, began)).first_delta * 1000)
    report.head("first delta of a new process, ms")
    names = {None: "the plain process, without a guard", "off": "with the guard, AGENT_ISOLATION=off"}
    for layer in layers:
        report.row(names.get(layer, f"AGENT_ISOLATION={layer}"), taken[layer])
    for layer, why in found.lacking.items():
        report.note(f"no {layer} here: {why}")
    middle = {layer: percentile(values, 0.5) for layer, values in taken.items()}
    report.at_most(f"{found.layer}, first delta", middle[found.layer] / middle[None], TARGET, "× plain (p50)")
