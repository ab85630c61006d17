"""The OpenAPI documents as files: exported from the code by `scripts/export-openapi`, compared with it by a test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from apps.api.main import create_app, descriptions
from apps.api.settings import Settings
from apps.api.web.document import build

DIRECTORY = Path(__file__).parents[2] / "specs/001-claude-agent-api/contracts"
TARGET = DIRECTORY / "openapi.yaml"
"""The native API's."""

_HEAD = "# Written by scripts/export-openapi from the code. Do not edit.\n"


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: the code shares objects, a reader wants to see each in its place."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _as_block)


def target(prefix: str) -> Path:
    """Where the document of the routes below a path is kept: `/compat/code-server` has `code-server.yaml`."""
    return DIRECTORY / f"{prefix.rpartition('/')[2]}.yaml" if prefix else TARGET


def export() -> dict[Path, str]:
    """All documents as YAML. Connects to nothing, and holds nothing that a setting could change."""
    app = create_app(Settings(_env_file=None))
    return {target(prefix): written(build(app, description)) for prefix, description in descriptions().items()}


def written(document: dict[str, Any]) -> str:
    """A document as it is kept."""
    return _HEAD + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def main() -> None:
    """Write the documents to their places in the repository."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for path, text in export().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
