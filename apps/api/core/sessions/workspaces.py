"""The directories of a session, below `WORKSPACES_DIR`, at the same path on every host.

| directory | what is in it |
|---|---|
| `<session id>` | the workspace: its files |
| `.homes/<session id>` | HOME of its agents |
| `.outputs/<session id>` | what their tools and tasks have put out, too long for the conversation |
| `.checkpoints/<session id>` | copies of files that rewinding needs |
| `.configs/<session id>` | a link to the configuration of the agent process that runs, or was the last to run |

Agents write to the first four, so nothing below them is opened but through `files` and `removal`. The fifth gives the
texts of a conversation a path that stays, while each process gets a configuration of its own: see
`runner.agent.scratch`.

`.stored` holds what the host knows of the copies in the first four: see `core.files.record`.

What is not whole yet is aside: clones of repositories in `.clones`, what an import brings in `.imports`, and what an
export takes from the store in `.exports`. Sessions that are not there yet, and have directories already, have a mark in
`.ahead`. What is to be removed goes to `.removed` first, so that what resists is in
nobody's way.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from uuid import UUID, uuid4

import structlog

from apps.api.core.files import record, removal, trees
from apps.api.core.files.tarball import Member
from apps.api.settings import Settings

log = structlog.get_logger(__name__)

FORGOTTEN_AGE = 6 * 3600.0
"""Seconds after which a copy that is not finished belongs to nobody any more, and removing is tried again."""

MAX_LISTED = 100_000
"""Names that one look into a directory takes."""

MAX_TOUCHED = 1_000
"""Conversations whose copies of files are kept from being cleared up by the CLI."""

_LATER = re.compile(r"later-([0-9]{1,12})-")
"""How the name of what could not be removed begins: with the time in seconds at which that is tried again."""

UPLOADS = ".uploads"
"""The directory below WORKSPACES_DIR in which files wait until all of them has come."""

_AHEAD = ".ahead"

_PARTS = {"files": "", "home": ".homes", "output": ".outputs", "history": ".checkpoints"}


@dataclass(frozen=True, slots=True)
class Workspace:
    """A session's directories; inside of the first the agent's working directory, and `more` of the like."""

    root: Path
    cwd: Path
    history: Path
    home: Path
    output: Path
    more: tuple[Path, ...] = field(default=(), kw_only=True)


def places(settings: Settings, session_id: UUID) -> dict[str, Path]:
    """A session's own directories, by what is in them."""
    return {part: settings.workspaces_root / above / str(session_id) for part, above in _PARTS.items()}


def root_of(settings: Settings, session_id: UUID) -> Path:
    """Where a session's files are, or would be."""
    return settings.workspaces_root / str(session_id)


def draft(settings: Settings, session_id: UUID, generation: int) -> Path | None:
    """An empty directory to clone a session's repository into; None when its workspace has anything in it already."""
    if not trees.is_empty(root_of(settings, session_id)):
        return None
    made = settings.workspaces_root / ".clones" / f"{session_id}-{generation}"
    put_away(settings, made)
    trees.make_directory(made)
    return made


def publish(settings: Settings, session_id: UUID, clone: Path) -> None:
    """Make a finished clone the session's workspace. Raises OSError when there are files in it by now."""
    clone.rename(root_of(settings, session_id))


def size(settings: Settings, session_id: UUID) -> int:
    """Bytes on disk in a session's directories. Raises trees.TooMuch, OSError. Blocks."""
    return sum(trees.size(place) for place in places(settings, session_id).values())


def create(settings: Settings, session_id: UUID, cwd: str | None, more: Sequence[str] | None = None) -> Workspace:
    """Make a session's directories, if they are not there. Raises ValueError when `cwd`, or one of `more`, leads out of
    the workspace by a link, OSError."""
    own = places(settings, session_id)
    for directory in own.values():
        trees.make_directory(directory)
    inside, *beside = (trees.make_way(own["files"], PurePosixPath(path)) for path in (cwd or ".", *(more or ())))
    trees.touch_all(own["history"], MAX_TOUCHED)  # the CLI removes what it has not touched for 30 days
    return Workspace(own["files"], inside, own["history"], own["home"], own["output"], more=tuple(beside))


