"""`python -m tests.mutants`: make each deliberate defect in a copy of the repository, and see that its test fails."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.defects import DEFECTS, Defect

ROOT = Path(__file__).parents[2]
COPIED = ("apps", "migrations", "tests", "specs", "docs", "alembic.ini", "pyproject.toml")
_PYTEST = ("pytest", "-q", "-x", "-p", "no:cacheprovider")
SECONDS, FAULTS_SECONDS = 300.0, 900.0
"""For the tests of one defect, and for faults. A defect that makes them hang is caught as well."""

FAILED = 1
"""The exit code of pytest when tests failed, and nothing else went wrong; that of `scripts/faults` with violations."""


def tried(copy: Path, defect: Defect, *, by_faults: bool) -> str:
    """What came of a defect: `caught`, `SURVIVED`, or why its tests did not run."""
    file = copy / defect.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(defect.before, defect.after), encoding="utf-8")
    # No bytecode: two versions of a file may have the same size, and the same second.
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["tests.faults", *shlex.split(defect.faults)] if by_faults else [*_PYTEST, *defect.caught_by]
    seconds = FAULTS_SECONDS if by_faults else SECONDS
    try:
        words = [sys.executable, "-m", *words]
        done = subprocess.run(words, cwd=copy, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "caught: they do not end"
    finally:
        file.write_text(whole, encoding="utf-8")
    found = [line.strip() for line in done.stdout.splitlines() if "VIOLATION" in line]
    if done.returncode == FAILED and (found or not by_faults):
        return f"caught ({len(found)} {found[0][:200]})" if found else "caught"
    return "SURVIVED" if done.returncode == 0 else f"not tried: {(done.stdout + done.stderr)[-500:]}"


def main() -> None:
    """Try all, or those whose description has a word; the exit status is 1 when one was not caught."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("word", nargs="?", default="", help="try only those whose description has this word")
    parser.add_argument("--faults", action="store_true", help="try those that `scripts/faults` finds, by that")
    asked = parser.parse_args()
    named = [defect for defect in DEFECTS if asked.word in defect.breaks]
    chosen = [defect for defect in named if (defect.faults if asked.faults else defect.caught_by)]
    caught = 0
    with tempfile.TemporaryDirectory() as made:
        copy = Path(made)
        for name in COPIED:
            if (source := ROOT / name).is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / name)
        for number, defect in enumerate(chosen, start=1):
            began = time.monotonic()
            came = tried(copy, defect, by_faults=asked.faults)
            caught += came.startswith("caught")
            print(f"{number:3} of {len(chosen)}  {came}  {time.monotonic() - began:.0f} s  {defect.breaks}", flush=True)
    print(f"{caught} of {len(chosen)} caught")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
