"""The official `openai` client for Node, unmodified, against three instances behind a round-robin balancer."""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.balancer import balancing
from tests.clients.test_openai import MODEL, SAID
from tests.fleet import API_KEY, Fleet

FOLDER = Path(__file__).parent / "openai_node"
SECONDS = 150


@cache
def missing() -> str:
    """Why the package is not there, after one attempt to install what the lock file names."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return "node and npm are not installed"
    command = ["npm", "ci", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1"]
    with (FOLDER / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        note = FOLDER / "node_modules/.package-lock.json"
        if note.exists() and note.stat().st_mtime >= (FOLDER / "package-lock.json").stat().st_mtime:
            return ""
        try:
            made = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return "npm got no answer"
    return f"npm has not installed it: {made.stderr[-300:]}" if made.returncode else ""


async def test_what_the_examples_of_its_vendor_do(fleet: Fleet) -> None:
    if why := await asyncio.to_thread(missing):
        pytest.skip(why)
    async with balancing(fleet.instances) as balancer:
        url = f"{balancer.url}/compat/openai/v1"
        process = await asyncio.create_subprocess_exec(
            *("node", "drive.mjs", url, API_KEY), cwd=FOLDER, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        told, wrong = await process.communicate()
    assert process.returncode == 0, wrong.decode()
    seen = json.loads(told)
    assert MODEL in seen["models"]
    assert seen["chat"] == f"{SAID}hello"
    assert seen["streamed"].split()[-1] == seen["response"].split()[-1] == "word5"
    assert seen["tools"].endswith("the tool answered: 4 kg")
    assert seen["numbers"] == list(range(len(seen["numbers"])))
    assert (seen["queued"], seen["cancelled"]) == ("queued", "cancelled")
    assert "my name is Ada" in seen["conversation"]
    assert seen["error"] == [400, "temperature", "unsupported_parameter", "string"]
