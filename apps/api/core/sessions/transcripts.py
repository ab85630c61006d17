"""Conversations as the agent's program writes them, on PostgreSQL: fenced, deduplicated, whatever the entries hold.

`Transcripts` is what the SDK calls a SessionStore. One serves one (session, generation). Entries are kept as text:
jsonb refuses NUL and lone surrogates, and the SDK only needs them back deep-equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NotRequired, TypedDict
from uuid import UUID, uuid4

import asyncpg

from apps.api.core import codec
from apps.api.core.codec import decode, encode
from apps.api.core.lease import Lease
from apps.api.core.pages import PAGE_BYTES, bounded
from apps.api.db import Database, retrying
from apps.api.errors import LeaseLost

# FOR SHARE makes a reaper that takes the session wait for this statement: no entry slips in behind its back.
_APPEND = """
WITH pen AS (
  SELECT id FROM sessions WHERE id = $1 AND generation = $2 FOR SHARE
), added AS (
  INSERT INTO transcript_entries (session_id, project_key, sdk_session_id, subpath, uuid, type, said_at, entry)
  SELECT pen.id, $3, $4, $5, e.uuid, e.type, e.said_at, e.entry
  FROM pen, unnest($6::text[], $7::text[], $8::timestamptz[], $9::text[]) WITH ORDINALITY
    AS e(uuid, type, said_at, entry, place) ORDER BY e.place
  ON CONFLICT DO NOTHING
)
SELECT count(*) FROM pen
"""

MAX_PART = 400
"""Characters of a part of a key; a row of an index takes 2704 bytes. Paths that the CLI makes have fewer than 200."""

# Everything after the prompt is about it: one session has one turn at a time. A prompt that is no client's has an id
# that only the CLI knows. It marks all prompts ("promptSource", seen with 2.1.332); tool results are of "users", too.
_FORGET = """
WITH pen AS (
  SELECT id FROM sessions WHERE id = $1 AND generation = $2 FOR SHARE
), found AS (
  SELECT min(t.id) AS id FROM transcript_entries t, pen WHERE t.session_id = pen.id AND t.subpath = '' AND t.uuid = $3
), prompt AS (
  SELECT CASE WHEN $4 THEN found.id ELSE (
    SELECT max(t.id) FROM transcript_entries t
    WHERE t.session_id = $1 AND t.subpath = '' AND t.type = 'user' AND t.id <= found.id
      AND t.entry LIKE '%"promptSource":%' AND t.entry NOT LIKE '%"type":"tool_result"%'
  ) END AS id FROM found
), gone AS (
  DELETE FROM transcript_entries t USING prompt
  WHERE t.session_id = $1 AND t.subpath = '' AND t.id >= prompt.id RETURNING t.id
)
SELECT (SELECT count(*) FROM pen) AS held, (SELECT count(*) FROM gone) AS gone
"""

_LOAD = """
SELECT entry FROM transcript_entries
WHERE session_id = $1 AND project_key = $2 AND sdk_session_id = $3 AND subpath = $4 ORDER BY id
"""

_SUBKEYS = """
SELECT DISTINCT subpath FROM transcript_entries
WHERE session_id = $1 AND project_key = $2 AND sdk_session_id = $3 AND subpath <> ''
"""

_DELETE = """
DELETE FROM transcript_entries
WHERE session_id = $1 AND project_key = $2 AND sdk_session_id = $3 AND ($4::text IS NULL OR subpath = $4)
"""

_ADOPT = """
UPDATE transcript_entries SET project_key = $3 WHERE session_id = $1 AND project_key = '' AND sdk_session_id = $2
  AND EXISTS (SELECT 1 FROM sessions WHERE id = $1 AND generation = $4)
"""

_FILE_HISTORY = """
SELECT entry FROM transcript_entries WHERE session_id = $1 AND sdk_session_id = $2 AND subpath = ''
  AND type LIKE 'file-history-%' ORDER BY id
"""

_SIZES = """
SELECT id, octet_length(entry) AS size FROM transcript_entries WHERE session_id = $1 AND sdk_session_id = $2 ORDER BY id
"""

_PAGE = "SELECT subpath, entry FROM transcript_entries WHERE id = ANY($1::bigint[]) ORDER BY id"

TAIL_ENTRIES, TAIL_BYTES = 200, 8 * 1024 * 1024
"""Of a conversation, that are looked at for what it ends with."""

_TAIL = bounded(
    """
SELECT id, entry FROM transcript_entries
WHERE session_id = $1 AND sdk_session_id = $2 AND subpath = '' AND type IN ('user', 'assistant')
ORDER BY id DESC LIMIT $3
""",
    "entry",
    "id DESC",
    TAIL_BYTES,
)

_RESUMABLE = """
SELECT EXISTS (SELECT 1 FROM transcript_entries
  WHERE session_id = $1 AND sdk_session_id = $2 AND subpath = '' AND uuid IS NOT NULL)
