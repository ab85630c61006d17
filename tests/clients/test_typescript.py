"""The TypeScript client as it is built and read: its types, its edges, the examples of its README."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

from tests.clients.typescript import CLIENT, ROOT, built, installed, run
from tests.fleet import API_KEY, Fleet

HERE = Path(__file__).parent


def test_the_types_are_those_of_the_document() -> None:
    installed()
    found = run("npm", "run", "--silent", "generate", "--", "--check")
    assert found.returncode == 0, f"run `npm run generate` in {CLIENT.relative_to(ROOT)}\n{found.stderr}"


def test_the_client_compiles_and_has_its_types() -> None:
    assert {"index.js", "index.d.ts", "schema.d.ts"} <= {file.name for file in built().iterdir()}


def test_it_depends_on_nothing_and_its_lock_file_names_no_host() -> None:
    package = json.loads((CLIENT / "package.json").read_text(encoding="utf-8"))
    assert "dependencies" not in package
    lock = json.loads((CLIENT / "package-lock.json").read_text(encoding="utf-8"))
    assert lock["packages"][""]["devDependencies"] == package["devDependencies"]
    packages = {name: found for name, found in lock["packages"].items() if name}
    assert [name for name, found in packages.items() if "resolved" in found or "integrity" not in found] == []


def test_its_modules_can_be_read() -> None:
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in (CLIENT / "src").iterdir()}
    del lengths["schema.ts"]  # is generated
    assert max(lengths.values()) <= 400, lengths


def test_it_holds_at_the_edges() -> None:
    built()
    found = run("node", "--test", "--test-reporter=tap", str(HERE / "edges.mjs"))
    assert found.returncode == 0, found.stdout + found.stderr


def examples() -> list[str]:
    """Those of its README, and of the page about clients."""
    text = "".join(page.read_text(encoding="utf-8") for page in (CLIENT / "README.md", ROOT / "docs/clients.md"))
    return re.findall(r"^```ts\n(.*?)^```\n", text, re.DOTALL | re.MULTILINE)


SAYS = [
    ["remember", "remember my name is Ada"],
    ["word20", "user 1", "assistant 1", "succeeded"],
    ["model_request_invalid false"],
    ["blue"],
    ["data/people.csv 19", "2"],
    [],
    ["r1 timeout", "204 400"],
    ["asked for Bash", "succeeded", "made"],
]
"""What comes of each example, at least."""


async def test_the_examples_of_the_readme_compile_and_do_what_they_say(fleet: Fleet, tmp_path: Path) -> None:
    await asyncio.to_thread(built)
    modules = tmp_path / "node_modules"
    modules.mkdir()
    (modules / "claude-agent-api-client").symlink_to(CLIENT)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node.d.ts").write_text(_OF_NODE)
    options = {"strict": True, "target": "es2022", "module": "nodenext", "types": [], "skipLibCheck": True}
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options}))
    found = examples()
    names = [f"example{number}.ts" for number in range(len(found))]
    for name, text in zip(names, found, strict=True):
        (tmp_path / name).write_text(text)
    compiled = await asyncio.to_thread(run, str(CLIENT / "node_modules/.bin/tsc"), cwd=tmp_path)
    assert compiled.returncode == 0, compiled.stdout
    environment = {**os.environ, "CLAUDE_AGENT_API_URL": fleet[0].url, "CLAUDE_AGENT_API_KEY": API_KEY}
    for name, wanted in zip(names, SAYS, strict=True):
        process = await asyncio.create_subprocess_exec(
            "node",
            name.replace(".ts", ".js"),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
        assert process.returncode == 0, f"{name}: {said}"
        assert [words for words in wanted if words not in said] == [], f"{name}: {said}"


_OF_NODE = """
declare module "node:crypto" { export function createHmac(name: string, key: Uint8Array): Hmac; }
interface Hmac { update(text: string): Hmac; digest(as: "base64"): string }
declare const Buffer: { from(text: string, as?: "base64"): Uint8Array & { toString(as: "base64"): string } };
"""
"""What the examples use of Node's own."""
