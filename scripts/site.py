"""Build the documents as a site: `scripts/site [DIRECTORY]`, which is site/ if it is left out.

A link, or an anchor, that leads nowhere ends it with an error, and so does a page that is missing in the navigation, or
a file of the site that browsers would fetch from elsewhere. Beside the pages come their sources, and for programs that
read, llms.txt (all pages, with what they are about) and llms-full.txt (all of their text).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\shref=["']?(?:https?:)?//"""
    r"""|url\(["']?(?:https?:)?//|@import\s+["'](?:https?:)?//""",
    re.IGNORECASE,
)


def main(target: Path) -> int:
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    sections = [(title, list(pages_in(entries))) for entry in project["nav"] for title, entries in entry.items()]
    named = [page for _, pages in sections for page in pages]
    there = [
        path.relative_to(ROOT).as_posix() for path in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/**/*.md")]
    ]
    if left_out := sorted(set(there) - set(named)):
        return failed(f"not in the navigation of zensical.toml: {', '.join(left_out)}")
    if target.exists() and not (target / "llms.txt").exists():
        return failed(f"{target} is there, and is no site of ours")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        laid_out(named, work / project["docs_dir"])
        shutil.copy(ROOT / "zensical.toml", work)
        if said := built(work):
            return failed(said)
        site = work / project["site_dir"]
        for page in named:
            shutil.copyfile(ROOT / page, site / page)
        (site / "llms.txt").write_text(index(project, sections), encoding="utf-8")
        (site / "llms-full.txt").write_text("\n".join(map(text_of, named)), encoding="utf-8")
        if fetched := [found for path in sorted(site.rglob("*")) for found in fetched_by(path, site)]:
            return failed("browsers would fetch from elsewhere:\n" + "\n".join(fetched))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(site, target)
    print(f"{len(named)} pages in {target}")
    return 0


def built(work: Path) -> str:
    """What is wrong, or nothing."""
    build = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"],
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    coloured, _, _ = (build.stdout + build.stderr).partition("Traceback")
    said = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    return said if build.returncode or "Warning" in said else ""


def failed(why: str) -> int:
    print(why.strip(), file=sys.stderr)
    return 1


def pages_in(entries: list[str | dict[str, str | list[str]]]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else (entry,):
            yield from pages_in(value) if isinstance(value, list) else (value,)


def laid_out(pages: list[str], copy: Path) -> None:
    """The pages below `copy` as they are here, with the files that they link to: so their links hold there, too."""
    for page in pages:
        links = re.findall(r"\]\(([^)#:\s]+)[^)\s]*\)", text_of(page))
        linked = [(ROOT / page).parent.joinpath(link).resolve() for link in links]
        for path in (ROOT / page, *linked):
            if path.is_file() and path.is_relative_to(ROOT):
                (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy / path.relative_to(ROOT))


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def index(project: dict[str, Any], sections: list[tuple[str, list[str]]]) -> str:
    """As https://llmstxt.org says: a line for each page, with its title and what it says first."""
    lines = [f"# {project['site_name']}", "", f"> {project['site_description']}"]
    for title, pages in sections:
        lines += ["", f"## {title}", ""]
        for page in pages:
            heading, _, rest = text_of(page).partition("\n")
            about = next((part for part in rest.split("\n\n") if re.match(r"(?!Status:)[A-Z`*]", part.strip())), "")
            plain = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", " ".join(about.split()))
            short = re.match(r".{60,}?[.?](?= |$)", plain)
            lines.append(f"- [{heading.lstrip('# ')}]({page}): {short[0] if short else plain.rstrip(':')}".rstrip(": "))
    return "\n".join(lines) + "\n"


def fetched_by(path: Path, site: Path) -> Iterator[str]:
    if path.suffix in (".html", ".css"):
        yield from (f"{path.relative_to(site)}: {found[0]}" for found in FETCHED.finditer(path.read_text("utf-8")))


if __name__ == "__main__":
    here = os.environ.get("CALLER_DIR", "")
    sys.exit(main(Path(here, sys.argv[1]).resolve() if sys.argv[1:] else ROOT / "site"))
