"""From what a request says to a run: a new one, or one that waited for what the request brings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from fastapi import Request

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.codec import encode
from apps.api.core.context import Core
from apps.api.core.fleet import answering, dispatch
from apps.api.core.sessions import admission, forks, names, requests, runs
from apps.api.core.sessions.names import Name, Named, NameTaken
from apps.api.core.sessions.prompts import OnBusy, Submission, Submitted
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.openai import content
from apps.api.dialects.openai.errors import locked, refused, unknown
from apps.api.dialects.openai.history import Entry, History, key, rendered, uuid_of
from apps.api.dialects.openai.options import Options
from apps.api.errors import NotFound
from apps.api.web.callers import policy_of

SURFACE = "openai"
"""Of sessions that are begun here, and of names that are given here."""

RETRY_SECONDS = 600.0
"""For which a request that a client sends again is known. It gives a request up after ten minutes at the latest."""

NEWEST = 20
"""Runs among which the newest one of a client is looked for: the agent's own turns come between."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Attributes:
        history: all that it says; `param`: where that stands in it.
        about: what else tells conversations apart that are sent whole.
        name: what the answer is called, with what is kept of it.
        parent: the answer that it goes on behind; `conversation`: the one that it belongs to.
    """

    core: Core
    caller: Principal
    options: Options
    history: History
    param: str
    about: Sequence[Any]
    repeated: Repetition
    name: Name | None = None
    parent: Named | None = None
    conversation: Named | None = None
    told: Sequence[Entry] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A run, or the part of it that is one answer. `settled`: requests that were answered before this part."""

    run: Submitted
    settled: frozenset[UUID] = field(default_factory=frozenset)
    name: Named | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Repetition:
    """How a request is known when it is sent again: by its fingerprint, or the key that its client has given it."""

    fingerprint: str
    key: str | None
    is_retry: bool

    @classmethod
    def of(cls, request: Request, caller: Principal, body: Any) -> Repetition:
        key_ = request.headers.get("idempotency-key", "")[:200] or None
        parts = [str(caller.key_id), request.url.path, body, key_]
        count = request.headers.get("x-stainless-retry-count", "0")[:3]
        is_retry = key_ is not None or (count.isdecimal() and count.isascii() and int(count) > 0)
        return cls(hashlib.sha256(encode(parts)).hexdigest(), key_, is_retry)

    @property
    def text(self) -> str:
        return f"req:{self.fingerprint}"

    def name(self, settled: frozenset[UUID], answer: Name | None) -> Name:
        data = {"at": clock.now().timestamp()} | ({"answer": answer.text} if answer else {})
        return with_settled(Name(SURFACE, self.text, data), settled)


async def send(asked: Asked) -> Started:
    """Begin to answer.

    Raises:
        BadRequest: what was asked for cannot be, or calls are answered that wait no more.
        Conflict, NotFound, ValidationError, Forbidden, RateLimited: as `prompts.submit`.
    """
    core, tenant_id, repeated = asked.core, asked.caller.tenant_id, asked.repeated
    if repeated.is_retry and (before := await _before(asked)):
        return before
    if not repeated.is_retry:
        await names.take(core.db, tenant_id, SURFACE, repeated.text)
    earlier, new = asked.history.split()
    if not new:
        raise refused(asked.param, f"{asked.param}: must end with what the user, or a tool, says.", "invalid_value")
    outputs = [entry for entry in new if entry.kind == "output"]
    said = [entry for entry in new if entry.kind == "user"]
    states = await _states(asked, outputs)
    if states is not None:
        started = await _answer(asked, outputs, states, is_all=not said)
        if not said:
            return started
        return await _prompt(asked, said, session_id=started.run.session_id, before=rendered(asked.told))
    if asked.conversation is not None:
        busy: OnBusy = "interrupt" if await _waits(asked, asked.conversation.session_id) else "reject"
        before_it = rendered([*asked.told, *earlier])
        return await _prompt(asked, said, session_id=asked.conversation.session_id, on_busy=busy, before=before_it)
    if asked.parent is not None:
        return await _behind(asked, asked.parent, said, rendered(earlier))
    if not outputs and (found := await _known(asked, earlier)):
        return await _behind(asked, found, said)
    last = said or [Entry("user", (("text", "Go on.", asked.param),))]
    return await _prompt(asked, last, before=rendered([*earlier, *outputs]))


