"""The table of deliberate defects goes with the code: each can be made, and what catches it is there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.faults.__main__ import arguments
from tests.faults.faults import FAULTS
from tests.mutants.defects import DEFECTS, Defect

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.breaks)
def test_each_can_be_made_and_what_catches_it_is_there(defect: Defect) -> None:
    assert (ROOT / defect.file).read_text(encoding="utf-8").count(defect.before) == 1
    assert defect.after != defect.before
    assert defect.caught_by or defect.faults
    parsed = arguments().parse_args(shlex.split(defect.faults))
    assert all(any(name.startswith(given) for name, _, _ in FAULTS) for given in parsed.only)
    for test in defect.caught_by:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(encoding="utf-8")


def test_each_is_in_the_docs() -> None:
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    rows = [f"| {d.breaks} | {d.shown} |" for d in DEFECTS]
    missing = [row for row in rows if row not in page]
    assert not missing, "\n".join(rows)