"""

_TAKEN = """
SELECT EXISTS (SELECT 1 FROM transcript_entries
  WHERE session_id = $1 AND subpath = '' AND type = 'attachment' AND entry LIKE $2)
"""

_ANY = "SELECT EXISTS (SELECT 1 FROM transcript_entries WHERE session_id = $1)"

_BEGIN = "UPDATE sessions SET sdk_session_id = $3 WHERE id = $1 AND generation = $2"


class ConversationKey(TypedDict):
    """What the SDK names a conversation by: a text that it makes of the working directory, and its own id of it."""

    project_key: str
    session_id: str


class Key(ConversationKey):
    """What the SDK names one transcript of a conversation by; without `subpath` the main one."""

    subpath: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a conversation, as it was stored; `subpath` names the subagent's transcript that it is of, if any."""

    subpath: str
    text: str


async def file_history(db: Database, session_id: UUID, sdk_session_id: UUID) -> list[Any]:
    """What a conversation says of copies of files, in order. See `checkpoints`."""
    rows = await db.pool.fetch(_FILE_HISTORY, session_id, str(sdk_session_id))
    return [decode(row["entry"]) for row in rows]


class Transcripts:
    """Transcripts of one session, written as the owner of `generation`.

    The SDK appends a batch at least once and drops it after three failures, so `append` itself outlasts a short
    outage of the database, as long as the lease does.

    Attributes:
        conversation: the one that goes on, by the SDK's id of it.
    """

    def __init__(self, db: Database, lease: Lease, session_id: UUID, generation: int, conversation: UUID) -> None:
        self._db, self._lease = db, lease
        self._session_id, self._generation = session_id, generation
        self.conversation = conversation
        self._forgetful = False
        self._awaited = dict[str, asyncio.Event]()

    def take(self, generation: int) -> None:
        """Write as the owner of this generation from now on."""
        self._generation = generation

    def follow(self, conversation: UUID) -> None:
        """Another conversation is the one that goes on; its id has been stored, or will be."""
        self.conversation = conversation

    async def append(self, key: Key, entries: Sequence[Mapping[str, Any]]) -> None:
        """Store entries in order. Raises LeaseLost when fenced, Unavailable when the database stays away."""
        if not entries or self._forgetful:
            return
        uuids, types, moments = zip(*map(columns_of, entries), strict=True)
        columns = (uuids, types, moments, [encode(entry).decode() for entry in entries])

        async def attempt() -> int:
            self._lease.require()
            async with self._db.pool.acquire() as connection:
                given = (self._session_id, self._generation, *_parts(key), *columns)
                held: int = await connection.fetchval(_APPEND, *given)
                return held

        if await retrying(attempt, until=self._lease.is_over) == 0:
            raise LeaseLost(f"session {self._session_id}: generation {self._generation} may not store transcripts")
        for entry in entries if self._awaited else ():
            said = entry.get("attachment")
            if isinstance(said, Mapping) and (stored := self._awaited.get(str(said.get("source_uuid")))):
                stored.set()

    async def forget(self, prompt: UUID) -> bool:
        """Take a prompt and all that came after it out of the conversation; returns whether it was there.

        What the process goes on to say of it is not stored either: the next one, for which `adopt` is called, knows
        nothing of it. Raises LeaseLost when fenced, Unavailable when the database stays away.
        """
        return await self._forget(str(prompt), True)

    async def forget_turn(self, said: str) -> bool:
        """The same with the last prompt before what the agent has said, by its id, whoever gave the prompt."""
        return await self._forget(said, False)

    async def _forget(self, uuid: str, is_prompt: bool) -> bool:
        before, self._forgetful = self._forgetful, True

        async def attempt() -> asyncpg.Record:
            self._lease.require()
            async with self._db.pool.acquire() as connection:
                given = (self._session_id, self._generation, _storable(uuid), is_prompt)
                return await connection.fetchrow(_FORGET, *given)

        found = await retrying(attempt, until=self._lease.is_over)
        if found["held"] == 0:
            raise LeaseLost(f"session {self._session_id}: generation {self._generation} may not change transcripts")
        gone: bool = found["gone"] > 0
        self._forgetful = before or gone
        return gone

    async def load(self, key: Key) -> list[Any] | None:
        """All entries of a transcript in order, or None when there are none."""
        rows = await self._db.pool.fetch(_LOAD, self._session_id, *_parts(key))
        return [decode(row["entry"]) for row in rows] or None

    async def list_subkeys(self, key: ConversationKey) -> list[str]:
        """Paths of the subagents' transcripts."""
        rows = await self._db.pool.fetch(
            _SUBKEYS, self._session_id, _storable(key["project_key"]), _storable(key["session_id"])
        )
        return [row["subpath"] for row in rows]

    async def delete(self, key: Key) -> None:
        """Remove one subagent's transcript, or without a subpath all of the conversation's."""
        await self._db.pool.execute(
            _DELETE,
            self._session_id,
            *_parts(key)[:2],
            None if key.get("subpath") is None else _storable(key["subpath"]),
        )

    async def adopt(self, sdk_session_id: UUID, project_key: str) -> None:
        """Begin a new process: entries that a fork began with get the key under which the SDK will look for them."""
        self._forgetful = False
        await self._db.pool.execute(_ADOPT, self._session_id, str(sdk_session_id), project_key, self._generation)

    async def file_history(self, sdk_session_id: UUID) -> list[Any]:
        """What the conversation says of copies of files, in order. See `checkpoints`."""
        return await file_history(self._db, self._session_id, sdk_session_id)

    async def pages(self, sdk_session_id: UUID) -> AsyncGenerator[list[Entry]]:
        """All entries of a conversation in order, its subagents' among them, whatever directory it was held in."""
        # Sizes first: who writes the entries to a disk holds no connection meanwhile, and never has many large ones.
        sizes = await self._db.pool.fetch(_SIZES, self._session_id, str(sdk_session_id))
        for ids in _grouped((row["id"], row["size"]) for row in sizes):
            rows = await self._db.pool.fetch(_PAGE, ids)
            yield [Entry(row["subpath"], row["entry"]) for row in rows]

    async def tail(self, sdk_session_id: UUID) -> list[Any]:
        """The newest messages of a conversation, without its subagents', oldest first: TAIL_ENTRIES, or TAIL_BYTES."""
        rows = await self._db.pool.fetch(_TAIL, self._session_id, str(sdk_session_id), TAIL_ENTRIES)
        return [decode(row["entry"]) for row in reversed(rows)]

    def freeze(self) -> None:
        """Store nothing more of what the process says: it is to end, and the conversation to go on without that."""
        self._forgetful = True

    async def exists(self, sdk_session_id: UUID) -> bool:
        """Whether there is a conversation to resume: a message, and not only what the CLI notes before the first one.

        Only messages have a uuid. The CLI refuses to resume without any.
        """
        found: bool = await self._db.pool.fetchval(_RESUMABLE, self._session_id, str(sdk_session_id))
        return found

    def await_taken(self, message: UUID) -> asyncio.Event:
        """Set once the conversation, as it is stored, has a message that is given to the agent in the middle of a turn.
        From now on, until `no_more`."""
        return self._awaited.setdefault(str(message), asyncio.Event())

    def no_more(self, message: UUID) -> None:
        """Nobody waits for this message."""
        self._awaited.pop(str(message), None)

    async def has_taken(self, message: UUID) -> bool:
        """Whether the conversation has a message that was given to the agent in the middle of a turn. Raises
        Unavailable."""
        named = f'%"source_uuid":"{message}"%'  # beside an id of its own

        async def attempt() -> bool:
            found: bool = await self._db.pool.fetchval(_TAKEN, self._session_id, named)
            return found

        return await retrying(attempt, until=self._lease.is_over)

    async def has_any(self) -> bool:
        """Whether an agent has ever said anything in this session."""
        found: bool = await self._db.pool.fetchval(_ANY, self._session_id)
        return found

    async def begin(self) -> UUID:
        """The id of a new conversation, noted before anything of it is stored. Raises LeaseLost when fenced.

        Each process that has nothing to resume is given a new one: an earlier process may have used the last one and
        left something of it behind, here or on a disk, without a message.
        """
        fresh = uuid4()
        status = await self._db.pool.execute(_BEGIN, self._session_id, self._generation, fresh)
        if status != "UPDATE 1":
            raise LeaseLost(f"session {self._session_id}: generation {self._generation} may not begin a conversation")
        self.conversation = fresh
        return fresh


