"""The OpenAPI document as a file: exported from the code by `scripts/export-openapi`, compared with it by a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from apps.api.main import create_app
from apps.api.settings import Settings

TARGET = Path(__file__).parents[2] / "specs/001-claude-agent-api/contracts/openapi.yaml"

_HEAD = "# Written by scripts/export-openapi from the code. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: the code shares objects, a reader wants to see each in its place."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _as_block)


def export() -> str:
    """The document as YAML. Connects to nothing, and holds nothing that a setting could change."""
    document = create_app(Settings(_env_file=None)).openapi()
    return _HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def main() -> None:
    """Write the document to its place in the repository."""
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(export(), encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")


if __name__ == "__main__":
    main()
