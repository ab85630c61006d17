"""Which run a request of a chat is about, and from where its client is told of it.

A chat's id is the name of a session, and that of a user's message the name of its run, so that what is sent twice, or
from two tabs at once, finds the run that is there. An assistant's message has the id of its run.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from fastapi import Request

from apps.api.auth import Principal
from apps.api.core.context import Core
from apps.api.core.fleet import cancellation, dispatch
from apps.api.core.sessions import forks, requests, runs
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.names import Name, Named, NameTaken
from apps.api.core.sessions.prompts import Submission
from apps.api.core.tenant.presets import as_id
from apps.api.dialects.ai_sdk import schemas as wire
from apps.api.errors import Conflict, NotFound, ValidationError
from apps.api.web import attending
from apps.api.web.asking import asked_of
from apps.api.web.attending import Turn
from apps.api.web.callers import count_prompt, policy_of

CHATS, MESSAGES = "ai_sdk", "ai_sdk.message"
"""Names of sessions, and of runs."""


async def found(core: Core, caller: Principal, chat: str) -> Named | None:
    """The session of a chat, if there is one. Raises Forbidden where the key may not touch it."""
    return await attending.named(core, caller, CHATS, chat)


async def live(core: Core, caller: Principal, chat: str) -> Turn | None:
    """The newest run of a chat that is not over."""
    named = await found(core, caller, chat)
    left = [] if named is None else await attending.unfinished(core, caller, named.session_id)
    return await attending.whole(core, caller, left[0]) if left else None


async def turn(request: Request, core: Core, caller: Principal, body: wire.ChatBody) -> Turn:
    """What a request asks for: begun, gone on with, or found.

    Raises:
        NotFound: `session_not_found`, `run_not_found`, `message_not_found`.
        ValidationError: the last message is neither a user's nor answers what its run asks.
        Conflict, Forbidden, RateLimited: as `dispatch.send`, `dispatch.fork` and `answering.answer`.
    """
    named, last = await found(core, caller, body.id), body.messages[-1]
    if last.role == "assistant" and body.trigger == "submit-message":
        if named is None:
            raise NotFound.of("session")
        return await _continued(core, caller, named.session_id, last)
    if last.role != "user":
        raise ValidationError.of("messages", "the last message must be a user's, or answer what the agent asks")
    name = Name(MESSAGES, f"{len(body.id)}:{body.id}{last.id}")
    for _ in range(3):
        before = await attending.named(core, caller, MESSAGES, name.text)
        again = named is not None and (body.trigger == "regenerate-message" or body.messageId == last.id)
        if before is not None and before.run_id is not None and not again:
            return await attending.whole(core, caller, before.run_id)  # the same request once more
        with suppress(NameTaken):  # somebody else was first: a tab beside this one, or the same request before
            if again and named is not None:
                return await _forked(request, core, caller, body, named.session_id, before, name)
            return await _sent(request, core, caller, body, named, name)
        named, body = await found(core, caller, body.id), body.model_copy(update=_AS_NEW)
    raise Conflict("This chat is being changed by others: try it again.", code="session_busy")


_AS_NEW = {"trigger": "submit-message", "messageId": None}
"""Of two that are to edit the same message, or to have it answered again, the second gets what the first one began."""


def _submission(core: Core, caller: Principal, body: wire.ChatBody, name: Name) -> Submission:
    return Submission(
        prompt="",
        timeout_seconds=body.timeout_seconds or core.settings.request_timeout,
        config=body.config,
        choice=Choice(body.profile, policy_of(core, caller), body.agent),
        timeout_asked=body.timeout_seconds is not None,
        surface=CHATS,
        session_names=(Name(CHATS, body.id),),
        run_names=(name,),
    )


async def _count(request: Request, caller: Principal) -> None:
    request.state.limit_headers = await count_prompt(request, caller)


async def _sent(
    request: Request, core: Core, caller: Principal, body: wire.ChatBody, named: Named | None, name: Name
) -> Turn:
    *earlier, last = body.messages
    prompt = wire.prompt_of(last, earlier if named is None else None)
    await _count(request, caller)
    submission = replace(_submission(core, caller, body, name), prompt=prompt)
    if named is not None:
        answers = next((wire.Answers(m) for m in reversed(earlier) if m.role == "assistant"), None)

        def decide(row: Mapping[str, Any]) -> dict[str, Any] | None:
            if answers is None:
                return None
            return answers.to(row["type"], row["request_id"], row.get("tool_use_id"), requests.questions_of(row))

        await attending.pass_over(core, caller, named.session_id, decide)
        submission = replace(submission, session_id=named.session_id, session_names=())
    return Turn(await dispatch.send(core, caller.tenant_id, caller.key_id, submission))


async def _forked(
    request: Request,
    core: Core,
    caller: Principal,
    body: wire.ChatBody,
    session_id: UUID,
    before: Named | None,
    name: Name,
) -> Turn:
    """The chat goes on in a fork that knows nothing of the message, nor of what came after it."""
    if before is None or before.run_id is None:
        raise NotFound.of("message")
    prompt = wire.prompt_of(body.messages[-1])
    await _count(request, caller)
    submission = replace(_submission(core, caller, body, name), prompt=prompt, session_id=session_id)
    cut = forks.Fork(submission, begins=True, before_run=before.run_id)
    run = (await dispatch.fork(core, caller.tenant_id, caller.key_id, cut)).run
    assert run is not None  # noqa: S101 - for the type checker
    for left in await attending.unfinished(core, caller, session_id):
        with suppress(Conflict, NotFound):  # nobody reads it any more
            await cancellation.cancel(core, caller.tenant_id, left)
    return Turn(run)


async def _continued(core: Core, caller: Principal, session_id: UUID, message: wire.UIMessage) -> Turn:
    """The run that the message is of, from where it asked what the message answers."""
    run_id = as_id(message.id)
    if run_id is None or UUID((await runs.get(core.db, caller.tenant_id, run_id))["session_id"]) != session_id:
        raise NotFound.of("run")
    answers, given, after = wire.Answers(message), list[UUID](), 0
    for one in await asked_of(core, caller.tenant_id, session_id, run_id):
        decision = answers.to(one.kind, str(one.id), one.tool_use_id, requests.questions_of(one.data))
        if decision is not None:
            await attending.answer(core, caller, session_id, one.id, one.kind, decision)
            given.append(one.id)
            after = one.seq
    if not given:
        raise ValidationError.of("messages", "the last message answers nothing that its run has asked")
    return replace(await attending.whole(core, caller, run_id), after=after, answered=frozenset(given))
