"""Spans of tool calls: from the message of the agent that makes one to the message that has its result."""

from __future__ import annotations

from claude_agent_sdk import AssistantMessage, Message, ToolResultBlock, ToolUseBlock, UserMessage

from apps.api import tracing
from apps.api.core import codec
from apps.api.runner.session.turn import Turns

MAX_OPEN = 1_000
"""Calls of one process that are kept in mind. What a subagent leaves without a result ends with its turn."""


class ToolSpans:
    """Those of one session's agents. Nothing is kept where traces are sent nowhere."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self._open = turns, dict[str, tracing.Span]()

    def hear(self, message: Message) -> None:
        """A message of the agent."""
        if not tracing.on():
            return
        if isinstance(message, AssistantMessage):
            parent = self._open.get(message.parent_tool_use_id or "")
            for block in message.content:
                if isinstance(block, ToolUseBlock) and len(self._open) < MAX_OPEN:
                    self._begin(block, parent)
        elif isinstance(message, UserMessage) and not isinstance(message.content, str):
            for block in message.content:
                if isinstance(block, ToolResultBlock) and (span := self._open.pop(block.tool_use_id, None)):
                    span.end("the tool failed" if block.is_error else None)

    def _begin(self, call: ToolUseBlock, parent: tracing.Span | None) -> None:
        name = codec.clean_text(call.name)[:200]  # an agent's word
        about = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.call.id": codec.clean_text(call.id)[:200],
            **tracing.attributes(self._turns.told()),
        }
        above = parent.traceparent if parent else self._turns.traceparent
        self._open[call.id] = tracing.begin(f"execute_tool {name}", above, about)

    def end(self) -> None:
        """The turn has ended: what has no result gets none."""
        for span in self._open.values():
            span.end("no result")
        self._open.clear()