def mark_ahead(settings: Settings, session_id: UUID) -> None:
    """Say that there will be such a session: its directories are somebody's, though nobody knows it. Raises OSError."""
    mark = settings.workspaces_root / _AHEAD / str(session_id)
    trees.make_directory(mark.parent)
    mark.touch(mode=0o600)


def unmark_ahead(settings: Settings, session_id: UUID) -> None:
    """Say that it is there, or never will be. Raises OSError."""
    (settings.workspaces_root / _AHEAD / str(session_id)).unlink(missing_ok=True)


def link_results(workspace: Workspace, conversation: UUID, project: Path) -> None:
    """Let what the tools of a conversation put out come to the session's own directory for it.

    Args:
        project: where the CLI will keep the conversation, a directory of which the next process knows nothing.

    Raises OSError.
    """
    results = trees.make_real(workspace.output, str(conversation))
    above = project / str(conversation)
    above.mkdir(mode=0o700, parents=True)
    (above / "tool-results").symlink_to(results)


def point(settings: Settings, session_id: UUID, config: Path) -> Path:
    """The path that stays, from now on for `config`, the configuration of the agent process that is to start."""
    link = settings.workspaces_root / ".configs" / str(session_id)
    trees.make_directory(link.parent)
    draft = link.with_name(f".{uuid4().hex}")
    draft.symlink_to(config)
    draft.replace(link)
    return link


# --- removing ------------------------------------------------------------------------------------------------------


def _of(settings: Settings, session_id: UUID) -> tuple[Path, ...]:
    """All that a host has of a session. The record first: without it what is left counts as nothing that is known."""
    link = settings.workspaces_root / ".configs" / str(session_id)
    return (*record.files(settings, session_id), *places(settings, session_id).values(), link)


def put_away(settings: Settings, path: Path) -> None:
    """Remove whatever is at `path`, if anything. What cannot be removed is out of the way: see `discard_forgotten`.

    Raises OSError when it cannot even be moved."""
    if grave := _move(settings, path):
        _bury(grave)


def _move(settings: Settings, path: Path) -> Path | None:
    grave = settings.workspaces_root / ".removed" / uuid4().hex
    try:
        trees.make_directory(grave.parent)
        path.rename(grave)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return grave


def move_away(settings: Settings, session_id: UUID, until: float) -> list[Path]:
    """Move a session's directories where nobody looks for them, if they are on this host, and return where they are:
    for `bury`. Nothing is moved later than `until`, in monotonic seconds. Raises OSError."""
    moved = []
    for path in _of(settings, session_id):
        if time.monotonic() < until and (grave := _move(settings, path)):
            moved.append(grave)
    return moved


def bury(graves: Sequence[Path]) -> None:
    """Remove what was moved away. What cannot be removed is tried again: see `discard_forgotten`."""
    for grave in graves:
        _bury(grave)


def _bury(grave: Path) -> None:
    try:
        removal.remove(grave)
    except Exception as error:
        log.warning("workspaces.not_removed", path=str(grave), error=error)
        with suppress(OSError):
            grave.rename(grave.with_name(f"later-{time.time() + FORGOTTEN_AGE:.0f}-{uuid4().hex}"))


def remove(settings: Settings, session_id: UUID) -> None:
    """Remove a session's directories, if they are on this host. Raises OSError when one cannot be put away."""
    clones = settings.workspaces_root / ".clones"
    mine = [clones / name for name in _names(clones) if name.startswith(f"{session_id}-")]
    for path in (*_of(settings, session_id), *mine):
        put_away(settings, path)


def discard_forgotten(settings: Settings) -> None:
    """Remove unfinished copies of instances that have died over them, and what could not be removed before. Nothing
    that is found there keeps the rest from being looked at."""
    for above in (
        settings.workspaces_root / name for name in (".imports", ".exports", ".clones", _AHEAD, UPLOADS, ".removed")
    ):
        try:
            found = list(_names(above))
        except OSError as error:
            log.warning("workspaces.not_removed", path=str(above), error=error)
            continue
        for path in (above / name for name in found):
            try:
                if above.name == ".removed":
                    _bury_again(path)
                elif time.time() - path.lstat().st_mtime > FORGOTTEN_AGE:
                    put_away(settings, path)
            except Exception as error:
                log.warning("workspaces.not_removed", path=str(path), error=error)


