"""The conversation of a session, written where its next process looks for it.

The SDK would do that itself: but it keeps whole conversations in memory, and reads and removes what agents wrote in
the event loop (`claude_agent_sdk._internal.session_resume`, 0.2.189). The files are the CLI's own: a line of JSON for
each entry in `<project>/<id>.jsonl`, those of subagents in `<project>/<id>/<subpath>.jsonl` with what is known of the
subagent in `….meta.json` beside it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from uuid import UUID

import structlog

from apps.api.core.codec import decode, encode
from apps.api.core.sessions.transcripts import Entry, Transcripts

log = structlog.get_logger(__name__)

_SUBPATH = re.compile(r"[\w-][\w.-]{0,199}(/[\w-][\w.-]{0,199}){0,9}", re.ASCII)
"""Of a subagent's transcript. The agent's process names it: nothing else may be written because of it."""


async def write(store: Transcripts, conversation: UUID, project: Path, last: str | None = None) -> bool:
    """Write a conversation into `project`, a directory that only this process writes to.

    `last`: an entry for this process alone, behind the others.

    Returns whether there was one: what the CLI notes of its queue before the first message is none, and it would not
    resume it. Raises what the database raises, OSError.
    """
    found = False
    async with aclosing(store.pages(conversation)) as pages:
        async for entries in pages:
            found = found or any(map(_is_message, entries))
            await asyncio.to_thread(_append, project, str(conversation), entries)
    if found and last is not None:
        await asyncio.to_thread(_append, project, str(conversation), [Entry("", last)])
    if not found:  # else the CLI would take the id of the conversation for one that is in use
        await asyncio.to_thread((project / f"{conversation}.jsonl").unlink, missing_ok=True)
    return found


def _is_message(entry: Entry) -> bool:
    return not entry.subpath and decode(entry.text).get("type") in ("user", "assistant")


def _append(project: Path, conversation: str, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if not entry.subpath:
            path = project / f"{conversation}.jsonl"
        elif _SUBPATH.fullmatch(entry.subpath):
            path = project / conversation / f"{entry.subpath}.jsonl"
        else:
            log.warning("history.unsafe_subpath", conversation=conversation)
            continue
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if entry.subpath and (known := _metadata(entry.text)) is not None:
            path.with_suffix(".meta.json").write_bytes(encode(known))
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(entry.text + "\n")


def _metadata(text: str) -> dict[str, object] | None:
    if '"agent_metadata"' not in text:
        return None
    entry = decode(text)
    if entry.pop("type", None) != "agent_metadata":
        return None
    return dict(entry)
