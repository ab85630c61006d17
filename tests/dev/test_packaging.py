"""The package: what an operator installs works without the checkout that it was built from."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.dev_process import OURS, ROOT, Dev, real_uv

pytestmark = pytest.mark.slow

BOUND = 150
"""Seconds for one step, on a busy machine too."""


def ran(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in (*OURS, "PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=BOUND)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_in_an_empty_environment_runs_everything(tmp_path: Path) -> None:
    uv, place = real_uv(), tmp_path / "venv"
    ran(uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, ROOT, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    ran(uv, "venv", "--quiet", place, cwd=tmp_path)
    locked = ran(uv, "export", "--quiet", "--frozen", "--no-dev", "--extra", "local", "--no-emit-project", cwd=ROOT)
    (tmp_path / "locked.txt").write_text(locked)
    ran(uv, "pip", "install", "--quiet", "--python", place, "-r", "locked.txt", cwd=tmp_path)
    ran(uv, "pip", "install", "--quiet", "--python", place, "--no-deps", wheel, cwd=tmp_path)
    program = place / "bin" / "claude-agent-api"
    assert ran(program, "--version", cwd=tmp_path).strip() in wheel.name

    dev = Dev(tmp_path, installed=program)
    try:
        [row] = dev.ready()
        asked = Request(f"{row['url']}/api/v1/sessions", headers={"X-API-Key": dev.key()})
        with urlopen(asked, timeout=BOUND) as answer:
            assert answer.status == 200
    finally:
        dev.process.terminate()
    assert dev.exit_code() == 0
    shutil.rmtree(place)  # pytest keeps the rest for a while