async def _before(asked: Asked) -> Started | None:
    core, tenant_id = asked.core, asked.caller.tenant_id
    found = (await names.find(core.db, tenant_id, SURFACE, asked.repeated.text)).get(asked.repeated.text)
    if found is None or found.run_id is None or clock.now().timestamp() - found.data["at"] > RETRY_SECONDS:
        return None
    await require(core, asked.caller, found)
    if (await runs.get(core.db, tenant_id, found.run_id))["status"] == "interrupted":
        await names.take(core.db, tenant_id, SURFACE, asked.repeated.text)  # its client had left
        return None
    lies = await runs.extent(core.db, tenant_id, found.run_id)
    text = found.data.get("answer")
    answer = (await names.find(core.db, tenant_id, SURFACE, text)).get(text) if text else None
    run = Submitted(found.session_id, found.run_id, lies.start, repeated=True)
    return Started(run, settled_of(found.data), answer, again=True)


async def require(core: Core, caller: Principal, found: Named) -> None:
    """Whether the caller's key may use what a name stands for. Raises Forbidden."""
    await admission.may_touch(core.db.pool, caller.tenant_id, policy_of(core, caller), session_id=found.session_id)


# --- calls ---------------------------------------------------------------------------------------------------------


async def _states(asked: Asked, outputs: Sequence[Entry]) -> list[dict[str, Any]] | None:
    """The requests that these outputs answer; None where they are not ours, or were answered before in a conversation
    that is told anew. Raises BadRequest `call_expired`."""
    if not outputs:
        return None
    found = list[dict[str, Any]]()
    for entry in outputs:
        request_id = uuid_of("call", entry.id)
        try:
            state = await requests.get(asked.core.db, asked.caller.tenant_id, request_id) if request_id else None
        except NotFound:
            state = None
        if state is None or state["type"] != "client_tool":
            if asked.parent or asked.conversation:
                raise refused(asked.param, f"No tool call found for {entry.id[:100]!r}.", "invalid_value")
            return None
        found.append(state)
    if len({state["run_id"] for state in found}) != 1:
        raise refused(asked.param, "These tool calls are not of one answer.", "invalid_value")
    await admission.may_touch(
        asked.core.db.pool,
        asked.caller.tenant_id,
        policy_of(asked.core, asked.caller),
        session_id=UUID(found[0]["session_id"]),
    )
    if any(state["status"] == "closed" for state in found):
        raise refused(asked.param, "These tool calls have expired: nobody waits for their output.", "call_expired")
    if any(state["status"] == "answered" for state in found):
        if asked.parent or asked.conversation:
            raise refused(asked.param, "These tool calls have been answered before.", "invalid_value")
        return None
    return found


async def _answer(asked: Asked, outputs: Sequence[Entry], states: Sequence[dict[str, Any]], *, is_all: bool) -> Started:
    """Let the run go on that waits for these calls. `is_all`: its rest is what is told of it; else the answer is that
    to what the user says beside them."""
    core, tenant_id = asked.core, asked.caller.tenant_id
    session_id, run_id = UUID(states[0]["session_id"]), UUID(states[0]["run_id"])
    open_ = await requests.list_page(core.db, tenant_id, session_id, status="open", limit=200, cursor=None)
    results = {UUID(state["request_id"]): entry.text for state, entry in zip(states, outputs, strict=True)}
    asking = [UUID(one["request_id"]) for one in open_.data if one["run_id"] == str(run_id)]
    settled = frozenset({*results, *asking, *await _earlier(asked, session_id, run_id)})
    lies = await runs.extent(core.db, tenant_id, run_id)
    given = [with_settled(asked.name, settled)] if asked.name else []
    for name in (*given, asked.repeated.name(settled, asked.name)) if is_all else ():
        await names.take(core.db, tenant_id, SURFACE, name.text)
        await names.give(core.db.pool, tenant_id, name, session_id, run_id)
    by = {"type": "key", "key_id": str(asked.caller.key_id), "key_name": asked.caller.key_name}
    policy = policy_of(core, asked.caller)
    for request_id in (*results, *(one for one in asking if one not in results)):
        text = results.get(request_id)
        block = {"type": "text", "text": ("The client gave no output." if text is None else text) or "(no output)"}
        decision = {"decision": "answered", "content": [block], "is_error": text is None}
        await answering.answer(core, tenant_id, session_id, request_id, "client_tool", decision, by, policy)
    return Started(Submitted(session_id, run_id, lies.start), settled)


async def _earlier(asked: Asked, session_id: UUID, run_id: UUID) -> set[UUID]:
    """What was answered of this run in parts before."""
    page = await requests.list_page(
        asked.core.db, asked.caller.tenant_id, session_id, status="answered", limit=200, cursor=None
    )
    return {UUID(one["request_id"]) for one in page.data if one["run_id"] == str(run_id)}


def with_settled(name: Name, settled: frozenset[UUID]) -> Name:
    """A name that also says where in its run the answer begins."""
    return replace(name, data={**name.data, "settled": [one.hex for one in settled]})