def _bury_again(grave: Path) -> None:
    until = _LATER.match(grave.name)
    if until is None or int(until[1]) < time.time():
        _bury(grave)


def present(settings: Settings) -> list[UUID]:
    """Sessions that have a directory on this host, without those that are not there yet."""
    found = set()
    for above in {*_PARTS.values(), ".configs", record.RECORDS}:
        with suppress(OSError):
            for name in _names(settings.workspaces_root / above):
                with suppress(ValueError):
                    found.add(UUID(name))
    # Marks afterwards: a mark comes before its directories, and goes when the session is there.
    return sorted(found - {UUID(name) for name in _names(settings.workspaces_root / _AHEAD)})


def _names(directory: Path) -> Iterator[str]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
        yield from [entry.name for _, entry in zip(range(MAX_LISTED), entries, strict=False)]


# --- exports and imports -------------------------------------------------------------------------------------------


def aside(settings: Settings) -> tuple[Path, dict[str, Path]]:
    """Where a session's directories may be made that nobody's agent is to know; and the directory that holds them, to
    be removed by `put_away`."""
    above = settings.workspaces_root / ".exports" / uuid4().hex
    return above, {part: above / part for part in _PARTS}


def _draft(settings: Settings, session_id: UUID) -> Path:
    return settings.workspaces_root / ".imports" / str(session_id)


def _rename(directory: Path, before: str, after: str) -> None:
    if trees.is_directory(directory / before):
        (directory / before).rename(directory / after)


def _rename_outputs(output: Path, sessions: tuple[UUID, UUID], conversations: tuple[UUID, UUID]) -> None:
    """Give what tools and tasks have put out the paths that the conversation names."""
    before, after = (str(conversation) for conversation in conversations)
    _rename(output, before, after)
    for tasks in (output / name for name in _names(output) if name.startswith("claude-")):
        for key in _names(tasks) if trees.is_directory(tasks) else ():
            if trees.is_directory(tasks / key):
                _rename(tasks / key, before, after)
            _rename(tasks, key, key.replace(str(sessions[0]), str(sessions[1])))


def receive(settings: Settings, session_id: UUID) -> None:
    """Begin to place what comes from elsewhere aside, for a session that is to be. Raises OSError."""
    trees.make_directory(_draft(settings, session_id))


def received(settings: Settings, session_id: UUID) -> dict[str, Path]:
    """The directories that came."""
    draft = _draft(settings, session_id)
    return {part: draft / part for part in _PARTS if trees.is_directory(draft / part)}


def place_received(
    settings: Settings, session_id: UUID, part: str, path: PurePosixPath | None, member: Member, leads: str
) -> bool:
    """Place a file, directory or link that came. False of a link that leads elsewhere, which is left out.

    Args:
        path: in the directory `part` of the session; None: that directory.
        leads: where a link is to lead.

    Raises ValueError for a path that leads out or is there twice, OSError.
    """
    draft = _draft(settings, session_id) / part
    if path is None and member.kind != "directory":
        raise ValueError("is no directory")
    trees.make_directory(draft)
    if path is None:
        return True
    try:
        if member.kind == "directory":
            os.close(trees.place(draft, path / "x"))
        elif member.kind == "file":
            trees.write_new(draft, path, member.mode, member.pieces())
        elif trees.stays_below(leads, len(path.parts) - 1):
            trees.link_new(draft, path, leads)
        elif _in_own(settings, session_id, plain := os.path.normpath(leads)):
            trees.link_new(draft, path, plain)
        else:
            return False
    except FileExistsError as error:
        raise ValueError("is there twice") from error
    return True


def _in_own(settings: Settings, session_id: UUID, path: str) -> bool:
    return any(PurePosixPath(path).is_relative_to(own) for own in places(settings, session_id).values())


def rename_received(settings: Settings, session_id: UUID, source: UUID, conversation: UUID) -> None:
    """Give what tools have put out, and copies of files, the names by which the new session knows them."""
    draft = _draft(settings, session_id)
    _rename(draft / "history", str(conversation), str(session_id))
    _rename_outputs(draft / "output", (source, session_id), (conversation, session_id))


def discard(settings: Settings, session_id: UUID) -> None:
    """Remove what was received."""
    put_away(settings, _draft(settings, session_id))
