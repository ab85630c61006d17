"""What clients send: each event is one thing that the core does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fastapi import Request

from apps.api.auth import Principal
from apps.api.core.codec import decode
from apps.api.core.context import Core
from apps.api.core.events import log
from apps.api.core.fleet import answering, cancellation, dispatch
from apps.api.core.sessions import prompts, requests
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.prompts import OnBusy
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.managed import ids
from apps.api.dialects.managed.ids import EVENT
from apps.api.dialects.managed.messages import (
    REASONS,
    Refused,
    Sent,
    UserCustomToolResult,
    UserInterrupt,
    UserMessage,
    UserToolConfirmation,
)
from apps.api.dialects.managed.translate import BLOCKS
from apps.api.errors import Conflict, NotFound, ValidationError
from apps.api.web.callers import count_prompt, policy_of

ON_BUSY: OnBusy = "enqueue"
"""What becomes of a message to a session that is at work: it waits for the end of the turn."""

MAX_OPEN = 200
"""Open requests of a session that are looked through for the one of a call."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends, and where to."""

    request: Request
    core: Core
    caller: Principal
    session_id: UUID
    repeat: Idempotency | None

    async def all(self, events: list[Sent]) -> list[dict[str, Any]]:
        """Do what the events say, in order, and tell them with their ids. Nothing is done if one of them is not valid.

        Raises:
            BadRequest, ValidationError: one of them asks for what is not supported, or is not valid.
            NotFound: it is about a call that is not there.
            Conflict: about one that does not wait any more; the session is archived.
            RateLimited: as for any prompt.
        """
        prepared = []
        for number, event in enumerate(events):
            field = f"events.{number}"
            if isinstance(event, Refused):
                raise ValidationError.of(f"{field}.type", REASONS[event.type])
            prepared.append((number, event, await self._prepared(field, event)))
        return [await self._one(number, event, ready) for number, event, ready in prepared]

    async def _prepared(self, field: str, event: Any) -> Any:
        if isinstance(event, UserMessage):
            return event.prompt(field)
        if isinstance(event, UserCustomToolResult):
            request_id = await self._waits(f"{field}.custom_tool_use_id", event.custom_tool_use_id, "client_tool")
            return request_id, event.result(field)
        if isinstance(event, UserToolConfirmation):
            if event.deny_message is not None and event.result != "deny":
                raise ValidationError.of(f"{field}.deny_message", "goes with 'deny' only")
            return await self._waits(f"{field}.tool_use_id", event.tool_use_id, "permission")
        if event.session_thread_id is not None:
            raise ValidationError.of(f"{field}.session_thread_id", "a subagent is not interrupted by itself")
        return None

    async def _one(self, number: int, event: Any, ready: Any) -> dict[str, Any]:
        given = event.model_dump(exclude_none=True)
        match event:
            case UserMessage():
                id_ = ids.of_client("m", await self._message(number, ready))
            case UserInterrupt():
                id_ = ids.of_client("i", await self._interrupt())
            case UserToolConfirmation():
                told = {"message": event.deny_message} if event.deny_message is not None else {}
                await self._answer(ready, "permission", {"decision": event.result, **told})
                id_ = ids.of_client("r", ready)
            case UserCustomToolResult():
                request_id, content = ready
                decision = {"decision": "answered", "content": content, "is_error": bool(event.is_error)}
                await self._answer(request_id, "client_tool", decision)
                id_ = ids.of_client("r", request_id)
        return {"id": id_, "processed_at": None, **given}

    async def _message(self, number: int, prompt: list[dict[str, Any]]) -> UUID:
        await count_prompt(self.request, self.caller)
        core, repeat = self.core, self.repeat
        submission = prompts.Submission(
            prompt=prompt,
            timeout_seconds=core.settings.request_timeout,
            session_id=self.session_id,
            on_busy=ON_BUSY,
            idempotency=repeat and Idempotency(f"{repeat.key}/{number}", repeat.fingerprint),
            choice=Choice(policy=policy_of(core, self.caller)),
        )
        return (await dispatch.send(core, self.caller.tenant_id, self.caller.key_id, submission)).run_id

    async def _interrupt(self) -> UUID:
        """The run that was interrupted; the session, where none was: then it is idle, as was asked."""
        try:
            sent = await cancellation.interrupt(self.core, self.caller.tenant_id, self.session_id)
        except Conflict as conflict:
            if conflict.code != "no_live_run":
                raise
            return self.session_id
        return sent.run_id or self.session_id

    async def _answer(self, request_id: UUID, kind: str, decision: Mapping[str, Any]) -> None:
        by = {"type": "key", "key_id": str(self.caller.key_id), "key_name": self.caller.key_name}
        policy = policy_of(self.core, self.caller)
        await answering.answer(
            self.core, self.caller.tenant_id, self.session_id, request_id, kind, decision, by, policy
        )

    async def _waits(self, field: str, event_id: str, kind: str) -> UUID:
        """The open request for a call, which is named by its event. Raises NotFound, Conflict."""
        part = ids.part(EVENT, event_id)
        if part is None or part.session_id != self.session_id:
            raise NotFound(f"{field}: no such event in this session.", code="request_not_found")
        core, tenant_id = self.core, self.caller.tenant_id
        frames = await log.read_numbers(core.db, tenant_id, self.session_id, [part.seq])
        data = decode(frames[0].data) if frames else {}
        call: Any = data.get("tool_use_id") if "request_id" in data else None
        content, nth = data.get("content"), part.nth - BLOCKS
        if isinstance(content, list) and 0 <= nth < len(content):
            call = content[nth].get("id")
        if call is None:
            raise NotFound(f"{field}: this event is no call of a tool.", code="request_not_found")
        page = await requests.list_page(core.db, tenant_id, self.session_id, status="open", limit=MAX_OPEN, cursor=None)
        for request in page.data:
            if request.get("tool_use_id") == call and request["type"] == kind:
                return UUID(request["request_id"])
        raise Conflict(f"{field}: this call waits for nobody (any more).", code="request_resolved")