def settled_of(data: Mapping[str, Any]) -> frozenset[UUID]:
    """The inverse of `with_settled`."""
    return frozenset(UUID(one) for one in data.get("settled", ()))


async def _waits(asked: Asked, session_id: UUID) -> bool:
    page = await requests.list_page(
        asked.core.db, asked.caller.tenant_id, session_id, status="open", limit=1, cursor=None
    )
    return bool(page.data)


# --- prompts -------------------------------------------------------------------------------------------------------


async def _known(asked: Asked, earlier: Sequence[Entry]) -> Named | None:
    """The session in which this was said, with the run that said the last of it."""
    if not earlier:
        return None
    core, tenant_id = asked.core, asked.caller.tenant_id
    request_id = uuid_of("call", earlier[-1].id) if earlier[-1].kind == "call" else None
    if request_id is not None:
        try:
            state = await requests.get(core.db, tenant_id, request_id)
        except NotFound:
            return None
        found = Named("", UUID(state["session_id"]), UUID(state["run_id"]), {}) if state["run_id"] else None
    else:
        text = key(asked.about, earlier)
        found = (await names.find(core.db, tenant_id, SURFACE, text)).get(text)
    if found is not None:
        await require(core, asked.caller, found)
    return found


async def _behind(asked: Asked, found: Named, said: Sequence[Entry], before: str | None = None) -> Started:
    """Go on after a run: in its session if that was the last thing said there, else in a fork."""
    core, tenant_id = asked.core, asked.caller.tenant_id
    page = await runs.list_page(core.db, tenant_id, found.session_id, limit=NEWEST, cursor=None)
    newest = next((run["run_id"] for run in page.data if run["origin"] == "client"), None)
    if newest is None or newest == str(found.run_id):
        busy: OnBusy = "interrupt" if await _waits(asked, found.session_id) else "enqueue"
        return await _prompt(asked, said, session_id=found.session_id, on_busy=busy, before=before)
    assert found.run_id is not None  # noqa: S101 - for the type checker
    end = (await runs.extent(core.db, tenant_id, found.run_id)).end
    if end is None:
        raise locked("What this goes on behind is not over, and others have gone on behind it.")
    return await _prompt(asked, said, session_id=found.session_id, fork_at=end, before=before)


async def _prompt(
    asked: Asked,
    said: Sequence[Entry],
    *,
    session_id: UUID | None = None,
    fork_at: int | None = None,
    on_busy: OnBusy = "enqueue",
    before: str | None = None,
) -> Started:
    core, caller = asked.core, asked.caller
    repeated = asked.repeated
    run_names = [repeated.name(frozenset(), asked.name), *([asked.name] if asked.name else [])]
    submission = Submission(
        prompt=await content.prompt(core, caller.tenant_id, said, before, asked.param),
        timeout_seconds=core.settings.request_timeout,
        session_id=session_id,
        config=asked.options.config(),
        choice=asked.options.choice(core, caller),
        surface=SURFACE,
        on_busy=on_busy,
        run_names=run_names,
        idempotency=Idempotency.given(repeated.key, SURFACE, repeated.fingerprint),
    )
    try:
        return await _submit(asked, submission, fork_at)
    except NameTaken:  # the same request is sent twice at once: the other one is who is found by it
        return await _submit(asked, replace(submission, run_names=run_names[1:]), fork_at)


async def _submit(asked: Asked, submission: Submission, fork_at: int | None) -> Started:
    core, caller = asked.core, asked.caller
    if fork_at is None:
        run = await dispatch.send(core, caller.tenant_id, caller.key_id, submission)
    else:
        wanted = forks.Fork(submission, begins=True, at_seq=fork_at)
        made = (await dispatch.fork(core, caller.tenant_id, caller.key_id, wanted)).run
        assert made is not None  # noqa: S101 - it begins with a prompt
        run = made
    if not run.repeated:
        return Started(run)
    given = await names.of_session(core.db, caller.tenant_id, run.session_id, SURFACE)
    first = next((one for one in reversed(given) if one.run_id == run.run_id and one.text.startswith("resp_")), None)
    return Started(run, name=first, again=True)


async def remember(asked: Asked, started: Started, said: Sequence[str]) -> None:
    """Let the next request find the conversation that this answer ended: it sends it whole, with these words."""
    answer = [Entry("assistant", (("text", text, ""),)) for text in said]
    name = Name(SURFACE, key(asked.about, [*asked.history.entries, *answer]))
    await names.give(asked.core.db.pool, asked.caller.tenant_id, name, started.run.session_id, started.run.run_id)


def found_or(found: dict[str, Named], text: str, what: str, param: str | None = None) -> Named:
    """Raises NotFound."""
    if text not in found:
        raise unknown(what, text, param)
    return found[text]
