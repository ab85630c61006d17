"""The files of the console: what they may do, that the package has them, and how they are served."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from apps.api.main import create_app
from apps.api.settings import Settings
from apps.api.web.console import assets, routes
from tests.fleet import API_KEY, NO_TLS, Fleet

ROOT = Path(__file__).parents[3]
STATIC = Path(str(resources.files("apps.api.web.console").joinpath("static")))
OURS = sorted([*STATIC.glob("app/**/*.js"), *STATIC.glob("style/*.css"), STATIC / "page.html"])
MAX_LINES = 400

NEVER = (
    *("innerHTML", "outerHTML", "insertAdjacent", "document.write", "dangerouslySetInnerHTML", "eval(", "new Function"),
    *("sessionStorage", "indexedDB", "document.cookie", "localStorage", "setAttribute('style", "onclick=", "import("),
)
"""What makes HTML of text, runs text, or keeps something."""

EXCEPTIONS = {"app/theme.js": {"localStorage"}}
"""The theme is kept, and nothing else is."""


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(STATIC)))
def test_a_file_names_no_other_place_makes_no_html_and_keeps_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    name = str(path.relative_to(STATIC))
    assert [word for word in NEVER if word in text and word not in EXCEPTIONS.get(name, ())] == []
    others = re.findall(r"https?://[^\s\"'`]+", text)
    assert [url for url in others if not url.startswith(("http://www.w3.org/2000/svg", "https://example.com"))] == []
    assert not re.search(r"[^:\w]//[a-z0-9-]+\.[a-z]", re.sub(r"^\s*//.*", "", text, flags=re.MULTILINE))
    assert len(text.splitlines()) <= MAX_LINES


def test_every_script_imports_what_is_there() -> None:
    files = assets.load().files
    for path in STATIC.glob("app/**/*.js"):
        text, own = path.read_text(encoding="utf-8"), str(path.relative_to(STATIC))
        for wanted in re.findall(r'(?:from|import) "([^"]+)"', text):
            found = urljoin(own, wanted) if wanted.startswith(".") else routes.LIBRARIES.get(wanted)
            assert found in files, f"{own}: {wanted}"


def test_scripts_import_in_no_circle() -> None:
    imports = {
        str(path.relative_to(STATIC)): {
            urljoin(str(path.relative_to(STATIC)), wanted)
            for wanted in re.findall(r'from "(\.[^"]+)"', path.read_text(encoding="utf-8"))
        }
        for path in STATIC.glob("app/**/*.js")
    }
    while free := {name for name, wanted in imports.items() if not wanted & imports.keys()}:
        imports = {name: wanted for name, wanted in imports.items() if name not in free}
    assert imports == {}


def test_what_others_have_written_is_as_it_was_published(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "vendored"
    assert subprocess.run([sys.executable, script], capture_output=True, text=True).stderr == ""
    # In a copy of the repository where one byte is another one, and a file too many.
    for directory in ("scripts", "tests/vendor", "apps/api/web/console/static/vendor", "apps/api/web/viewer/vendor"):
        (copy := tmp_path / directory).mkdir(parents=True)
        for file in (ROOT / directory).iterdir():
            if file.is_file() and (directory != "scripts" or file.name == "vendored"):
                (copy / file.name).write_bytes(file.read_bytes())
    vendor = tmp_path / "apps/api/web/console/static/vendor"
    (vendor / "htm.mjs").write_text((vendor / "htm.mjs").read_text() + " ")
    (vendor / "more.mjs").write_text("")
    (tmp_path / "apps/api/web/viewer/vendor/swagger-ui.css").unlink()
    told = subprocess.run([sys.executable, tmp_path / "scripts/vendored"], capture_output=True, text=True)
    assert told.returncode == 1
    assert "htm.mjs: is not the file of htm" in told.stderr
    assert "more.mjs: is not in vendored.json" in told.stderr
    assert "swagger-ui.css: is not there" in told.stderr


async def test_every_path_is_the_same_page_without_a_key_and_runs_what_carries_its_nonce_only(fleet: Fleet) -> None:
    nonces = set()
    async with httpx.AsyncClient(verify=NO_TLS, base_url=fleet[0].url, timeout=60) as client:
        for path in ("/console", "/console/", "/console/sessions", "/console/sessions/x?event=12", "/console/a/b/c"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
            assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
            assert rules["form-action"] == "'none'"
            assert rules["connect-src"] == "'self'"
            assert rules["require-trusted-types-for"] == "'script'"
            found = re.fullmatch(r"'nonce-([\w-]{22})'", rules["script-src"])
            assert found
            assert rules["style-src"] == rules["script-src"]
            nonces.add(found[1])
            for tag in re.findall(r"<(?:script|style|link)\b[^>]*>", answer.text):
                assert f'nonce="{found[1]}"' in tag or 'href="data:' in tag, tag
            assert not re.search(r"\son\w+=|\sstyle=", answer.text)
            assert API_KEY not in answer.text
            # What it names is there, wherever the page was asked for.
            for name in re.findall(r'(?:src|href)="([^"]+\.(?:m?js|css))"', answer.text):
                assert (await client.get(urljoin(str(answer.url), name))).status_code == 200, name
            [imports] = re.findall(r'<script type="importmap"[^>]*>(.*?)</script>', answer.text)
            for name in json.loads(imports)["imports"].values():
                assert (await client.get(urljoin(str(answer.url), name))).status_code == 200, name
    assert len(nonces) == 5


async def test_files_are_kept_for_ever_and_those_of_another_release_are_not_there(fleet: Fleet) -> None:
    files = assets.load()
    async with httpx.AsyncClient(verify=NO_TLS, base_url=fleet[0].url, timeout=60) as client:
        for path, asset in files.files.items():
            answer = await client.get(f"/console/assets/{files.digest}/{path}")
            assert answer.content == asset.content
            assert answer.headers["content-type"].split(";")[0] == asset.media_type.split(";")[0]
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        plain = await client.get(
            f"/console/assets/{files.digest}/vendor/purify.mjs", headers={"Accept-Encoding": "identity"}
        )
        assert "content-encoding" not in plain.headers
        for path in ("0000000000000000/app/main.js", f"{files.digest}/app/none.js", f"{files.digest}/page.html"):
            missing = await client.get(f"/console/assets/{path}")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found"), path


def test_large_files_are_sent_compressed() -> None:
    asset = assets.load().files["vendor/purify.mjs"]
    assert asset.packed is not None
    assert len(asset.packed) < len(asset.content) / 2
    assert gzip.decompress(asset.packed) == asset.content


async def test_an_operator_can_leave_the_console_out() -> None:
    transport = httpx.ASGITransport(create_app(Settings(_env_file=None, web_console=False)))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", verify=NO_TLS) as client:
        for path in ("/console", "/console/sessions", "/playground"):
            assert (await client.get(path)).status_code == 404


async def test_the_page_that_came_before_leads_here(fleet: Fleet) -> None:
    async with httpx.AsyncClient(verify=NO_TLS, base_url=fleet[0].url, timeout=60) as client:
        answer = await client.get("/playground")
        assert (answer.status_code, answer.headers["location"]) == (308, "console")
        assert (await client.get(urljoin(str(answer.url), "console"))).status_code == 200


def test_the_package_has_the_files() -> None:
    # What hatchling packs: the files of its packages that git does not ignore.
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert packed["targets"]["wheel"]["packages"] == ["apps"]
    paths = [str(path.relative_to(ROOT)) for path in STATIC.rglob("*") if path.is_file()]
    assert all(path.startswith("apps/") for path in paths)
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
    assert (ignored.stdout, ignored.returncode) == ("", 1)
