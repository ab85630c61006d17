"""Conversations: sessions that clients make before they say anything, and that responses belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Response
from pydantic import BaseModel, Field

from apps.api import clock
from apps.api.auth import Principal
from apps.api.core.config.agent import AgentConfig
from apps.api.core.context import Core
from apps.api.core.sessions import deletion, names, prompts
from apps.api.core.sessions.admission import Choice
from apps.api.core.sessions.names import Name, Named
from apps.api.core.sessions.sessions import Labels
from apps.api.dialects.openai import schemas
from apps.api.dialects.openai.common import (
    After,
    Item,
    ItemList,
    JsonBody,
    Limit,
    Order,
    body_of,
    cut,
    id_path,
    read_answer,
    router,
)
from apps.api.dialects.openai.errors import documented, locked, refused, unknown
from apps.api.dialects.openai.history import Entry, named, of_input, uuid_of
from apps.api.dialects.openai.sending import SURFACE, found_or, require
from apps.api.web.answer import Json
from apps.api.web.callers import Reader, Writer, policy_of
from apps.api.web.route import CoreDep

routes = router()

MAX_UNTOLD, MAX_ITEMS = 200, 2_000
"""Items that wait for the next response of a conversation, and that are put into one in all, beside responses."""

ATTEMPTS = 10
"""To change what others change at the same time."""

ConversationId = Annotated[str, id_path("conversation")]


class Conversation(BaseModel):
    """A conversation."""

    id: str = Field(examples=["conv_0f0e4c5cc6a14d8e9c1d5a1b2c3d4e5f"])
    object: str = Field(examples=["conversation"])
    created_at: int = Field(examples=[1780000000])
    metadata: dict[str, str]


class ConversationDeleted(BaseModel):
    """A conversation that is there no longer."""

    id: str = Field(examples=["conv_0f0e4c5cc6a14d8e9c1d5a1b2c3d4e5f"])
    object: str = Field(examples=["conversation.deleted"])
    deleted: bool = Field(examples=[True])


# --- what a response does with one ---------------------------------------------------------------------------------


async def of_request(core: Core, caller: Principal, given: str | dict[str, Any]) -> Named:
    """The conversation that a request names. Raises BadRequest, NotFound."""
    text = given if isinstance(given, str) else given.get("id")
    if not isinstance(text, str) or (isinstance(given, dict) and set(given) != {"id"}):
        raise refused("conversation", "conversation: must be an id, or an object with an id", "invalid_value")
    return await _find(core, caller, text, "conversation")


async def untold(core: Core, tenant_id: UUID, found: Named) -> Sequence[Entry]:
    """What was put into a conversation since its last response."""
    return of_input(found.data["untold"], "items").entries


async def told(core: Core, tenant_id: UUID, found: Named) -> None:
    """The agent has been told what waited in the conversation when `found` was read."""
    count = len(found.data["untold"])
    await _change(core, tenant_id, found, lambda data: {**data, "untold": data["untold"][count:]})


async def _change(
    core: Core, tenant_id: UUID, found: Named, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> Name:
    """Change what is kept with a conversation, though others change it, too. Raises NotFound, Conflict."""
    for _ in range(ATTEMPTS):
        name = Name(SURFACE, found.text, change(found.data))
        if await names.keep(core.db, tenant_id, name, found.data):
            return name
        found = found_or(await names.find(core.db, tenant_id, SURFACE, found.text), found.text, "conversation")
    raise locked("Others are changing this conversation at this moment; send it again.")


def kept(given: str | Sequence[dict[str, Any]], about: str) -> list[dict[str, Any]]:
    """Input as lists show it: items with ids, without the data of pictures and files."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_kept(item, f"{about}_{number}") for number, item in enumerate(given)]


def _kept(item: dict[str, Any], about: str) -> dict[str, Any]:
    kind = item.get("type", "message" if "role" in item else "item_reference")
    made = {**item, "type": kind, "id": f"{'msg' if kind == 'message' else 'item'}_in_{about}"}
    if kind == "message":
        made["status"] = "completed"
        content, role = made.get("content"), made.get("role")
        sort = "output_text" if role == "assistant" else "input_text"
        parts = [{"type": sort, "text": content}] if isinstance(content, str) else content
        made["content"] = [_without_data(part) for part in parts or ()]
    elif isinstance(made.get("output"), list):
        made["output"] = [_without_data(part) for part in made["output"]]
    return made


