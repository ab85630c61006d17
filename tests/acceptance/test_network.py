"""What agents reach: the attacks of `in_own_network.py`, and a host that cannot keep what a profile says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apps.api.runner.guard import isolation
from tests import own_network
from tests.conftest import StartFleet
from tests.old_kernel import LANDLOCK_CREATE_RULESET

ROOT = Path(__file__).parents[2]
BYPASS = {"permission_mode": "bypassPermissions"}
ATTACKS = Path(__file__).with_name("in_own_network.py")

RUN_WITHOUT = """
import os, sys
from tests.old_kernel import without
without(int(sys.argv[1]))()
os.execvp(sys.argv[2], sys.argv[2:])
"""
WITHOUT_LANDLOCK = (sys.executable, "-c", RUN_WITHOUT, str(LANDLOCK_CREATE_RULESET))


@pytest.mark.skipif(isolation.network_lacks() is not None, reason="this machine cannot limit what agents reach")
@pytest.mark.timeout(400)
def test_no_attack_leads_past_what_a_session_may_reach(tmp_path: Path) -> None:
    if subprocess.call([*own_network.COMMAND, "true"]):
        pytest.skip("needs network and mount namespaces")
    inside = [*own_network.COMMAND, sys.executable, own_network.__file__, str(tmp_path / "hosts")]
    tests = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(ATTACKS)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run([*inside, *tests], cwd=ROOT, env=env, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stdout[-20_000:]


async def test_a_host_that_cannot_keep_what_a_profile_says_runs_none_of_its_sessions(
    start_fleet: StartFleet, tmp_path: Path
) -> None:
    """Others reach what the host does, and operators are told."""
    (tmp_path / "profiles.toml").write_text(
        '[limited]\ndescription = "d"\nnetwork = "limited"\nallowed_hosts = ["example.org"]\n'
        '[open]\ndescription = "d"\nnetwork = "open"\n'
    )
    fleet = await start_fleet(0, PROFILES_FILE=str(tmp_path / "profiles.toml"), DEBUG="true")
    fleet.prefix = WITHOUT_LANDLOCK
    await fleet.start(1)

    async def run(profile: str) -> dict[str, Any]:
        answer = await fleet[0].post("/query/single", {"prompt": "run env", "profile": profile, **BYPASS})
        return dict(answer.json())

    refused = await run("limited")
    assert refused["error"]["code"] == "agent_start_failed"
    assert "limited, cannot be kept on this host: there is no Landlock (Linux 6.7" in refused["error"]["message"]
    went = await run("open")
    assert went["status"] == "succeeded"
    assert "HTTPS_PROXY=http://agent" not in went["result"]
    [told] = [w for w in (await fleet[0].client.get("/api/v1/health")).json()["warnings"] if "no Landlock" in w]
    assert "reach whatever this host does" in told


async def test_direct_agents_reach_what_the_host_does(start_fleet: StartFleet) -> None:
    fleet = await start_fleet(1, AGENT_NETWORK="direct", HTTPS_PROXY="http://127.0.0.1:9")
    session_id = await fleet[0].session(**BYPASS)
    said = (await fleet[0].ask(session_id, f"run env; curl -s {fleet[0].url}/health/live"))["result"]
    assert "HTTPS_PROXY=http://127.0.0.1:9" in said
    [told] = [w for w in (await fleet[0].client.get("/api/v1/health")).json()["warnings"] if "AGENT_NETWORK" in w]
    assert told.startswith("AGENT_NETWORK=direct: ")