def _grouped(sizes: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Ids in groups of PAGE_BYTES, or of one that is larger."""
    group: list[int] = []
    room = PAGE_BYTES
    for id_, size in sizes:
        if group and size > room:
            yield group
            group, room = [], PAGE_BYTES
        group.append(id_)
        room -= size
    if group:
        yield group


def _storable(part: str) -> str:
    """A part of a key, all of which an agent's process may have made up, as an index of PostgreSQL can hold it."""
    text = codec.clean_text(part)
    return text if len(text) <= MAX_PART else f"{text[:100]}-{sha256(text.encode()).hexdigest()}"


def _parts(key: Key) -> tuple[str, str, str]:
    return _storable(key["project_key"]), _storable(key["session_id"]), _storable(key.get("subpath") or "")


def columns_of(entry: Mapping[str, Any]) -> tuple[str | None, str | None, datetime | None]:
    """What an entry says of itself: its id, its type, and when it was said."""
    return _column(entry.get("uuid")), _column(entry.get("type")), _moment(entry.get("timestamp"))


def _column(text: Any) -> str | None:
    """What an entry says of itself; None where it says nothing. One without an id is stored each time that it comes."""
    return _storable(text) if isinstance(text, str) else None


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (TypeError, ValueError, OverflowError):
        return None
