"""The benchmark's own pieces. Nothing here looks at a clock: figures are for people to read."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree

import pytest

from apps.api.core.config.agent import AgentConfig
from apps.api.core.sessions import sessions
from apps.api.core.sessions.sessions import Labels
from apps.api.db import Database
from apps.api.settings import Settings
from tests.bench import owner, plots
from tests.bench.__main__ import FULL, QUICK, SECTIONS, arguments
from tests.bench.client import Frames
from tests.bench.owner import Task
from tests.bench.relay import Heard
from tests.bench.report import Report, percentile

SVG = "{http://www.w3.org/2000/svg}"


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, share) for share in (0.5, 0.9, 0.99)] == [51, 91, 100]


def test_the_command_line_knows_every_section() -> None:
    chosen = arguments(["--quick", "--only", *SECTIONS])
    assert (chosen.quick, tuple(chosen.only), chosen.wait, chosen.rounds) == (True, SECTIONS, 20, 1)
    assert arguments([]).rounds == 3
    assert QUICK.words < FULL.words


def test_a_missed_target_is_told_as_missed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = Report()
    report.title("Some section")
    report.head("ms")
    report.row("a series", [1.0, 2.0])
    report.at_most("fast", 3, 2, "ms")
    report.at_least("many", 3, 2, "tx/s")
    report.summary()
    printed = capsys.readouterr().out
    assert "fast: 3 ms (target ≤ 2 ms): NOT MET" in printed
    assert "1 of 2 targets met" in printed
    report.write(tmp_path / "figures.json")
    told = json.loads((tmp_path / "figures.json").read_text())
    assert [(target["name"], target["seen"], target["verdict"]) for target in told["targets"]] == [
        ("fast", [3], "NOT MET"),
        ("many", [3], "met"),
    ]
    assert told["series"] == [{"section": "Some section", "label": "a series", "unit": "ms", "values": [1.0, 2.0]}]


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [([5, 6, 7], "met"), ([13, 14, 12.5], "NOT MET"), ([8, 9, 12], "noisy"), ([9, 11, 13], "noisy"), ([9.9], "met")],
)
def test_what_differs_by_more_than_it_lies_beside_the_target_is_noise(seen: list[float], verdict: str) -> None:
    report = Report()
    for value in seen:
        report.at_most("fast", value, 10, "ms")
        report.at_least("many", 20 - value, 10, "tx/s")
    assert {target.verdict for target in report.targets.values()} == {verdict}


def test_a_frame_that_arrives_in_pieces_counts_once() -> None:
    heard = Heard()
    feed = Frames(heard)
    stream = (
        b'6a\r\nid: 1-1\nevent: partial\ndata: {"t":1}\n\n\r\n2b\r\nid: 2\nevent: message\ndata: {}\n\n\r\n0\r\n\r\n'
    )
    for at in range(0, len(stream), 7):
        feed(stream[at : at + 7])
    assert (len(heard.latency_ms), heard.stored) == (1, 1)


def test_plots_are_the_same_for_the_same_figures_kept_or_fresh(tmp_path: Path) -> None:
    report = Report()
    for _ in range(2):  # rounds
        report.title("First delta & more (cold)")
        report.head("ms")
        report.row("SDK alone", [400.0, 420.0, 500.0])
        report.row("API, <another> instance", [4.0, 5.5, 1_000.0])
        report.row("nothing came", [])
        report.at_most("1 fast", 12, 10, "ms")
        report.at_least("2 many", 3_000, 10, "tx/s")
        report.at_most("3 none lost", 0, 0, "events")
    report.write(tmp_path / "figures.json")
    fresh = plots.write(report, tmp_path / "fresh")
    kept = plots.write(Report.read(tmp_path / "figures.json"), tmp_path / "kept")
    assert [file.name for file in fresh] == ["targets.svg", "cold.svg"]
    assert [file.read_bytes() for file in fresh] == [file.read_bytes() for file in kept]
    told = [{element.text for element in ElementTree.parse(file).iter(f"{SVG}text")} for file in fresh]
    assert {"1 fast", "12 ≤ 10 not met", "3,000 ≥ 10 met", "0 ≤ 0 met"} <= told[0]
    assert {"First delta & more (cold)", "SDK alone", "420", "API, <another> instance", "5.50"} <= told[1]
    assert "nothing came" not in told[1]


@pytest.mark.parametrize("append_only", [False, True])
async def test_the_synthetic_owner_relays_and_stores(settings: Settings, db: Database, append_only: bool) -> None:
    async with db.transaction() as connection:
        tenant = await connection.fetchval("INSERT INTO tenants (name) VALUES ('bench') RETURNING id")
        ids = [await sessions.insert(connection, tenant, AgentConfig(), Labels(), uuid4()) for _ in range(2)]
    task = Task([str(i) for i in ids], rate=500, seconds=0.3, durable_every=20, append_only=append_only)
    async with owner.opened(task, settings) as made:
        done = await made.run()
    stored = await db.pool.fetchval("SELECT count(*) FROM events WHERE session_id = ANY($1::uuid[])", ids)
    assert stored == done.stored > 0
    assert (done.dropped, len(done.append_ms)) == (0, done.stored)
    assert append_only or done.events > done.stored
