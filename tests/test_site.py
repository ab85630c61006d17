"""The documents as a site: built from what is here today, whole, and without anything from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests import browser

ROOT = Path(__file__).parents[1]
CHROMIUM = browser.program()
SOURCES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "zensical.toml",
    "docs",
    "examples",
    "specs",
    "clients",
    "deploy",
)


def build(root: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "scripts/site.py", target], capture_output=True, text=True, timeout=150, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site") / "built"
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository in which a page may be broken."""
    for source in SOURCES:
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, tmp_path / source, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
        else:
            shutil.copy(path, tmp_path / source)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/site.py", tmp_path / "scripts")
    return tmp_path


def test_every_page_is_there_with_its_source(site: Path) -> None:
    pages = [path.relative_to(ROOT) for path in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]]
    assert len(pages) > 70
    for page in pages:
        assert (site / page).read_bytes() == (ROOT / page).read_bytes()
        # A README is the page of its directory.
        assert (site / str(page.with_suffix(".html")).replace("README.html", "index.html")).is_file(), page


def test_programs_that_read_find_every_page_and_all_of_its_text(site: Path) -> None:
    index = (site / "llms.txt").read_text()
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert index.startswith("# Claude Agent API\n\n> ")
    assert re.findall("^## (.*)$", index, flags=re.MULTILINE) == [title for entry in nav for title in entry]
    named = re.findall(r"^- \[.+?\]\((.+?)\): \S.*$", index, flags=re.MULTILINE)
    assert len(named) == index.count("\n- "), "a page does not say what it is about"
    full = (site / "llms-full.txt").read_text()
    for page in named:
        assert (ROOT / page).read_text() in full, page


def test_a_link_or_an_anchor_that_leads_nowhere_ends_it(copy: Path) -> None:
    page = copy / "docs/glossary.md"
    page.write_text(page.read_text() + "\n[one](nowhere.md) and [two](api.md#no-such-heading)\n")
    done = build(copy, copy / "built")
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr
    assert "no-such-heading" in done.stderr
    assert not (copy / "built").exists()


def test_what_browsers_would_fetch_from_elsewhere_ends_it(copy: Path) -> None:
    page = copy / "docs/glossary.md"
    page.write_text(page.read_text() + '\n<img alt="" src="https://example.org/counter.gif">\n')
    done = build(copy, copy / "built")
    assert done.returncode == 1
    assert "https://" in done.stderr or "//" in done.stderr
    assert "docs/glossary.html" in done.stderr


def test_a_page_that_the_navigation_forgets_ends_it(copy: Path) -> None:
    (copy / "docs/forgotten.md").write_text("# Forgotten\n")
    done = build(copy, copy / "built")
    assert (done.returncode, done.stderr) == (1, "not in the navigation of zensical.toml: docs/forgotten.md\n")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
async def test_a_browser_asks_nobody_else(served: str) -> None:
    assert CHROMIUM is not None
    async with browser.running(CHROMIUM) as chromium, chromium.page(f"{served}/index.html") as page:
        await page.go(f"{served}/docs/api.html")
        await page.when("document.querySelector('h1').innerText.startsWith('The native API')")
        asked = [request["url"] for request in page.requests]
        assert len(asked) > 4
        assert [url for url in asked if not url.startswith((served, "data:", "blob:"))] == []
        assert page.complaints == []
