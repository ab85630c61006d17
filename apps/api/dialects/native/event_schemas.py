"""All events by name, and pages of them. For the document and the tests: events are sent as they are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, RootModel

from apps.api.dialects.native import examples
from apps.api.dialects.native.content_blocks import Ours
from apps.api.dialects.native.event_data import (
    ActionResolvedData,
    CheckpointData,
    ClientToolCallData,
    DoneData,
    ErrorData,
    FilesData,
    HookData,
    InitData,
    MessageData,
    NetworkDeniedData,
    PartialData,
    PermissionRequestData,
    QuestionData,
    QueuedData,
    ResultData,
    ResyncData,
    SteeredData,
    TaskData,
)
from apps.api.dialects.native.schemas import Page
from apps.api.dialects.native.status_events import StatusData


class _Event(Ours):
    id: str = Field(description="The position: `Last-Event-ID` and `after` take it.", examples=["12", "12-3"])


class QueuedEvent(_Event):
    event: Literal["queued"]
    data: QueuedData


class InitEvent(_Event):
    event: Literal["init"]
    data: InitData


class MessageEvent(_Event):
    event: Literal["message"]
    data: MessageData


class PartialEvent(_Event):
    event: Literal["partial"]
    data: PartialData


class PermissionRequestEvent(_Event):
    event: Literal["permission_request"]
    data: PermissionRequestData


class QuestionEvent(_Event):
    event: Literal["question"]
    data: QuestionData


class ClientToolCallEvent(_Event):
    event: Literal["client_tool_call"]
    data: ClientToolCallData


class ActionResolvedEvent(_Event):
    event: Literal["action_resolved"]
    data: ActionResolvedData


class TaskEvent(_Event):
    event: Literal["task"]
    data: TaskData


class CheckpointEvent(_Event):
    event: Literal["checkpoint"]
    data: CheckpointData


class HookEvent(_Event):
    event: Literal["hook"]
    data: HookData


class NetworkDeniedEvent(_Event):
    event: Literal["network_denied"]
    data: NetworkDeniedData


class FilesEvent(_Event):
    event: Literal["files"]
    data: FilesData


class SteeredEvent(_Event):
    event: Literal["steered"]
    data: SteeredData


class StatusEvent(_Event):
    event: Literal["status"]
    data: StatusData


class ResultEvent(_Event):
    event: Literal["result"]
    data: ResultData


class ErrorEvent(Ours):
    id: str | None = Field(description="The position; null: it is no event of the session.")
    event: Literal["error"]
    data: ErrorData


class DoneEvent(_Event):
    event: Literal["done"]
    data: DoneData


class ResyncEvent(_Event):
    event: Literal["resync"]
    data: ResyncData


class Event(RootModel[Any]):
    """One event. On a stream `id`, `event` and `data` are the lines of a server-sent event, `data` as JSON; on a page
    of stored events, and on a WebSocket, it is one object."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EVENT]})

    root: Annotated[
        QueuedEvent
        | InitEvent
        | MessageEvent
        | PartialEvent
        | PermissionRequestEvent
        | QuestionEvent
        | ClientToolCallEvent
        | ActionResolvedEvent
        | TaskEvent
        | CheckpointEvent
        | HookEvent
        | NetworkDeniedEvent
        | FilesEvent
        | SteeredEvent
        | StatusEvent
        | ResultEvent
        | ErrorEvent
        | DoneEvent
        | ResyncEvent,
        Field(discriminator="event"),
    ]


class EventList(Page[Event]):
    """Stored events, oldest first."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"data": [examples.EVENT], "next_cursor": "2"}]})


class Message(MessageData):
    """A message of the conversation, with those of the subagent that it called."""

    subagent_messages: list[Message]
    subagent_messages_omitted: bool = Field(description="Whether there are more than these.")


class MessageList(Page[Message]):
    """Messages of the conversation, oldest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "data": [{**examples.MESSAGE, "subagent_messages": [], "subagent_messages_omitted": False}],
                    "next_cursor": "2",
                }
            ],
        },
    )
