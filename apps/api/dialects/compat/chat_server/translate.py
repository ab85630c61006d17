"""Between the chat server's words and the core's. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apps.api.core.codec import decode, encode
from apps.api.core.config.profiles import Policy, permits_kind
from apps.api.core.events.frames import Frame
from apps.api.dialects.compat.chat_server.schemas import Chat

SURFACE = "chat_server"

MAX_MCP_SERVERS = 20
"""Registered servers that a conversation is given, the first ones by name: as many as a session may have."""

_EXIT = {"succeeded": 0, "failed": 1, "interrupted": 130}
"""What the original's sandbox would have exited with; 130 is that of a shell whose command got Ctrl-C."""

Ports = Iterable[int]


def options(body: Chat, policy: Policy, servers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a new session begins with. The original's agents did as they liked in a sandbox, with all MCP servers;
    a profile of the key's may allow less.

    `servers`: the tenant's registered ones, with `name` and `type`.
    """
    profile = policy.named(policy.usual) if policy.usual else None
    modes = profile.permission_modes if profile else None
    allowed = [s["name"] for s in servers if profile is None or permits_kind(profile, s["type"])]
    return {
        "surface": SURFACE,
        "permission_mode": "bypassPermissions" if modes is None or "bypassPermissions" in modes else None,
        "mcp_servers": {name: {"type": "registered", "name": name} for name in allowed[:MAX_MCP_SERVERS]} or None,
        "repository": {"url": body.repo} if body.repo else None,
    }


def event(kind: str, **fields: Any) -> bytes:
    """One `data:` line, with the empty line behind it that ends an event."""
    return b"data: " + encode({"type": kind, **fields}) + b"\n\n"


def _status(status: str, **more: Any) -> bytes:
    return event("status", status=status, **more)


BEGIN = _status("initializing") + _status("creating_sandbox")
"""What a stream begins with, while the session waits for its turn and its agent starts."""


def farewell(reason: str) -> bytes:
    """The end of a stream that ends before its run."""
    return event("error", error=reason) + event("done")


class Conversation:
    """From a run's events to those of its stream.

    The model's own events are not kept; where its messages and their blocks begin and end is told from their text.
    """

    def __init__(self, session_id: str, ports: Ports, expose: Callable[[Ports], dict[str, str]]) -> None:
        """`ports`: those that are open already. `expose`: port → URL."""
        self._id, self._expose = session_id, expose
        self._urls = expose(ports)
        self._mcp: list[str] = []
        self._said, self._message, self._block, self._last = "", False, False, -1
        self._result: dict[str, Any] | None = None

    def of(self, frame: Frame) -> bytes:
        """The lines for one event; empty for what the original did not tell."""
        tell = {
            "init": self._init,
            "partial": self._partial,
            "message": self._whole,
            "status": self._ports,
            "result": self._end,
            "error": self._error,
            "done": self._done,
        }.get(frame.type)
        return b"" if tell is None else tell(decode(frame.data))

    def _init(self, data: dict[str, Any]) -> bytes:
        servers = data["mcp_servers"]
        self._mcp = [server["name"] for server in servers if server.get("status") != "failed"]
        told = {"cwd": data["cwd"], "session_id": self._id, "tools": data["tools"], "mcp_servers": servers}
        system = {"type": "system", "subtype": "init", **told, "model": data["model"]}
        return b"".join(
            (
                _status("sandbox_ready", sandbox_id=self._id),
                _status("configuring_mcp") if servers else b"",
                event("mcp_configured", mcp_enabled=self._mcp, mcp_gateway_url=None),
                event("ports", exposed_urls=self._urls),
                _status("executing"),
                event("system", data=system),
            )
        )

    def _ports(self, data: dict[str, Any]) -> bytes:
        if data["status"] != "ports":
            return b""
        self._urls = self._expose(data["ports"])
        return event("ports", exposed_urls=self._urls)

    def _partial(self, data: dict[str, Any]) -> bytes:
        if data["parent_tool_use_id"]:
            return b""
        begun = b""
        if not self._block:
            ended = self._close() if data["index"] <= self._last else b""
            begun = ended + self._open(data["index"])
        if data["delta"]["type"] != "text":
            return begun
        self._said += data["delta"]["text"]
        return begun + event("text_delta", text=data["delta"]["text"])

    def _whole(self, data: dict[str, Any]) -> bytes:
        if data["parent_tool_use_id"]:
            return b""
        if data["role"] != "assistant":
            return self._close()
        begun = b"" if self._block else self._open(self._last + 1)
        # Deltas are not durable: what was lost of them is in the message that they build.
        text = "".join(block["text"] for block in data["content"] if block["type"] == "text")
        rest = text.removeprefix(self._said)
        self._said, self._block = "", False
        told = event("text_delta", text=rest) if rest else b""
        return begun + told + event("claude_event", event_type="content_block_stop")

    def _open(self, index: int) -> bytes:
        start = b"" if self._message else event("claude_event", event_type="message_start")
        self._message, self._block, self._last = True, True, index
        return start + event("claude_event", event_type="content_block_start")

    def _close(self) -> bytes:
        if not self._message:
            return b""
        self._message, self._block, self._said, self._last = False, False, "", -1
        return event("claude_event", event_type="message_stop")

    def _end(self, data: dict[str, Any]) -> bytes:
        kept = ("is_error", "duration_ms", "num_turns", "result")
        subtype = "success" if data["status"] == "succeeded" else "error_during_execution"
        self._result = {
            "type": "result",
            "subtype": "error_max_turns" if data["terminal_reason"] == "max_turns" else subtype,
            **{name: data[name] for name in kept},
            "session_id": self._id,
            "total_cost_usd": data["total_cost_usd"] or 0.0,
            "usage": data["usage"] or {},
        }
        return self._close() + event("result", result=self._result)

    def _error(self, data: dict[str, Any]) -> bytes:
        return self._close() + event("error", error=data["message"])

    def _done(self, data: dict[str, Any]) -> bytes:
        complete = {
            "exit_code": _EXIT[data["status"]],
            "session_id": self._id,
            "sandbox_id": self._id,
            "exposed_urls": self._urls,
            "mcp_enabled": self._mcp,
            "mcp_gateway_url": None,
        }
        return self._close() + event("complete", **complete) + event("done")
