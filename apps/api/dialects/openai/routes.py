"""OpenAI's API, `/compat/openai/v1`, one module for each resource. See docs/openai.md."""

from __future__ import annotations

from apps.api.dialects.openai import chat, conversations, models, responses, schemas
from apps.api.dialects.openai.common import PREFIX, TAG
from apps.api.dialects.openai.errors import error_shape
from apps.api.web.document import Description
from apps.api.web.doors import Router

__all__ = ["DESCRIPTION", "PREFIX", "error_shape", "router"]

router = Router()
for _resource in (models, chat, responses, conversations):
    router.include_router(_resource.routes)

DESCRIPTION = Description(
    "Claude Agent API: OpenAI's API",
    f"What the official `openai` clients call, with `{PREFIX}/v1` as their base URL. See docs/openai.md.",
    lambda path: path.startswith(f"{PREFIX}/"),
    {TAG: "As the official clients know them."},
    models=(
        schemas.ChatRequest,
        schemas.ResponseRequest,
        schemas.NewConversation,
        schemas.ConversationChange,
        schemas.NewItems,
    ),
)
