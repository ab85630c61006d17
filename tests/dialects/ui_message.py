"""What `ai` makes of a UI message stream, by the rules of versions 6 and 7: a chunk that either refuses is an error."""

from __future__ import annotations

import json
from typing import Any

import httpx

CHUNKS: dict[str, tuple[set[str], set[str]]] = {
    # type → members that must be there, and that may be
    "start": (set(), {"messageId", "messageMetadata"}),
    "start-step": (set(), set()),
    "finish-step": (set(), set()),
    "text-start": ({"id"}, set()),
    "text-delta": ({"id", "delta"}, set()),
    "text-end": ({"id"}, set()),
    "reasoning-start": ({"id"}, set()),
    "reasoning-delta": ({"id", "delta"}, set()),
    "reasoning-end": ({"id"}, set()),
    "tool-input-available": ({"toolCallId", "toolName", "input"}, {"dynamic", "providerExecuted"}),
    "tool-approval-request": ({"toolCallId", "approvalId"}, set()),
    "tool-output-available": ({"toolCallId", "output"}, {"preliminary"}),
    "tool-output-error": ({"toolCallId", "errorText"}, set()),
    "tool-output-denied": ({"toolCallId"}, set()),
    "message-metadata": ({"messageMetadata"}, set()),
    "finish": ({"finishReason"}, {"messageMetadata"}),
    "error": ({"errorText"}, set()),
    "abort": (set(), {"reason"}),
}
TEXTS = {"id", "delta", "toolCallId", "toolName", "approvalId", "errorText", "messageId"}
REASONS = {"stop", "length", "content-filter", "tool-calls", "error", "other"}


class Message:
    """A message, and all chunks that it was made of. `parts` are what the client keeps."""

    def __init__(self, parts: list[dict[str, Any]] | None = None, id_: str = "") -> None:
        self.id, self.parts, self.metadata = id_, list(parts or []), dict[str, Any]()
        self.chunks: list[dict[str, Any]] = []
        self.error = ""
        self.ended = False
        self._open: dict[tuple[str, str], dict[str, Any]] = {}
        self._changed = False

    @property
    def text(self) -> str:
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def tool(self, call: str = "") -> dict[str, Any]:
        """The part of a call, or the last one."""
        return next(
            part
            for part in reversed(self.parts)
            if part.get("toolCallId", "") in (call, *([] if call else [part.get("toolCallId")]))
            and "toolCallId" in part
        )

    def take(self, chunk: dict[str, Any]) -> None:
        kind = chunk["type"]
        assert not self.error, f"{kind} after an error"
        self.chunks.append(chunk)
        if kind.startswith("data-"):
            assert set(chunk) <= {"type", "data", "id", "transient"}, chunk
            assert "data" in chunk
            self._data(chunk)
            return
        needed, more = CHUNKS[kind]
        assert needed <= set(chunk) - {"type"} <= needed | more, chunk
        assert all(isinstance(chunk[name], str) for name in TEXTS & set(chunk)), chunk
        assert all(chunk[name] is not None for name in more & set(chunk)), chunk
        getattr(self, "_" + kind.replace("-", "_").replace("reasoning", "text"))(chunk)

    def _data(self, chunk: dict[str, Any]) -> None:
        if chunk.get("transient"):
            return
        same = [p for p in self.parts if p["type"] == chunk["type"] and p.get("id") == chunk.get("id")]
        if same:
            same[0]["data"] = chunk["data"]
        else:
            self.parts.append(dict(chunk))

    def _start(self, chunk: dict[str, Any]) -> None:
        assert not self.id or chunk["messageId"] == self.id, "another id makes another message of the same parts"
        self.id = chunk["messageId"]
        self.metadata |= chunk.get("messageMetadata", {})

    def _start_step(self, _chunk: dict[str, Any]) -> None:
        self.parts.append({"type": "step-start"})

    def _finish_step(self, _chunk: dict[str, Any]) -> None:
        assert not self._open, "version 6 forgets what is open"

    def _text_start(self, chunk: dict[str, Any]) -> None:
        kind = chunk["type"].partition("-")[0]
        part = {"type": kind, "text": ""}
        assert (kind, chunk["id"]) not in self._open
        self._open[kind, chunk["id"]] = part
        self.parts.append(part)

    def _text_delta(self, chunk: dict[str, Any]) -> None:
        self._open[chunk["type"].partition("-")[0], chunk["id"]]["text"] += chunk["delta"]

    def _text_end(self, chunk: dict[str, Any]) -> None:
        del self._open[chunk["type"].partition("-")[0], chunk["id"]]

    def _tool_input_available(self, chunk: dict[str, Any]) -> None:
        found = [p for p in self.parts if p.get("toolCallId") == chunk["toolCallId"]]
        part = found[0] if found else {"toolCallId": chunk["toolCallId"]}
        kind = "dynamic-tool" if chunk.get("dynamic") else f"tool-{chunk['toolName']}"
        part |= {"type": kind, "toolName": chunk["toolName"], "input": chunk["input"], "state": "input-available"}
        part |= {"providerExecuted": True} if chunk.get("providerExecuted") else {}
        if not found:
            self.parts.append(part)

    def _of(self, chunk: dict[str, Any], **more: Any) -> None:
        next(p for p in self.parts if p.get("toolCallId") == chunk["toolCallId"]).update(more)

    def _tool_approval_request(self, chunk: dict[str, Any]) -> None:
        self._of(chunk, state="approval-requested", approval={"id": chunk["approvalId"]})

    def _tool_output_available(self, chunk: dict[str, Any]) -> None:
        self._of(chunk, state="output-available", output=chunk["output"])

    def _tool_output_error(self, chunk: dict[str, Any]) -> None:
        self._of(chunk, state="output-error", errorText=chunk["errorText"])

    def _tool_output_denied(self, chunk: dict[str, Any]) -> None:
        self._of(chunk, state="output-denied")

    def _message_metadata(self, chunk: dict[str, Any]) -> None:
        self.metadata |= chunk["messageMetadata"]

    def _finish(self, chunk: dict[str, Any]) -> None:
        assert chunk["finishReason"] in REASONS
        assert not self._open
        self.ended = True

    def _error(self, chunk: dict[str, Any]) -> None:
        self.error = chunk["errorText"]

    def _abort(self, _chunk: dict[str, Any]) -> None:
        pass

    def blocked(self) -> list[str]:
        """Calls of the last step that keep a client from sending what its user has decided."""
        last = len(self.parts) - next(n for n, p in enumerate(reversed(self.parts)) if p["type"] == "step-start")
        done = ("output-available", "output-error", "output-denied", "approval-responded")
        tools = [part for part in self.parts[last:] if "toolCallId" in part]
        return [part["toolCallId"] for part in tools if part["state"] not in done]

    def given(self) -> dict[str, Any]:
        """As the client sends it back."""
        return {"id": self.id, "role": "assistant", "parts": self.parts, "metadata": self.metadata}


async def read(response: httpx.Response, onto: Message | None = None) -> Message:
    """A stream, to its end."""
    message = onto or Message()
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    over = False
    async for line in response.aiter_lines():
        if not line or line.startswith(":"):
            continue
        assert line.startswith("data: "), line
        assert not over
        if line == "data: [DONE]":
            over = True
        else:
            message.take(json.loads(line[6:]))
    assert over
    return message
