"""One call of a tool, for the key that makes it: through the gate and the door of the core, as every prompt goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from mcp import types
from mcp.server.context import ServerRequestContext
from pydantic import ValidationError as PydanticError
from starlette.requests import Request

from apps.api.auth import Principal
from apps.api.core.config.agent import AgentConfig
from apps.api.core.context import Core
from apps.api.core.events.follow import SessionDeleted
from apps.api.core.fleet import cancellation, dispatch
from apps.api.core.sessions import prompts, requests, runs
from apps.api.core.sessions.admission import NO_CHANGES, Choice
from apps.api.core.sessions.prompts import Submitted
from apps.api.core.sessions.sessions import Labels
from apps.api.core.tenant import presets
from apps.api.core.tenant.idempotency import Idempotency
from apps.api.dialects.mcp import schemas, translate
from apps.api.errors import Conflict, NotFound, Unavailable, ValidationError
from apps.api.web.asking import until_asked
from apps.api.web.callers import count_prompt, may_touch, policy_of
from apps.api.web.errors import findings, from_exception
from apps.api.web.opened import Held

SURFACE = "mcp"
MAX_PRESETS = 100
"""Presets that have tools of their own, by name; run_agent takes all of them."""

Context = ServerRequestContext[Any, Any]
M = TypeVar("M", bound=schemas.Arguments)


@dataclass(slots=True)
class Client:
    """Who calls.

    Attributes:
        held: what the call is held open as; None for what does not last.
        repeat: names this very message, where its client can be told from others: what it began is found by that.
        waits_for: the run that it has begun here, as long as that is waited for.
    """

    request: Request
    core: Core
    caller: Principal
    held: Held | None
    repeat: Idempotency | None
    waits_for: UUID | None = None


async def list_tools(client: Client) -> types.ListToolsResult:
    """The tools that this key may call."""
    policy = policy_of(client.core, client.caller)
    page = await presets.list_page(client.core.db, client.caller.tenant_id, None, limit=MAX_PRESETS, cursor=None)
    own = [translate.of_preset(preset) for preset in page.data if policy.may_use(preset["profile"] or policy.usual)]
    return types.ListToolsResult(tools=[*translate.TOOLS, *own])


async def call_tool(client: Client, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
    """Do what a tool does. What goes wrong is its answer."""
    try:
        given = params.arguments or {}
        if params.name.startswith(translate.OF_PRESET):
            return await _of_preset(client, context, params.name.removeprefix(translate.OF_PRESET), given)
        if params.name not in _ACTS:
            raise NotFound(f"There is no tool {params.name[:100]!r}.", code="not_found")
        work = _ACTS[params.name](client, context, given)
        return translate.answer(await work)
    except Exception as error:
        client.waits_for = None
        return translate.refusal(from_exception(error, client.request.state.request_id))


def _checked(model: type[M], given: dict[str, Any]) -> M:
    try:
        return model.model_validate(given)
    except PydanticError as error:
        raise _invalid(error) from error


def _invalid(error: PydanticError) -> ValidationError:
    found = findings(error.errors())
    told = "; ".join(f"{one['field']}: {one['reason']}" for one in found[:10])
    return ValidationError(told, details={"errors": found[:50]})


async def _of_preset(client: Client, context: Context, name: str, given: dict[str, Any]) -> types.CallToolResult:
    asked, named = _checked(schemas.PresetArguments, given), _checked(schemas.Named, {"preset": name})
    preset = await presets.get(client.core.db, client.caller.tenant_id, named.preset)
    run = await _send(client, asked, config=NO_CHANGES, choice=Choice(None, _policy(client), preset["name"]))
    told = await _told(client, context, run, asked.wait_seconds)
    return translate.answer(told, translate.output_schema(preset["config"]))


async def _run_agent(client: Client, context: Context, given: dict[str, Any]) -> schemas.Told:
    asked = _checked(schemas.RunArguments, given)
    try:
        config = asked.config()
    except PydanticError as error:
        raise _invalid(error) from error
    choice = Choice(asked.profile, _policy(client), asked.preset)
    run = await _send(client, asked, config=config, choice=choice, labels=Labels(end_user=asked.end_user))
    return await _told(client, context, run, asked.wait_seconds)


async def _continue(client: Client, context: Context, given: dict[str, Any]) -> schemas.Told:
    asked = _checked(schemas.NextArguments, given)
    await may_touch(client.core, client.caller, {"session_id": asked.session_id})
    choice = Choice(policy=_policy(client))
    run = await _send(client, asked, config=NO_CHANGES, choice=choice, session_id=asked.session_id)
    return await _told(client, context, run, asked.wait_seconds)


async def _get_run(client: Client, context: Context, given: dict[str, Any]) -> schemas.Told:
    asked = _checked(schemas.GetArguments, given)
    core, caller = client.core, client.caller
    caller.require("read")
    await may_touch(core, caller, {"run_id": asked.run_id})
    state = await _state(client, asked.run_id)
    if state.status not in ("queued", "running") or not asked.wait_seconds:
        return state
    lies = await runs.extent(core.db, caller.tenant_id, asked.run_id)
    if lies.end is not None:
        return await _state(client, asked.run_id)
    return await _told(client, context, Submitted(lies.session_id, asked.run_id, lies.start), asked.wait_seconds)


async def _cancel_run(client: Client, _context: Context, given: dict[str, Any]) -> schemas.Told:
    asked = _checked(schemas.CancelArguments, given)
    client.caller.require("write")
    await may_touch(client.core, client.caller, {"run_id": asked.run_id})
    await runs.get(client.core.db, client.caller.tenant_id, asked.run_id)
    await cancellation.cancel(client.core, client.caller.tenant_id, asked.run_id)
    return await _state(client, asked.run_id)


_ACTS: dict[str, Callable[[Client, Context, dict[str, Any]], Awaitable[schemas.Told]]] = {
    "run_agent": _run_agent,
    "continue_session": _continue,
    "get_run": _get_run,
    "cancel_run": _cancel_run,
}


def _policy(client: Client) -> Any:
    return policy_of(client.core, client.caller)


async def _send(
    client: Client,
    asked: schemas.PresetArguments,
    *,
    config: AgentConfig,
    choice: Choice,
    labels: Labels = prompts.NO_LABELS,
    session_id: UUID | None = None,
) -> Submitted:
    client.caller.require("write")
    await count_prompt(client.request, client.caller)
    submission = prompts.Submission(
        prompt=asked.prompt,
        timeout_seconds=client.core.settings.request_timeout,
        session_id=session_id,
        config=config,
        labels=labels,
        idempotency=client.repeat,
        choice=choice,
        surface=SURFACE,
    )
    run = await dispatch.send(client.core, client.caller.tenant_id, client.caller.key_id, submission)
    client.waits_for = run.run_id
    return run


async def _told(client: Client, context: Context, run: Submitted, wait_seconds: float) -> schemas.Told:
    """A run once it is over or waits for an answer, or as it is then. While it is waited for, its client is told what
    happens, if it has asked for that."""
    work = _follow(client, context, run, wait_seconds)
    try:
        await (work if client.held is None else client.held.during(work))
    except SessionDeleted as error:
        raise Conflict("This session has been deleted.", code="session_deleted") from error
    except Unavailable as error:
        if error.code != "shutdown":  # else the run is told by its id: another instance answers for it
            raise
    client.waits_for = None
    return await _state(client, run.run_id)


async def _follow(client: Client, context: Context, run: Submitted, wait_seconds: float) -> None:
    frames = until_asked(client.core, client.caller.tenant_id, run)
    steps = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(wait_seconds), aclosing(frames):
            async for batch in frames:
                for frame in batch:
                    if frame.position.part or frame.type == "done":
                        continue
                    steps += 1
                    await context.session.report_progress(steps, None, f"{frame.type} (run {run.run_id})")


async def _state(client: Client, run_id: UUID) -> schemas.Told:
    core, tenant_id = client.core, client.caller.tenant_id
    run = await runs.get(core.db, tenant_id, run_id)
    if run["status"] != "requires_action":
        return translate.told(run)
    page = await requests.list_page(core.db, tenant_id, UUID(run["session_id"]), status="open", limit=20, cursor=None)
    return translate.told(run, [one for one in page.data if one["run_id"] == str(run_id)])
