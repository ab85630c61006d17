"""Wire models of the administration routes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from apps.api import addresses
from apps.api.core.config.limits import NO_LIMITS, Limits
from apps.api.core.config.names import Name, Text
from apps.api.core.config.retention import Retention
from apps.api.core.pages import utc
from apps.api.dialects.native.schemas import Closed, Usd
from apps.api.keys import TENANT_NAME

TenantName = Annotated[str, StringConstraints(pattern=TENANT_NAME)]
Scope = Literal["admin", "write", "read"]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=3)]
Profiles = Annotated[list[Name], Field(min_length=1, max_length=50)]
Network = Annotated[str, Field(max_length=64), AfterValidator(addresses.network)]
Networks = Annotated[list[Network], Field(min_length=1, max_length=50)]


class TenantBody(Closed):
    """A new tenant."""

    name: TenantName = Field(description="Letters, digits, dots, dashes, underscores.", examples=["acme"])


class TenantState(BaseModel):
    """A tenant."""

    tenant_id: UUID = Field(validation_alias="id")
    name: str = Field(examples=["acme"])
    created_at: datetime
    keys: int = Field(description="How many of its keys are valid.")
    suspended_at: datetime | None = Field(None, description="Since when its keys are refused; null: they are not.")
    deleting_at: datetime | None = Field(None, description="Since when it is being deleted; null: it is not.")


LIMITS = {"runs_per_minute": 60, "queued_runs": 1000}


class LimitsTold(BaseModel):
    """Limits that are set."""

    model_config = ConfigDict(from_attributes=True)

    runs_per_minute: int | None = None
    concurrent_runs: int | None = None
    queued_runs: int | None = None
    live_sessions: int | None = None
    streams: int | None = None
    workspace_bytes: int | None = None
    file_bytes: int | None = None
    usd_per_day: Usd | None = None
    usd_per_month: Usd | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    models: list[str] | None = None


class TenantLimits(BaseModel):
    """What a tenant is limited to, all its keys together."""

    tenant: str = Field(examples=["acme"])
    limits: LimitsTold = Field(examples=[LIMITS])


class TenantRetention(BaseModel):
    """How long what a tenant has is kept, in days. null: for ever."""

    tenant: str = Field(examples=["acme"])
    retention: dict[str, int | None] = Field(
        description="What was set for the tenant, of the fields below.", examples=[{"events_days": 90}]
    )
    effective: Retention = Field(description="What holds: else the server's own settings.")


ModelSecret = Annotated[Text, Field(min_length=1, max_length=8000, pattern=r"^[\x21-\x7e]+$")]


class ModelCredentialBody(Closed):
    """A tenant's credential of the model API: one of the two."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"api_key": "sk-ant-…"}]})

    api_key: ModelSecret | None = Field(None, description="Sent as `x-api-key`.")
    auth_token: ModelSecret | None = Field(None, description="Sent as a bearer token.")

    @model_validator(mode="after")
    def _one(self) -> ModelCredentialBody:
        if (self.api_key is None) == (self.auth_token is None):
            raise ValueError("give api_key or auth_token, and not both")
        return self


class ModelCredentialState(BaseModel):
    """That a tenant has a model credential of its own; never which."""

    tenant: str = Field(examples=["acme"])
    kind: Literal["api_key", "auth_token"]
    updated_at: datetime


class KeyFields(Closed):
    """What can be changed about a key."""

    scopes: Scopes | None = Field(None, description="`admin` is the operator's.", examples=[["write"]])
    profiles: Profiles | None = Field(
        None, description="Bind the key to these profiles, its default first; null: any.", examples=[["readonly"]]
    )
    networks: Networks | None = Field(
        None,
        description="Addresses and networks from which the key may be used; null: any.",
        examples=[["203.0.113.0/24", "2001:db8::/32"]],
    )
    limits: Limits = Field(
        NO_LIMITS, description="The key's own, all of them; the server's where there is none.", examples=[LIMITS]
    )
    expires_at: datetime | None = Field(None, description="A moment with its time zone; null: never.")

    @field_validator("expires_at")
    @classmethod
    def _has_a_zone(cls, value: datetime | None) -> datetime | None:
        return None if value is None else utc(value)


KeyName = Annotated[Text, Field(min_length=1, max_length=200)]


class KeyPatch(KeyFields):
    """What to change; what is left out stays."""

    name: KeyName | None = Field(None, description="For your own listings.")

    @field_validator("name", "scopes")
    @classmethod
    def _not_null(cls, value: object) -> object:
        if value is None:
            raise ValueError("must not be null")
        return value


class KeyBody(KeyFields):
    """A new key. Scopes are `write` and `read` if left out."""

    tenant: TenantName = Field(description="Its tenant, which exists.", examples=["acme"])
    name: KeyName = Field(description="For your own listings.", examples=["backend"])


class KeyState(BaseModel):
    """A key, without its secret."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True)

    key_id: UUID = Field(validation_alias="id")
    tenant: str = Field(examples=["acme"])
    name: str = Field(examples=["backend"])
    prefix: str = Field(description="How its secret begins.", examples=["cak_o3Qr"])
    scopes: list[Scope]
    profiles: list[str] | None = Field(examples=[["readonly"]])
    networks: list[str] | None = Field(examples=[["203.0.113.0/24", "2001:db8::/32"]])
    limits: LimitsTold = Field(examples=[LIMITS])
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    previous_expires_at: datetime | None = Field(description="Until when the secret before the last rotation is valid.")


class KeySecret(KeyState):
    """A key with its secret, which is shown this once."""

    secret: str = Field(examples=["cak_o3Qr..."])


class RotateBody(Closed):
    """How to change over."""

    overlap_seconds: float = Field(
        0, ge=0, le=2_592_000, description="How long the old secret stays valid.", examples=[3600]
    )


class InstanceState(BaseModel):
    """A server process. `sessions` are owned by it, `running` of them execute a run."""

    instance_id: UUID = Field(validation_alias="id")
    hostname: str = Field(examples=["api-1"])
    version: str = Field(examples=["0.1.0"])
    alive: bool = Field(description="Whether its lease is valid.")
    draining: bool = Field(description="Whether it takes no more runs.")
    slots: int = Field(description="Runs that it executes at once; 0 for an API node.")
    running: int
    sessions: int
    started_at: datetime
    lease_expires_at: datetime


class QueueState(BaseModel):
    """What waits in the whole fleet."""

    queued: int = Field(
        description="Runs that wait to be executed, of all tenants; 10000 stands for that or more.", examples=[3]
    )
    oldest_seconds: float = Field(
        description="How long the one that has waited for longest has; 0 where none waits.", examples=[1.5]
    )


class RepairedRun(BaseModel):
    """The run has failed with `owner_lost`, or waits no longer behind one that had; its session is free."""

    run_id: UUID
    session_id: UUID
    status: str = Field(description="Of the run, now.", examples=["failed"])
    action: str = Field(examples=["the session was taken from its dead owner"])
