"""The directories that agents work in: `WORKSPACES_DIR/<session id>`, the same path on every host."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from apps.api.settings import Settings


@dataclass(frozen=True, slots=True)
class Workspace:
    """A session's files: the directory itself, and the agent's working directory inside it."""

    root: Path
    cwd: Path


def create(settings: Settings, session_id: UUID, cwd: str | None) -> Workspace:
    """Make a session's workspace, if it is not there. Raises ValueError when `cwd` leads out of it by a link."""
    root = settings.workspaces_root / str(session_id)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside = (root / (cwd or ".")).resolve()
    if not inside.is_relative_to(root):
        raise ValueError("cwd leads out of the workspace")
    inside.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Workspace(root, inside)


def remove(settings: Settings, session_id: UUID) -> None:
    """Remove a session's files, if they are on this host."""
    shutil.rmtree(settings.workspaces_root / str(session_id), ignore_errors=True)


def present(settings: Settings) -> list[UUID]:
    """Sessions that have a workspace on this host."""
    found = []
    for path in settings.workspaces_root.iterdir() if settings.workspaces_root.is_dir() else ():
        try:
            found.append(UUID(path.name))
        except ValueError:
            continue
    return found
