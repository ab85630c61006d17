"""Options of the SDK that this API does not take, and why: who knows the SDK is told more than that a field is unknown.

A test compares this with the SDK, so that an option of a new version is either taken or has a reason here.
"""

from __future__ import annotations

from collections.abc import Sequence

_SERVERS = "is set by the server"

NOT_TAKEN = {
    "permission_prompt_tool_name": "persons are asked by `permission_request` events",
    "can_use_tool": "persons are asked by `permission_request` events",
    "continue_conversation": "a session is continued by its `session_id`",
    "resume": "a session is continued by its `session_id`",
    "resume_drops_turn": "a fork copies whole messages, and its parent keeps everything",
    "setting_sources": "files that an agent can write must not configure it; use the options of the session",
    "settings": "could run commands outside of the agent's confinement; use the options of the session",
    "plugins": "could run commands outside of the agent's confinement; store skills and commands instead",
    "sandbox": "agents are confined by the server; the operator's profiles say how",
    "max_thinking_tokens": "is deprecated in the SDK; use `thinking`",
    "include_hook_events": "what hooks have decided is told by `hook` events in any case",
    "user": "agents run as the server's user",
    "strict_mcp_config": "is always on: only `mcp_servers` count",
    "verbatim_prompts": "is on unless a prompt has `expand_prompt`",
    "forward_subagent_text": "is always on",
    "cli_path": _SERVERS,
    "extra_args": _SERVERS,
    "max_buffer_size": _SERVERS,
    "debug_stderr": _SERVERS,
    "stderr": _SERVERS,
    "session_store": _SERVERS,
    "session_store_flush": _SERVERS,
    "load_timeout_ms": _SERVERS,
    "client_app": _SERVERS,
}
"""Of `ClaudeAgentOptions`."""

NOT_TAKEN_OF_SUBAGENTS = {
    "memory": "the agent's program would read files by itself that the agent has written; name a file in the prompt",
    "initialPrompt": "means something only to an agent that a session is started as, and sessions have their prompts",
    "disallowedTools": "is `disallowed_tools` here",
    "mcpServers": "is `mcp_servers` here, an object by name; those of the session are there in any case",
    "maxTurns": "is `max_turns` here",
    "permissionMode": "is `permission_mode` here",
}
"""Of `AgentDefinition`."""


def why_not(location: Sequence[object]) -> str | None:
    """Why the field at this place of a body is not taken, if it is one of the SDK's."""
    if not location:
        return None
    *above, name = location
    reasons = NOT_TAKEN_OF_SUBAGENTS if len(above) > 1 and above[-2] == "agents" else NOT_TAKEN
    return reasons.get(str(name))