def _without_data(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    shown = {
        name: "" if isinstance(value, str) and value.startswith("data:") else value for name, value in part.items()
    }
    return {**shown, "annotations": []} if shown.get("type") == "output_text" else shown


# --- routes --------------------------------------------------------------------------------------------------------


async def _find(core: Core, caller: Principal, text: str, param: str | None = None) -> Named:
    found = (await names.find(core.db, caller.tenant_id, SURFACE, text)).get(text)
    if uuid_of("conversation", text) is None or found is None:
        raise unknown("conversation", text, param)
    await require(core, caller, found)
    return found


def _shown(found: Named | Name) -> dict[str, Any]:
    created = found.data["created_at"]
    return {"id": found.text, "object": "conversation", "created_at": created, "metadata": found.data["metadata"]}


@routes.post(
    "/conversations",
    response_model=Conversation,
    openapi_extra=body_of("NewConversation"),
    responses=documented(413),
)
async def create_conversation(core: CoreDep, caller: Writer, body: JsonBody) -> Response:
    """Make a conversation, perhaps with what was said before: the agent is told that with its first response."""
    wanted = schemas.read(schemas.NewConversation, body)
    of_input(wanted.items or [], "items")
    conversation_id = uuid4()
    data = {
        "created_at": int(clock.now().timestamp()),
        "metadata": wanted.metadata or {},
        "items": kept(wanted.items or [], conversation_id.hex),
        "untold": wanted.items or [],
    }
    name = Name(SURFACE, named("conversation", conversation_id), data)
    choice = Choice(policy=policy_of(core, caller))
    config = AgentConfig(unattended=True)
    session_id = await prompts.create_session(core, caller.tenant_id, config, Labels(), None, choice)
    await names.give(core.db.pool, caller.tenant_id, name, session_id)
    return Json(_shown(name))


@routes.get("/conversations/{conversation_id}", response_model=Conversation, responses=documented(404))
async def get_conversation(core: CoreDep, caller: Reader, conversation_id: ConversationId) -> Response:
    """A conversation, without its items."""
    return Json(_shown(await _find(core, caller, conversation_id)))


@routes.post(
    "/conversations/{conversation_id}",
    response_model=Conversation,
    openapi_extra=body_of("ConversationChange"),
    responses=documented(404, 413),
)
async def update_conversation(
    core: CoreDep, caller: Writer, conversation_id: ConversationId, body: JsonBody
) -> Response:
    """Replace the metadata."""
    wanted = schemas.read(schemas.ConversationChange, body)
    found = await _find(core, caller, conversation_id)
    changed = await _change(core, caller.tenant_id, found, lambda data: {**data, "metadata": wanted.metadata})
    return Json(_shown(changed))


@routes.delete("/conversations/{conversation_id}", response_model=ConversationDeleted, responses=documented(404))
async def delete_conversation(core: CoreDep, caller: Writer, conversation_id: ConversationId) -> Response:
    """Remove a conversation with all that was said in it, and its files; what runs in it is stopped."""
    found = await _find(core, caller, conversation_id)
    await deletion.delete(core.db, caller.tenant_id, found.session_id)
    core.forget(caller.tenant_id, found.session_id)
    return Json({"id": found.text, "object": "conversation.deleted", "deleted": True})


async def _items(core: Core, tenant_id: UUID, found: Named) -> list[dict[str, Any]]:
    """All items of a conversation, the oldest first."""
    items = list(found.data["items"])
    given = await names.of_session(core.db, tenant_id, found.session_id, SURFACE)
    responses = [one for one in reversed(given) if one.text.startswith("resp_") and one.run_id is not None]
    for one in sorted(responses, key=lambda one: int(one.data["created_at"])):
        answer, _ = await read_answer(core, tenant_id, one, expired=True)
        items += [*one.data["input"], *answer.output]
    return items


@routes.get("/conversations/{conversation_id}/items", response_model=ItemList, responses=documented(404))
async def list_items(
    core: CoreDep,
    caller: Reader,
    conversation_id: ConversationId,
    after: After = None,
    limit: Limit = 20,
    order: Order = None,
) -> Response:
    """What was said in a conversation, the newest first unless `order` is `asc`."""
    items = await _items(core, caller.tenant_id, await _find(core, caller, conversation_id))
    ordered = items if order == "asc" else items[::-1]
    return Json(cut(ordered, after, limit, lambda id_: unknown("item", id_, "after")))


@routes.post(
    "/conversations/{conversation_id}/items",
    response_model=ItemList,
    openapi_extra=body_of("NewItems"),
    responses=documented(404, 413),
)
async def create_items(core: CoreDep, caller: Writer, conversation_id: ConversationId, body: JsonBody) -> Response:
    """Put items into a conversation: the agent is told of them with the next response."""
    wanted = schemas.read(schemas.NewItems, body)
    of_input(wanted.items, "items")
    found = await _find(core, caller, conversation_id)
    made = kept(wanted.items, uuid4().hex)

    def add(data: dict[str, Any]) -> dict[str, Any]:
        if len(data["untold"]) + len(wanted.items) > MAX_UNTOLD or len(data["items"]) + len(made) > MAX_ITEMS:
            text = f"items: at most {MAX_UNTOLD} may wait for the next response, and {MAX_ITEMS} be put in in all."
            raise refused("items", text, "invalid_value")
        return {**data, "items": [*data["items"], *made], "untold": [*data["untold"], *wanted.items]}

    await _change(core, caller.tenant_id, found, add)
    return Json(cut(made, None, len(made), lambda id_: unknown("item", id_)))


@routes.get("/conversations/{conversation_id}/items/{item_id}", response_model=Item, responses=documented(404))
async def get_item(
    core: CoreDep, caller: Reader, conversation_id: ConversationId, item_id: Annotated[str, id_path("item")]
) -> Response:
    """One item of a conversation."""
    for item in await _items(core, caller.tenant_id, await _find(core, caller, conversation_id)):
        if item["id"] == item_id:
            return Json(item)
    raise unknown("item", item_id)
