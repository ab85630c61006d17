"""The layers of isolation that this machine has, for tests that go through them."""

from __future__ import annotations

import subprocess

import pytest

from apps.api.runner.guard.launcher import bubblewrap, landlock_abi


def namespaces_work() -> bool:
    """Whether bubblewrap does, as this user."""
    program = bubblewrap()
    return program is not None and not subprocess.call([program, "--ro-bind", "/", "/", "--unshare-pid", "true"])


WITH_LANDLOCK = pytest.param("landlock", marks=pytest.mark.skipif(not landlock_abi(), reason="needs Landlock"))
WITH_NAMESPACES = pytest.param(
    "namespaces",
    marks=pytest.mark.skipif(not (landlock_abi() and namespaces_work()), reason="needs Landlock and bubblewrap"),
)
ISOLATED = [WITH_LANDLOCK, WITH_NAMESPACES]
"""To be parameters of a test."""
