"""An agent's Bash looks at its environment, at processes and at every file that it can read: it finds no secret that
outlives its process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest

from tests.hostile import hunting
from tests.hostile.arena import Arena, command
from tests.hostile.conftest import in_arenas

HUNTING = Path(hunting.__file__)
UNCONFINED = {
    "root": {"DATABASE_URL", "REDIS_URL", "ENCRYPTION_KEYS", "API_KEY", "ANTHROPIC_API_KEY", "a file", "a prompt"},
    "ordinary": {"a file", "a prompt", "a system prompt", "a variable"},
}
"""What is found where nothing confines the agent: those who hunt can hunt."""


def of_the_server(arena: Arena) -> dict[str, str]:
    env = arena.fleet.env
    own = {name: env[name] for name in ("ANTHROPIC_API_KEY", "API_KEY", "ENCRYPTION_KEYS")}
    return own | {name: unquote(urlsplit(env[name]).password or "") for name in ("DATABASE_URL", "REDIS_URL")}


async def of_the_victim(arena: Arena) -> dict[str, str]:
    """Give the other tenant what it has to hide, and have its agent use it."""
    made = {
        name: f"{uuid4().hex}-{name.replace(' ', '-')}"
        for name in (
            "a prompt",
            "a system prompt",
            "a variable",
            "a secret",
            "a model credential",
            "a skill",
            "a title",
        )
    }
    headers, client = arena.headers["victim"], arena.instance.client
    assert (await client.put("/api/v1/secrets/THEIRS", json={"value": made["a secret"]}, headers=headers)).is_success
    skill = {"description": "x", "content": made["a skill"]}
    assert (await client.put("/api/v1/skills/theirs", json=skill, headers=headers)).is_success
    tenant = (await arena.instance.get("/whoami", headers=headers)).json()["tenant"]
    path = f"/api/v1/admin/tenants/{tenant}/model-credential"
    assert (await client.put(path, json={"api_key": made["a model credential"]})).is_success
    session_id = await arena.session(
        "victim",
        title=made["a title"],
        system_prompt=made["a system prompt"],
        env={"THEIRS": made["a variable"]},
        mcp_servers={"s": {"type": "http", "url": "http://127.0.0.1:9/x", "headers": {"A": "${THEIRS}"}}},
    )
    await arena.ask("victim", f"run echo {made['a prompt']}", session_id)
    return made | {"a file": arena.secret, "a key": headers["X-API-Key"]}


def facts_of(arena: Arena, hidden: dict[str, str], since: float) -> dict[str, Any]:
    told = arena.facts
    confined = "files" in arena.layers
    # Without confinement there is no end to what can be read: these are enough to show that it can.
    every = [str(Path("/", name)) for name in os.listdir("/")] if confined else []
    return {
        "hidden": {name: hunting.disguised(value.encode()) for name, value in hidden.items()},
        "pids": [told[who][name] for who in ("own", "victim") for name in ("cli", "guard")] + [told["server"]["pid"]],
        "files": [
            told["server"]["key"],
            f"{told['victim']['workspace']}/private.txt",
            # Without namespaces that is open to who knows its name, as docs/security.md says.
            *([] if confined and "namespaces" not in arena.layers else [f"/dev/shm/{told['host']['shm']}"]),
        ],
        "roots": [*every, sys.prefix, sys.base_prefix, str(arena.root)],
        "since": since,
    }


@pytest.mark.timeout(400)
@in_arenas(
    "off-root",
    "off-ordinary",
    "files-root",
    "landlock-root",
    "landlock-ordinary",
    "namespaces-root",
    "namespaces-ordinary",
)
async def test_no_secret_is_found(arena: Arena) -> None:
    since = time.time() - 60
    hidden = of_the_server(arena) | await of_the_victim(arena)
    assert all(len(value) >= 10 for value in hidden.values())
    given = arena.root / "facts" / "hunt.json"
    given.write_text(json.dumps(facts_of(arena, hidden, since)))
    results = arena.places(arena.attacker)["workspace"] / "found"
    said = await arena.ask("attacker", f"run {command(HUNTING, given, results)}", timeout_seconds=150)
    assert "looked at" in said["result"], said["result"]
    told = json.loads(await asyncio.to_thread(results.read_text))
    assert told["read"] > 5
    if "files" in arena.layers:
        assert told["found"] == {}
        assert told["whole"]
    else:
        assert set(told["found"]) >= UNCONFINED[arena.user], told["found"]
