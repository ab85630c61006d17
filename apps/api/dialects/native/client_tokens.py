"""Client tokens: what browsers and apps of end users get in place of a key."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from apps.api import clock
from apps.api.core.config import grants
from apps.api.core.config.grants import Action, Grant, Origin
from apps.api.core.config.names import EndUser
from apps.api.core.sessions import client_tokens
from apps.api.dialects.native import schemas as wire
from apps.api.dialects.native.common import PREFIX, SessionId, errors
from apps.api.web.callers import Writer
from apps.api.web.doors import Router
from apps.api.web.route import CoreDep

router = Router(prefix=PREFIX)


def _reading() -> list[Action]:
    return ["read"]


class TokenBody(wire.Closed):
    """What the token is to allow, and for how long."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"allow": ["read", "prompt"], "ttl_seconds": 900, "end_user": "customer-42"}]},
    )

    ttl_seconds: int = Field(900, ge=1, le=grants.MAX_SECONDS, description="Seconds until it is of no use any more.")
    allow: Annotated[list[Action], Field(min_length=1, max_length=len(grants.ACTIONS))] = Field(
        default_factory=_reading,
        description="`read`: state, events, messages, runs and requests. `prompt`: prompts, and stopping what runs."
        " `decide`: answers to what the agent asks. `files`: listing, reading and storing files.",
    )
    end_user: EndUser | None = Field(
        None, description="For whom it is: runs, usage and the audit log name it.", examples=["customer-42"]
    )
    origin: Origin | None = Field(
        None,
        description="The origin of the page that is to use it: pages of others are refused.",
        examples=["https://app.example.com"],
    )

    @field_validator("allow", mode="after")
    @classmethod
    def _each_once(cls, value: list[Action]) -> list[Action]:
        if len(set(value)) != len(value):
            raise ValueError("names something twice")
        return value


class ClientToken(BaseModel):
    """A token, which is shown once and kept nowhere."""

    token: str = Field(
        description="Send it as `Authorization: Bearer TOKEN`, or as `X-API-Key`.", examples=["cat_gAAAAABpQ3…"]
    )
    session_id: SessionId
    allow: list[Action]
    expires_at: datetime = Field(description="With the key that made it at the latest.")
    end_user: str | None = Field(examples=["customer-42"])
    origin: str | None = Field(examples=["https://app.example.com"])


@router.post(
    "/sessions/{session_id}/client-tokens", tags=["sessions"], status_code=201, responses=errors(400, 404, 413)
)
async def create_client_token(core: CoreDep, caller: Writer, session_id: SessionId, body: TokenBody) -> ClientToken:
    """Make a token with which a browser or an app may do these things with this session, and nothing else.

    It does so in the name of your key: it counts against its limits and budgets, may never do more than the key, and
    ends with it, with the session, or after `ttl_seconds`. See docs/guides/browsers.md.
    """
    ends = grants.until(clock.now() + timedelta(seconds=body.ttl_seconds), caller.expires_at)
    grant = Grant(session_id, tuple(body.allow), ends, body.end_user, body.origin)
    token = await client_tokens.issue(core, caller.tenant_id, caller.secret_hash, grant)
    return ClientToken(
        token=token,
        session_id=session_id,
        allow=body.allow,
        expires_at=ends,
        end_user=body.end_user,
        origin=body.origin,
    )
