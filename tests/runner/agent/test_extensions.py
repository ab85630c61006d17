"""What tenants store becomes files that the CLI reads, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from apps.api.core.tenant.skills import BODY, Skill
from apps.api.runner.agent.extensions import write_mcp_config, write_plugin


@pytest.mark.parametrize(
    "description",
    [
        "plain",
        "quotes \" and \\ and ' and #",
        "--- {a: b} [c] & *d !e |f >g %h @i `j",
        "grüße 🦀 \u3042",
        "null",
        "1.0",
        " ",
    ],
)
def test_any_description_comes_out_of_the_front_matter_as_it_went_in(tmp_path: Path, description: str) -> None:
    command = Skill("command", "c", description, {BODY: "---\nhooks: {}\n---\ntext"})
    plugin = write_plugin(tmp_path / "plugin", [command])
    _, head, body = (plugin / "commands/c.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {"description": description}
    assert body.strip() == "---\nhooks: {}\n---\ntext"


def test_a_skill_is_a_directory_with_its_files(tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path / "plugin", [Skill("skill", "s", "d", {BODY: "body", "a/b.md": "---\nx"})])
    found = {str(path.relative_to(plugin)) for path in plugin.rglob("*") if path.is_file()}
    assert found == {".claude-plugin/plugin.json", "skills/s/SKILL.md", "skills/s/a/b.md"}
    assert (plugin / "skills/s/a/b.md").read_text() == "---\nx"


def test_the_file_with_secrets_is_for_one_user_only(tmp_path: Path) -> None:
    path = write_mcp_config(tmp_path / "mcp.json", {"x": {"type": "http"}})
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {"mcpServers": {"x": {"type": "http"}}}


def expanded(text: str) -> str:
    """What the CLI 2.1.327 makes of a text in the configuration of an MCP server."""
    found = r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}"
    return re.sub(found, lambda m: "/home" if m[1] == "HOME" else (m[2] or m[0])[2:] if m[2] else m[0], text)


@pytest.mark.parametrize(
    "text",
    ["pa${HOME}ss", "$HOME", "${", "${HOME", "$${HOME}", "${A}${HOME}", "${HOME:-x}", "${NOPE:-${HOME}}", "a\\${HOME}"],
)
def test_what_an_mcp_server_is_given_arrives_as_it_was_written(tmp_path: Path, text: str) -> None:
    local = {"type": "stdio", "command": text, "args": [text], "env": {"T": text}}
    remote = {"type": "http", "url": f"https://example.org/{text}", "headers": {"T": text}}
    path = write_mcp_config(tmp_path / "mcp.json", {"local": local, "remote": remote})
    given = json.loads(path.read_text())["mcpServers"]
    one, other = given["local"], given["remote"]
    assert [expanded(found) for found in (one["command"], *one["args"], one["env"]["T"])] == [text] * 3
    assert expanded(other["url"]) == f"https://example.org/{text}"
    assert expanded(expanded(other["headers"]["T"])) == text
