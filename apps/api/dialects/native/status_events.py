"""What a `status` event can say. For the document: events are sent as they are stored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from apps.api.dialects.native.content_blocks import Ours


class EventData(Ours):
    """What `data` of every event begins with."""

    session_id: UUID
    run_id: UUID | None = Field(description="The run that it belongs to; null: to none.")
    seq: int = Field(description="Number of the event in its session; of what is not stored, of the newest that is.")
    created_at: datetime


class ModelRetry(EventData):
    """A call to the model failed, and is made again."""

    status: Literal["model_retry"]
    attempt: int | None
    max_retries: int | None
    retry_delay_ms: float | None
    error_status: int | None = Field(description="HTTP status of the model's answer, if it gave one.")
    error: str | None


class ModelFallback(EventData):
    """From here on `fallback_model` answers."""

    status: Literal["model_fallback"]
    original_model: str | None
    fallback_model: str | None
    trigger: str | None


class Compacting(EventData):
    """The agent begins to shorten its conversation."""

    status: Literal["compacting"]


class Compacted(EventData):
    """The agent has shortened its conversation."""

    status: Literal["compacted"]
    detail: dict[str, Any] | None = Field(description="The SDK's own figures.")


class RateLimit(EventData):
    """The account of the model is near a limit, or over it."""

    status: Literal["rate_limit"]
    limit: str | None = Field(examples=["five_hour"])
    state: str
    resets_at: datetime | None


class BackgroundTurn(EventData):
    """What follows is a turn that the agent took for a background task."""

    status: Literal["background_turn"]


class Cloning(EventData):
    """A repository is being cloned."""

    status: Literal["cloning"]
    repository: str
    ref: str | None


class Cloned(EventData):
    """A repository was cloned."""

    status: Literal["cloned"]
    repository: str
    ref: str | None
    commit: str


class Providing(EventData):
    """Resources are being brought into the workspace."""

    status: Literal["providing"]
    resources: int = Field(description="How many.")


class Provided(EventData):
    """They are there."""

    status: Literal["provided"]
    paths: list[str]


class PortsChanged(EventData):
    """Other ports than before are open; see `GET /sessions/{id}/ports`."""

    status: Literal["ports"]
    ports: list[int]


class RewoundStatus(EventData):
    """Files were brought back to a checkpoint."""

    status: Literal["rewound"]
    checkpoint_id: UUID
    dry_run: bool
    files_changed: list[str]
    not_restored: list[str]
    insertions: int
    deletions: int


class Reconfigured(EventData):
    """Model or permission mode were changed while the session lives."""

    status: Literal["reconfigured"]
    model: str | None = None
    permission_mode: str | None = None


class ResetStatus(EventData):
    """The agent was started anew."""

    status: Literal["reset"]
    mode: Literal["soft", "hard"]


class Restoring(EventData):
    """The session's files are being brought to the instance that runs it."""

    status: Literal["restoring"]
    bytes: int
    files: int
    stored_at: datetime | None


class WorkspaceRestored(EventData):
    """The files are as they were stored at `stored_at`: what was made since is lost."""

    status: Literal["workspace_restored"]
    stored_at: datetime | None
    unstored_since: datetime | None
    lost_run_ids: list[UUID]


class WorkspaceNotStored(EventData):
    """The files could not be stored at the end of the run."""

    status: Literal["workspace_not_stored"]
    reason: Literal["store_failed", "workspace_too_large", "too_many_files", "path_too_long"]
    message: str


class WorkspaceMissing(EventData):
    """The stored files are not there any more."""

    status: Literal["workspace_missing"]


class ConversationExpired(EventData):
    """What the agent remembered was removed for its age: it begins anew."""

    status: Literal["conversation_expired"]


class ParkedStatus(EventData):
    """The agent's process has ended while the run waits for a person."""

    status: Literal["parked"]
    request_id: UUID


class Resumed(EventData):
    """Another process goes on with it."""

    status: Literal["resumed"]


class TurnForgotten(EventData):
    """The turn was taken out of what the agent knows: the model refuses it."""

    status: Literal["turn_forgotten"]


StatusData = Annotated[
    ModelRetry
    | ModelFallback
    | Compacting
    | Compacted
    | RateLimit
    | BackgroundTurn
    | Cloning
    | Cloned
    | Providing
    | Provided
    | PortsChanged
    | RewoundStatus
    | Reconfigured
    | ResetStatus
    | Restoring
    | WorkspaceRestored
    | WorkspaceNotStored
    | WorkspaceMissing
    | ConversationExpired
    | ParkedStatus
    | Resumed
    | TurnForgotten,
    Field(discriminator="status"),
]
"""What a `status` event says, by its `status`."""
