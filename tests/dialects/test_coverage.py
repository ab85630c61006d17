"""What the surfaces send is what their pages say, and all that the clients know is looked at."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import Any

import pytest

from tests.clients.surfaces.installed import installed
from tests.dialects import ag_ui_rules, ui_message
from tests.dialects.coverage import PAGES, TABLE, known, table

CHUNKS = r"""
import { existsSync, readFileSync } from "node:fs";
const types = new Set();
for (const name of ["ai6", "ai7"]) {
  const at = `node_modules/${name}/dist/index`;
  const code = readFileSync(existsSync(`${at}.mjs`) ? `${at}.mjs` : `${at}.js`, "utf8");
  const from = code.search(/uiMessageChunkSchema = /);
  const schema = code.slice(from, code.indexOf("isDataUIMessageChunk", from));
  for (const [, type] of schema.matchAll(/type: [\w.$]*literal\(\s*"([^"]+)"\s*\)/g)) types.add(type);
}
console.log(JSON.stringify([...types]));
"""
EVENTS = """
const { EventType } = await import("@ag-ui/client");
console.log(JSON.stringify(Object.values(EventType)));
"""


@pytest.mark.parametrize("dialect", PAGES)
def test_the_page_has_the_table_of_the_file(dialect: str) -> None:
    found = TABLE.search(PAGES[dialect].read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == table(dialect), "run python -m tests.dialects.coverage"


def test_what_the_rules_of_the_tests_know_is_what_is_sent() -> None:
    assert set(known("ai_sdk")["done"]) == {*ui_message.CHUNKS, "data-*"}
    assert set(known("ag_ui")["done"]) == set(ag_ui_rules.EVENTS)


def printed(script: str) -> Any:
    words = ["node", "--input-type=module", "--eval", script]
    found = subprocess.run(words, cwd=installed(), capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize(("dialect", "script"), [("ai_sdk", CHUNKS), ("ag_ui", EVENTS)])
async def test_all_that_the_client_knows_is_looked_at(dialect: str, script: str) -> None:
    theirs = set(await asyncio.to_thread(printed, script))
    assert theirs
    ours = {name for names in known(dialect).values() for name in names} - {"data-*"}
    inner = {"text"}  # a part of a chunk
    assert ours == theirs - inner - {name for name in theirs if name.startswith("data-")}
