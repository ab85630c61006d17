"""Messages that clients send over the WebSocket: a head of their own, and the body of the HTTP route they stand for."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, Field, TypeAdapter, field_validator
from pydantic import ValidationError as PydanticError

from apps.api.core import codec
from apps.api.core.config import grants
from apps.api.core.events.frames import Position
from apps.api.dialects.native.schemas import Closed
from apps.api.errors import BadRequest, ValidationError
from apps.api.web.errors import from_validation

Ref = Annotated[str, Field(min_length=1, max_length=200)]
_REF: TypeAdapter[str | None] = TypeAdapter(Ref | None)


class Head(Closed):
    """`ref` is chosen by the client and comes back in the answer."""

    type: str
    ref: Ref | None = None


class Auth(Head):
    api_key: Annotated[str, Field(min_length=1, max_length=grants.MAX_LENGTH)]


class Prompt(Head):
    idempotency_key: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")] | None = None


class InSession(Head):
    session_id: UUID


class OfRequest(InSession):
    request_id: UUID


class Unfollow(InSession):
    run_id: UUID | None = None


class Follow(Unfollow):
    after: Annotated[str, Field(max_length=40)] | None = None

    @field_validator("after")
    @classmethod
    def _is_a_position(cls, value: str | None) -> str | None:
        return value if value is None else str(Position.parse(value))


H = TypeVar("H", bound=Head)
B = TypeVar("B", bound=BaseModel)


async def parse(text: str | bytes) -> dict[str, Any]:
    """A message as its client sent it.

    Raises:
        BadRequest: it is no JSON object with a `type`.
        ValidationError: not every reader of JSON would read it alike.
    """
    if isinstance(text, bytes):
        raise BadRequest("Send text, not binary frames.")
    try:
        message = await codec.read(text)
    except codec.NotJson as error:
        raise BadRequest("The message is not valid JSON.", code="invalid_json") from error
    except codec.Unsuitable as error:
        raise ValidationError.of(error.field or "message", error.reason) from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadRequest('A message is a JSON object with a "type".')
    return message


def ref_of(message: dict[str, Any]) -> str | None:
    """The `ref` of a message that may be wrong in other ways; None when it is wrong in this."""
    try:
        return _REF.validate_python(message.get("ref"))
    except PydanticError:
        return None


def checked(model: type[B], message: dict[str, Any]) -> B:
    """The message as `model`. Raises ValidationError, as the HTTP route does for its body."""
    try:
        return model.model_validate(message)
    except PydanticError as error:
        raise from_validation(error) from error


def divided(head: type[H], body: type[B], message: dict[str, Any]) -> tuple[H, B]:
    """The message as the fields of `head`, and the rest as `body`. Raises ValidationError."""
    own = {name: value for name, value in message.items() if name in head.model_fields}
    rest = {name: value for name, value in message.items() if name not in own}
    return checked(head, own), checked(body, rest)
