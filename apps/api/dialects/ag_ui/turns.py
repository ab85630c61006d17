"""Which run a request of a thread is about, and from where its client is told of it.

A thread's id is the name of a session; the client's own id of a run, and that of a user's message, are names of the run
that they began. So what is sent twice is run once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from fastapi import Request

from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.fleet import dispatch
from apps.api.core.sessions import names, requests
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.names import Name, Named, NameTaken
from apps.api.core.sessions.prompts import Submission
from apps.api.dialects.ag_ui import schemas as wire
from apps.api.dialects.ag_ui import snapshot
from apps.api.errors import BadRequest, Conflict, ValidationError
from apps.api.web import attending
from apps.api.web.asking import asked_of
from apps.api.web.attending import Turn
from apps.api.web.callers import count_prompt, policy_of

THREADS, RUNS, MESSAGES = "ag_ui", "ag_ui.run", "ag_ui.message"
"""Names of sessions, and of runs."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told.

    Attributes:
        turn: None: nothing runs or waits.
        state: of the thread, if it has one.
        messages: of the thread, for a client that comes back.
    """

    turn: Turn | None
    state: Any = None
    messages: list[dict[str, Any]] | None = None


def _prefix(body: wire.RunAgentInput) -> str:
    return f"{len(body.threadId)}:{body.threadId}"


async def told(request: Request, core: Core, caller: Principal, agent: str, body: wire.RunAgentInput) -> Told:
    """What a request asks for: begun, gone on with, or found.

    Raises:
        BadRequest: an interrupt is none of the thread's, or its payload is no answer.
        ValidationError: a new thread does not begin with a user's message; the state is too large.
        Conflict, Forbidden, NotFound, RateLimited: as `dispatch.send` and `answering.answer`.
    """
    given = body.checked_state()
    for _ in range(3):
        thread = await attending.named(core, caller, THREADS, body.threadId)
        state = thread.data.get("state") if given is None and thread else given
        if given is not None and thread is not None and thread.data.get("state") != given:
            await names.keep(core.db, caller.tenant_id, Name(THREADS, body.threadId, {"state": given}))
        before = await attending.named(core, caller, RUNS, _prefix(body) + body.runId)
        if before is not None and before.run_id is not None:
            turn = await attending.whole(core, caller, before.run_id)
            answered = frozenset(UUID(one) for one in before.data.get("answered", ()))
            return Told(replace(turn, after=before.data.get("after"), answered=answered), state)
        try:
            return await _of(request, core, caller, agent, body, thread, state)
        except NameTaken:  # the same request, or the same message, came a moment before
            continue
    raise Conflict("This thread is being changed by others: try it again.", code="session_busy")


async def _of(
    request: Request,
    core: Core,
    caller: Principal,
    agent: str,
    body: wire.RunAgentInput,
    thread: Named | None,
    state: Any,
) -> Told:
    last = body.messages[-1] if body.messages else None
    fresh = last is not None and last.role == "user"
    if fresh and last is not None and thread is not None:
        fresh = await attending.named(core, caller, MESSAGES, _prefix(body) + last.id) is None
    history = body.model_copy(update={"messages": body.messages[:-1]}) if fresh else body
    answers = wire.Answers(history)
    turn = None if thread is None else await _answered(core, caller, thread.session_id, answers, alone=not fresh)
    if thread is None and answers.interrupts:
        raise BadRequest("resume: this thread is not known", code="validation_error")
    if fresh and last is not None:
        return Told(await _sent(request, core, caller, agent, body, last, thread, answers, state), state)
    if thread is None:
        raise ValidationError.of("messages", "a new thread begins with a user's message")
    if turn is not None:
        kept = {"after": turn.after, "answered": [str(one) for one in turn.answered]}
        name = Name(RUNS, _prefix(body) + body.runId, kept)
        await names.give(core.db.pool, caller.tenant_id, name, thread.session_id, turn.run.run_id)
        return Told(turn, state)
    left = await attending.unfinished(core, caller, thread.session_id)
    live = left[0] if left else None
    all_ = await snapshot.messages(core, caller, thread.session_id, MESSAGES, _prefix(body), body, live)
    return Told(await attending.whole(core, caller, live) if live else None, state, all_)


async def _answered(
    core: Core, caller: Principal, session_id: UUID, answers: wire.Answers, *, alone: bool
) -> Turn | None:
    """The run that asked what is answered, from where it asked. `alone`: no message comes with the answers."""
    if not answers:
        return None
    asked = {str(one.id): one for one in await asked_of(core, caller.tenant_id, session_id)}
    if unknown := [one for one in answers.interrupts if one not in asked]:
        raise BadRequest(f"resume.interruptId: {unknown[0]} is no interrupt of this thread", code="validation_error")
    matched = []
    for one in asked.values():
        decision = answers.to(one.kind, str(one.id), one.tool_use_id, requests.questions_of(one.data))
        if decision is not None:
            matched.append(one)
            if alone:
                await attending.answer(core, caller, session_id, one.id, one.kind, decision)
    if not matched or not alone:
        return None
    run_id = UUID(matched[-1].data["run_id"])
    return replace(
        await attending.whole(core, caller, run_id),
        after=matched[-1].seq,
        answered=frozenset(one.id for one in matched),
    )


async def _sent(
    request: Request,
    core: Core,
    caller: Principal,
    agent: str,
    body: wire.RunAgentInput,
    last: wire.AgUiMessage,
    thread: Named | None,
    answers: wire.Answers,
    state: Any,
) -> Turn:
    options, config = body.options()
    prompt = wire.prompt_of(last, body.context, [] if thread else body.messages[:-1])
    request.state.limit_headers = await count_prompt(request, caller)

    def decide(row: Mapping[str, Any]) -> dict[str, Any] | None:
        return answers.to(row["type"], row["request_id"], row.get("tool_use_id"), requests.questions_of(row))

    if thread is not None:
        await attending.pass_over(core, caller, thread.session_id, decide)
    kept = {} if state is None else {"state": state}
    submission = Submission(
        prompt=prompt,
        timeout_seconds=options.timeout_seconds or core.settings.request_timeout,
        session_id=thread.session_id if thread else None,
        config=config,
        choice=Choice(options.profile, policy_of(core, caller), agent),
        timeout_asked=options.timeout_seconds is not None,
        surface=THREADS,
        session_names=() if thread else (Name(THREADS, body.threadId, kept),),
        run_names=(Name(RUNS, _prefix(body) + body.runId), Name(MESSAGES, _prefix(body) + last.id)),
    )
    return Turn(await dispatch.send(core, caller.tenant_id, caller.key_id, submission))
