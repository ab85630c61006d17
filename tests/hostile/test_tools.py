"""The CLI's own tools, pointed at what is another tenant's: they are no way around what stops Bash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.hostile.arena import Arena, all_is_well
from tests.hostile.conftest import in_arenas
from tests.watch import watched


def calls(arena: Arena, own: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is tried: in words → a tool, and its input."""
    theirs, above = arena.places(arena.victim), Path(arena.fleet.env["WORKSPACES_DIR"])
    return {
        "read a file of theirs": ("Read", {"file_path": str(theirs["workspace"] / "private.txt")}),
        "read by a link": ("Read", {"file_path": str(own / "link")}),
        "read by a link to a directory": ("Read", {"file_path": str(own / "directory" / "private.txt")}),
        "read by the parent directory": ("Read", {"file_path": f"{own}/../{arena.victim}/private.txt"}),
        "read their home": ("Read", {"file_path": str(theirs["home"] / "private.txt")}),
        "read their configuration": ("Read", {"file_path": str(theirs["config"] / "private.txt")}),
        "read the server's key": ("Read", {"file_path": arena.facts["server"]["key"]}),
        "read the machine's file": ("Read", {"file_path": arena.facts["host"]["file"]}),
        "find their files": ("Glob", {"pattern": "**/private.txt", "path": str(above)}),
        "search their files": ("Grep", {"pattern": arena.secret[:20], "path": str(above), "output_mode": "content"}),
        "search by a link": (
            "Grep",
            {"pattern": arena.secret[:20], "path": str(own / "directory"), "output_mode": "content"},
        ),
    }


WRITES = {"write a file of theirs": "workspace", "write in their home": "home", "write what starts them": "given"}


def seen_in(arena: Arena, tool: str, text: str) -> bool:
    return arena.secret in text or (tool == "Glob" and f"{arena.victim}/private.txt" in text)


@in_arenas(
    "off-root",
    "off-ordinary",
    "files-root",
    "landlock-root",
    "landlock-ordinary",
    "namespaces-root",
    "model_only-ordinary",
)
async def test_tools_of_the_cli_reach_no_more_than_bash_does(arena: Arena) -> None:
    session_id = await arena.session("attacker", tools=["Bash", "Read", "Write", "Edit", "Glob", "Grep"])
    own, theirs = arena.places(session_id)["workspace"], arena.places(arena.victim)
    links = f"ln -s {theirs['workspace']}/private.txt link; ln -s {theirs['workspace']} directory"
    await arena.ask("attacker", f"run {links}", session_id)
    succeeded = {}
    async with watched(arena.instance):
        for what, (tool, given) in calls(arena, own).items():
            told = (await arena.ask("attacker", f"use tool {tool} {json.dumps(given)}", session_id))["result"]
            succeeded[what] = seen_in(arena, tool, told)
        for what, place in WRITES.items():
            written = theirs[place] / "written"
            given = {"file_path": str(written), "content": "forged"}
            await arena.ask("attacker", f"use tool Write {json.dumps(given)}", session_id)
            succeeded[what] = written.exists()
            written.unlink(missing_ok=True)
        edited = theirs["workspace"] / "movable.txt"
        await arena.ask("attacker", f"edit {edited}: movable => forged", session_id)
        succeeded["edit a file of theirs"] = edited.read_text() == "forged"
        edited.write_text("movable")
        await all_is_well(arena)
    assert succeeded == dict.fromkeys(succeeded, "files" not in arena.layers)
