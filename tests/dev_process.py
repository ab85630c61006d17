"""`claude-agent-api dev` as a process of a test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.free_ports import free_ports

ROOT = Path(__file__).parents[1]
BOUND = 90
"""Seconds in which anything here happens, on a busy machine too."""

OURS = ("API_KEY", "ENCRYPTION_KEYS", "DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "REDIS_KEY_PREFIX",
        "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "CLAUDE_CODE_OAUTH_TOKEN", "WORKSPACES_DIR", "DEBUG", "HOST", "PORT",
        "CALLER_DIR")  # fmt: skip


class Dev:
    """A `dev` process, its directory and what it has started."""

    def __init__(
        self, directory: Path, *arguments: str, instances: int = 1, installed: Path | None = None, **environment: str
    ) -> None:
        """`installed`: the program of an installation, instead of this checkout's."""
        self.data = directory / ".data"
        self.port = free_ports(instances)
        self.output = directory / f"terminal-{time.monotonic_ns()}"
        command = [str(installed)] if installed else [sys.executable, "-m", "apps.api.cli"]
        command += ["dev", "--data-dir", str(self.data)]
        command += ["--port", str(self.port), "--instances", str(instances), *arguments]
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        environment |= {} if installed else {"PYTHONPATH": str(ROOT)}
        with self.output.open("w") as output:
            # Its own directory, so that no `.env` of a developer takes part.
            self.process = psutil.Popen(
                command,
                cwd=directory,
                env={**clean, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> list[dict[str, Any]]:
        """The rows of instances.json, once `dev` has written it."""
        deadline = time.monotonic() + BOUND
        while "Ctrl-C stops everything" not in self.said():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return self.instances()

    def instances(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.data / "instances.json").read_text())
        return rows

    def said(self) -> str:
        return self.output.read_text()

    def exit_code(self) -> int:
        code: int = self.process.wait(BOUND)
        return code

    def children(self, name: str = "") -> list[psutil.Process]:
        return [child for child in self.process.children(recursive=True) if name in command_line(child)]

    def key(self) -> str:
        return (self.data / "api-key").read_text().strip()


def real_uv() -> str:
    """The uv that runs these tests."""
    found = shutil.which("uv") or str(ROOT / ".uv/venv/bin/uv")
    if not os.access(found, os.X_OK):
        pytest.skip("needs uv")
    return found


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or " "
    except psutil.Error:
        return ""
