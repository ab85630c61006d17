"""Rewinding an agent's files: by the CLI's own checkpoints, with a diff of what that would change. What the CLI keeps:
see `core.sessions.checkpoints`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import structlog

from apps.api.core.files import trees
from apps.api.core.files.patches import Change, joined
from apps.api.core.sessions import checkpoints
from apps.api.core.sessions.diffs import COPY
from apps.api.core.sessions.transcripts import Transcripts
from apps.api.core.sessions.workspaces import Workspace
from apps.api.runner.agent.process import Agent

log = structlog.get_logger(__name__)

MAX_FILES = 1_000
"""Files that an answer names."""

MAX_DIFFED_FILES, MAX_DIFFED_BYTES, MAX_DIFF_CHARS = 50, 65_536, 100_000
"""Bounds of a diff: files, bytes of one file, characters in all. What is beyond is left out."""


class CannotRewind(Exception):
    """The CLI refuses. Its message is for the client; `code` is one of RUN_FAILURES."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def obey(
    agent: Agent, workspace: Workspace, store: Transcripts, sdk_session_id: UUID, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Restore the files, or with `dry_run` only say what that would change: the fields of the run's result.

    Raises:
        CannotRewind: as `rewind`.
    """
    message_id = UUID(asked["checkpoint_id"])
    if not asked["dry_run"]:
        return await rewind(agent, workspace, message_id)
    found = await look(agent, workspace, message_id)
    history = await store.file_history(sdk_session_id)
    shown, omitted = await diff(workspace, sdk_session_id, history, message_id, found["files_changed"])
    return {**found, "not_restored": [], "diff": shown, "diff_omitted": omitted}


async def look(agent: Agent, workspace: Workspace, message_id: UUID) -> dict[str, Any]:
    """What rewinding would change: `files_changed` (paths in the workspace), `insertions` and `deletions` (lines).

    Raises:
        CannotRewind: `checkpoint_not_found`.
    """
    said = await agent.rewind(message_id, dry_run=True)
    if not said.get("canRewind"):
        raise CannotRewind("checkpoint_not_found", "The agent's conversation has no checkpoint of this message.")
    changed = [_inside(workspace, path) for path in said.get("filesChanged") or ()]
    return {
        "files_changed": sorted(changed)[:MAX_FILES],
        "insertions": said.get("insertions") or 0,
        "deletions": said.get("deletions") or 0,
    }


async def rewind(agent: Agent, workspace: Workspace, message_id: UUID) -> dict[str, Any]:
    """Restore the files. Returns what `look` said before, and `not_restored`: files that still differ.

    Raises:
        CannotRewind: `checkpoint_not_found`, `rewind_failed`.
    """
    before = await look(agent, workspace, message_id)
    try:
        said = await agent.rewind(message_id, dry_run=False)
    except Exception as error:  # the SDK raises a bare Exception with the CLI's own words
        raise CannotRewind("rewind_failed", f"The agent could not restore the files: {str(error)[:300]}") from error
    if not said.get("canRewind"):
        raise CannotRewind("rewind_failed", f"The agent could not restore the files: {str(said.get('error'))[:300]}")
    # It says nothing of files that it could not restore: a second look does.
    return {**before, "not_restored": (await look(agent, workspace, message_id))["files_changed"]}


def _inside(workspace: Workspace, path: str) -> str:
    pure = PurePosixPath(path)
    return str(pure.relative_to(workspace.root)) if pure.is_relative_to(workspace.root) else path


async def diff(
    workspace: Workspace,
    sdk_session_id: UUID,
    entries: Iterable[Mapping[str, Any]],
    message_id: UUID,
    changed: list[str],
) -> tuple[str, bool]:
    """A patch for `git apply`, from the files as they are to what they were, and whether something of it was left out.

    Args:
        entries: the `file-history-…` entries of the transcript.
        changed: files, as `look` named them.
    """
    standing = checkpoints.standing_for(entries, str(message_id))
    copies = {_inside(workspace, str(workspace.cwd / path)): copy for path, copy in standing.items()}
    directory = workspace.history / str(sdk_session_id)
    return await asyncio.to_thread(_diff, workspace.root, directory, copies, changed)


def _diff(root: Path, directory: Path, copies: Mapping[str, str | None], changed: list[str]) -> tuple[str, bool]:
    changes, omitted = [], len(changed) > MAX_DIFFED_FILES
    for path in changed[:MAX_DIFFED_FILES]:
        copy = copies.get(path, "")
        is_there, was_there = _exists(root, path), copy is not None
        now = _content(root, path) if is_there else None
        then = _content(directory, copy) if copy is not None and COPY.fullmatch(copy) else None
        if (is_there and now is None) or (was_there and then is None):
            omitted = True
        else:
            changes.append(Change(path, now, then))
    text, cut = joined(changes, MAX_DIFF_CHARS)
    return text, omitted or cut


def _exists(root: Path, path: str) -> bool:
    try:
        return trees.exists(root, PurePosixPath(path))
    except ValueError:
        return True


def _content(root: Path, path: str) -> bytes | None:
    try:
        return trees.read(root, PurePosixPath(path), MAX_DIFFED_BYTES)
    except (OSError, ValueError):
        return None
