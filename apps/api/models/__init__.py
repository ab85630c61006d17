"""Tables. The constraints carry the rules; docs/adr and specs/…/data-model.md say why they are as they are.

JSON that must survive a round trip byte for byte (events, prompts, transcripts) is kept as `text`: jsonb
refuses NUL and lone surrogates, which agents do print. `jsonb` is used where we filter.
"""

from apps.api.models.agents import (
    Agent,
    AgentVersion,
    Catalog,
    Credential,
    Environment,
    McpServer,
    ModelCall,
    ModelCredential,
    Secret,
    Skill,
    Spent,
    Usage,
    UsageSum,
    UserUsageSum,
    Vault,
)
from apps.api.models.audit import AuditLine
from apps.api.models.base import Base
from apps.api.models.files import File
from apps.api.models.names import IdempotencyKey, SessionName
from apps.api.models.schedules import Schedule, ScheduleFiring
from apps.api.models.sessions import (
    Command,
    Event,
    Instance,
    Invalidation,
    Request,
    Run,
    Session,
    TranscriptEntry,
)
from apps.api.models.tenants import ApiKey, Tenant
from apps.api.models.webhooks import Webhook, WebhookDelivery

__all__ = [
    "Agent",
    "AgentVersion",
    "ApiKey",
    "AuditLine",
    "Base",
    "Catalog",
    "Command",
    "Credential",
    "Environment",
    "Event",
    "File",
    "IdempotencyKey",
    "Instance",
    "Invalidation",
    "McpServer",
    "ModelCall",
    "ModelCredential",
    "Request",
    "Run",
    "Schedule",
    "ScheduleFiring",
    "Secret",
    "Session",
    "SessionName",
    "Skill",
    "Spent",
    "Tenant",
    "TranscriptEntry",
    "Usage",
    "UsageSum",
    "UserUsageSum",
    "Vault",
    "Webhook",
    "WebhookDelivery",
]
