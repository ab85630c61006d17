"""The directories that agents work in: `WORKSPACES_DIR/<session id>`, the same path on every host.

Beside them, in `WORKSPACES_DIR/.checkpoints/<session id>`, lie the copies of files that rewinding needs. So they move
with the session, and are no part of what its agent sees as its files.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from apps.api.settings import Settings


@dataclass(frozen=True, slots=True)
class Workspace:
    """A session's files: the directory itself, the agent's working directory inside it, and where copies of earlier
    versions are kept."""

    root: Path
    cwd: Path
    history: Path


def _root(settings: Settings, session_id: UUID) -> Path:
    return settings.workspaces_root / str(session_id)


def _history(settings: Settings, session_id: UUID) -> Path:
    return settings.workspaces_root / ".checkpoints" / str(session_id)


def create(settings: Settings, session_id: UUID, cwd: str | None) -> Workspace:
    """Make a session's workspace, if it is not there. Raises ValueError when `cwd` leads out of it by a link."""
    root, history = _root(settings, session_id), _history(settings, session_id)
    for directory in (root, history):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside = (root / (cwd or ".")).resolve()
    if not inside.is_relative_to(root):
        raise ValueError("cwd leads out of the workspace")
    inside.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Workspace(root, inside, history)


def remove(settings: Settings, session_id: UUID) -> None:
    """Remove a session's files, if they are on this host."""
    for directory in (_root(settings, session_id), _history(settings, session_id)):
        shutil.rmtree(directory, ignore_errors=True)


def present(settings: Settings) -> list[UUID]:
    """Sessions that have a workspace on this host."""
    found = []
    for path in settings.workspaces_root.iterdir() if settings.workspaces_root.is_dir() else ():
        try:
            found.append(UUID(path.name))
        except ValueError:
            continue
    return found
