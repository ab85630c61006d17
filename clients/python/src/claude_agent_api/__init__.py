"""Client of the Claude Agent API.

    from claude_agent_api import Client

    client = Client("http://127.0.0.1:8000", api_key)
    turn = client.prompt("Which files are here?")
    for words in turn.text():
        print(words, end="", flush=True)
    client.ask("And in French?", session_id=turn.session_id)["result"]

`AsyncClient` is the same with `await` and `async for`.
"""

from __future__ import annotations

from claude_agent_api import types
from claude_agent_api._asking import Answers, PermissionRequest, QuestionRequest
from claude_agent_api._async import AsyncClient, AsyncStream, AsyncTurn
from claude_agent_api._sync import Client, Stream, Turn
from claude_agent_api.errors import (
    APIError,
    BadRequest,
    ClaudeAgentError,
    Conflict,
    ConnectionFailed,
    Forbidden,
    NotFound,
    RateLimited,
    RunFailed,
    ServerError,
    Unauthorized,
    ValidationError,
    WebhookInvalid,
)
from claude_agent_api.webhooks import verify_webhook

__all__ = [
    "APIError",
    "Answers",
    "AsyncClient",
    "AsyncStream",
    "AsyncTurn",
    "BadRequest",
    "ClaudeAgentError",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Forbidden",
    "NotFound",
    "PermissionRequest",
    "QuestionRequest",
    "RateLimited",
    "RunFailed",
    "ServerError",
    "Stream",
    "Turn",
    "Unauthorized",
    "ValidationError",
    "WebhookInvalid",
    "types",
    "verify_webhook",
]
