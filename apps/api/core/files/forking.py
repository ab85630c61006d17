"""The files of a fork: those of another session, under the names by which the fork's agent knows them.

No content is copied: both manifests name the same packs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from uuid import UUID

from apps.api.core.files import trees
from apps.api.core.files.manifest import Entries


def fork(
    entries: Entries, places: Mapping[str, Path], sessions: tuple[UUID, UUID], conversations: tuple[UUID, UUID]
) -> Entries:
    """What another session's files are for its fork.

    Links stay as they are, but for those that lead back to the original: what is written through the fork's links must
    not change it.

    Args:
        places: where the original's directories are on a host that has them.
        sessions, conversations: ids of the original and of the fork, by which their agents keep copies of files and
        what
            tools have put out.
    """
    names = {str(conversations[0]): str(conversations[1]), str(sessions[0]): str(sessions[1])}
    forked = {}
    for path, entry in entries.items():
        if entry.kind == "link":
            part, _, inside = path.partition("/")
            leads = _retarget(entry.digest, part, PurePosixPath(inside).parent, places[part], entries, names)
            entry = entry._replace(digest=leads)
        forked[_rename(path, sessions, conversations)] = entry
    return forked


def _rename(path: str, sessions: tuple[UUID, UUID], conversations: tuple[UUID, UUID]) -> str:
    """The name of what is kept for a conversation: below `history` and `output`, and in the latter also where tasks
    have put it out, by a key that is made of the working directory."""
    part, *ways = path.split("/")
    before, after = str(conversations[0]), str(conversations[1])
    if part in ("history", "output") and ways:
        if part == "output" and ways[0].startswith("claude-") and len(ways) > 1:
            ways[1] = ways[1].replace(str(sessions[0]), str(sessions[1]))
            if len(ways) > 2 and ways[2] == before:
                ways[2] = after
        elif ways[0] == before:
            ways[0] = after
    return "/".join((part, *ways))


def _retarget(
    leads: str, part: str, inside: PurePosixPath, place: Path, entries: Entries, names: Mapping[str, str]
) -> str:
    """Where a link in the fork leads, which in `place / inside` leads to `leads`. However a path is spelt, and through
    whatever it leads, the original's name is in it."""
    plain = Path(os.path.normpath(place / inside / leads))  # by names alone: what they lead through is the agent's
    if plain == place or (plain.is_relative_to(place) and f"{part}/{plain.relative_to(place)}" in entries):
        if trees.stays_below(leads, len(inside.parts)):
            return leads
        return os.path.join("/".join([".."] * len(inside.parts)), plain.relative_to(place))
    for before, after in names.items():
        leads = leads.replace(before, after)
    return leads
