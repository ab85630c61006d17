"""The directories that agents work in: `WORKSPACES_DIR/<session id>`, the same path on every host.

A clone of a repository is made in `WORKSPACES_DIR/.clones` first, so that it is there as a whole or not at all.
Beside them, in `WORKSPACES_DIR/.checkpoints/<session id>`, lie the copies of files that rewinding needs. So they move
with the session, and are no part of what its agent sees as its files.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from apps.api.core import files
from apps.api.settings import Settings

FORGOTTEN_AGE = 6 * 3600.0
"""Seconds after which a copy that is not finished belongs to nobody any more."""


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


def draft(settings: Settings, session_id: UUID, generation: int) -> Path | None:
    """An empty directory to clone a session's repository into; None when its workspace has anything in it already."""
    root = _root(settings, session_id)
    if root.is_dir() and any(root.iterdir()):
        return None
    made = settings.workspaces_root / ".clones" / f"{session_id}-{generation}"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o700, parents=True)
    return made


def publish(settings: Settings, session_id: UUID, files: Path) -> None:
    """Make a finished clone the session's workspace. Raises OSError when there are files in it by now."""
    files.rename(_root(settings, session_id))


def create(settings: Settings, session_id: UUID, cwd: str | None) -> Workspace:
    """Make a session's workspace, if it is not there. Raises ValueError when `cwd` leads out of it by a link."""
    root, history = _root(settings, session_id), _history(settings, session_id)
    for directory in (root, history):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    inside = (root / (cwd or ".")).resolve()
    if not inside.is_relative_to(root):
        raise ValueError("cwd leads out of the workspace")
    inside.mkdir(mode=0o700, parents=True, exist_ok=True)
    for copies in history.iterdir():  # the CLI removes what it has not touched for 30 days
        os.utime(copies, follow_symlinks=False)
    return Workspace(root, inside, history)


def remove(settings: Settings, session_id: UUID) -> None:
    """Remove a session's files, if they are on this host."""
    for directory in (_root(settings, session_id), _history(settings, session_id)):
        shutil.rmtree(directory, ignore_errors=True)
    for clone in (settings.workspaces_root / ".clones").glob(f"{session_id}-*"):
        shutil.rmtree(clone, ignore_errors=True)


def _draft(settings: Settings, session_id: UUID) -> Path:
    return settings.workspaces_root / ".forks" / str(session_id)


def copy(settings: Settings, source: UUID, target: UUID, conversations: tuple[UUID, UUID], limit: int) -> None:
    """Copy a session's files, and the copies of earlier versions, aside for a session that is to be made of it.

    Args:
        conversations: under which ids the two sessions' agents keep those copies.
        limit: bytes.

    Raises `files.TooMuch`, OSError; then nothing is left.
    """
    draft, history = _draft(settings, target), _history(settings, source) / str(conversations[0])
    budget = files.Budget(limit)
    try:
        (draft / "history").mkdir(mode=0o700, parents=True)
        if _root(settings, source).is_dir():
            files.copy_tree(_root(settings, source), draft / "files", budget)
        if history.is_dir() and not history.is_symlink():
            files.copy_tree(history, draft / "history" / str(conversations[1]), budget)
    except BaseException:
        discard(settings, target)
        raise


def adopt(settings: Settings, session_id: UUID) -> None:
    """Make what `copy` has copied the session's own. Raises OSError."""
    draft, history = _draft(settings, session_id), _history(settings, session_id)
    history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    (draft / "history").rename(history)
    if (draft / "files").is_dir():
        (draft / "files").rename(_root(settings, session_id))
    draft.rmdir()


def discard(settings: Settings, session_id: UUID) -> None:
    """Remove what `copy` has copied."""
    shutil.rmtree(_draft(settings, session_id), ignore_errors=True)


def discard_forgotten(settings: Settings) -> None:
    """Remove unfinished copies of instances that have died over them."""
    drafts = settings.workspaces_root / ".forks"
    for draft in drafts.iterdir() if drafts.is_dir() else ():
        if time.time() - draft.stat().st_mtime > FORGOTTEN_AGE:
            shutil.rmtree(draft, ignore_errors=True)


def present(settings: Settings) -> list[UUID]:
    """Sessions that have a workspace on this host."""
    found = []
    for path in settings.workspaces_root.iterdir() if settings.workspaces_root.is_dir() else ():
        try:
            found.append(UUID(path.name))
        except ValueError:
            continue
    return found
