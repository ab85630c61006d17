"""`python -m tests.dialects.coverage`: writes the tables of what surfaces send into their pages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {"ai_sdk": ROOT / "docs/ai-sdk.md", "ag_ui": ROOT / "docs/ag-ui.md"}
TABLE = re.compile(r"(?<=<!-- coverage -->\n\n).*?(?=<!-- end of coverage -->)", re.DOTALL)
WORDS = {"done": "yes", "not_sent": "no"}


def known(dialect: str) -> dict[str, dict[str, str]]:
    """What is sent and what is not, each with a note."""
    found: dict[str, dict[str, str]] = tomllib.loads((ROOT / f"apps/api/dialects/{dialect}/coverage.toml").read_text())
    return found


def table(dialect: str) -> str:
    """As its page has it."""
    rows = [
        f"| `{name}` | {WORDS[state]} | {note} |"
        for state, names in known(dialect).items()
        for name, note in names.items()
    ]
    return "\n".join(["| | sent | |", "|---|---|---|", *rows, "", ""])


def main() -> None:
    """Write them."""
    for dialect, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(TABLE.findall(text)[0], table(dialect)), encoding="utf-8")


if __name__ == "__main__":
    main()
