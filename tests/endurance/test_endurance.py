"""What the endurance run says of figures, and a minute of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.endurance import plots
from tests.endurance.__main__ import Seen, read, run, tell
from tests.endurance.samples import Samples


def sampled(**series: list[float]) -> Samples:
    count = len(next(iter(series.values())))
    return Samples([5.0 * at for at in range(count)], {name.replace("_of_", " "): v for name, v in series.items()})


@pytest.mark.parametrize(
    ("values", "level"),
    [
        ([10, 90, 100, 101, 99, 100, 108, 107, 109], True),  # within a tenth and its slack
        ([100, 100, 100, 100, 100, 100, 160, 160, 160], False),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], True),  # too little to say anything
        ([100, 200, 300, 400, 500, 600, 700, 800, 900], False),
        ([900, 900, 900, 500, 500, 500, 100, 100, 100], True),
    ],
)
def test_what_grows_in_the_last_third_is_told(
    values: list[float], level: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Seen(1, 1, samples=sampled(memory_of_1=values))
    assert tell(seen) is level
    assert ("GROWS" in capsys.readouterr().out) is not level


def test_what_was_wrong_is_told_though_all_is_level(capsys: pytest.CaptureFixture[str]) -> None:
    assert not tell(Seen(1, 1, wrong=["a gap"], samples=sampled(keys=[1.0, 1.0, 1.0])))
    assert "WRONG a gap" in capsys.readouterr().out


def test_plots_are_the_same_for_the_same_figures_kept_or_fresh(tmp_path: Path) -> None:
    samples = sampled(memory_of_0=[1.0, 5.0, 3.0], memory_of_1=[2.0, 2.0, 2.0], keys=[0.0, 0.0, 0.0])
    (tmp_path / "seen.json").write_text(json.dumps(asdict(Seen(1, 1, samples=samples))))
    files = [tmp_path / "fresh.svg", tmp_path / "kept.svg"]
    for found, file in zip((samples, read(tmp_path / "seen.json").samples), files, strict=True):
        plots.write(found, file)
    drawn = files[0].read_text()
    assert drawn == files[1].read_text()
    assert drawn.count('class="line ') == 2, "what is always nothing is left out"


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_minute_of_it() -> None:
    """Too short for verdicts: that traffic and samples work, and nothing is wrong."""
    seen = await run(1)
    tell(seen)
    assert seen.wrong == []
    assert seen.prompts > 5
    assert len({len(values) for values in seen.samples.series.values()}) == 1
