"""The blocks of the pages, and what the pages show of their output.

A fenced block of a language in RUN is run. What stands right behind it, indented or fenced without a language or as
`json` or `text`, is what it prints. Comments, which readers of the page do not see, say what is different:

    <!-- not run: WHY -->         before a block: it cannot run in a test
    <!-- output -->               before an indented block: the block above prints this, too
    <!-- the stream goes on -->   before an indented block: what comes of the latest stream that waited for a person
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What the page of the TypeScript client shows runs with what is built of it: tests/clients/test_typescript.py.
PAGES = ("docs/**/*.md", "clients/python/README.md")

RUN = ("sh", "bash", "python", "js", "typescript")
SHOWN = ("", "text", "json")

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)\n(?P<text>.*?)^(?P=indent)```\n", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\n+\Z")
SAVED = re.compile(r"[Ss]ave this as\s+`([\w./-]+)`")


@dataclass(frozen=True)
class Block:
    """`text` of `language` on a page; `saved`: the file it is, if it is one; `not_run`: why, or nothing.

    `shown` is what the page says that it prints, `goes_on` what then comes of the stream that waited for a person.
    """

    page: str
    line: int
    language: str
    text: str
    saved: str
    not_run: str
    shown: str
    goes_on: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Those that have blocks."""
    below = sorted(path.relative_to(ROOT).as_posix() for of in PAGES for path in ROOT.glob(of))
    return [page for page in ("README.md", *below) if blocks_of(page)]


def blocks_of(page: str) -> list[Block]:
    return blocks_in((ROOT / page).read_text(encoding="utf-8"), page)


def blocks_in(text: str, page: str) -> list[Block]:
    fences = [fence for fence in FENCE.finditer(text) if fence["language"] in RUN]
    found = []
    for index, fence in enumerate(fences):
        before = text[fences[index - 1].end() if index else 0 : fence.start()]
        deep = len(fence["indent"]) + 4
        after = text[fence.end() : fences[index + 1].start() if index + 1 < len(fences) else len(text)]
        why, names = NOT_RUN.search(before), SAVED.findall(before)
        found.append(
            Block(
                page,
                text.count("\n", 0, fence.start()) + 2,
                fence["language"],
                re.sub(f"^{fence['indent']}", "", fence["text"], flags=re.MULTILINE),
                names[-1] if names else "",
                why[1] if why else "",
                "\n".join(filter(None, [behind(after, deep), *marked("output", after)])),
                "\n".join(marked("the stream goes on", after)),
            )
        )
    return found


def behind(text: str, deep: int = 4) -> str:
    """The block that `text` begins with, if it shows something: indented by `deep` spaces, or fenced."""
    if fence := FENCE.match(text.lstrip("\n")):
        return fence["text"] if fence["language"] in SHOWN else ""
    block = re.match(rf"\n+((?: {{{deep}}}.*\n|\n(?= {{{deep}}}))+)", text)
    return block[1] if block else ""


def marked(what: str, text: str) -> list[str]:
    return [behind(text[mark.end() :]) for mark in re.finditer(f"<!-- {what} -->\n", text)]
