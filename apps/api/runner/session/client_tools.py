"""Client tools as the agent's program knows them: an MCP server of this process, whose calls wait for the client's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from claude_agent_sdk import McpSdkServerConfig
from mcp.server import Server
from mcp.types import CallToolResult, ImageContent, ListToolsResult, TextContent, Tool, ToolAnnotations

from apps.api.core.config import client_tools
from apps.api.core.config.client_tools import ClientTool
from apps.api.runner.session.approvals import Approvals

_TOOL_USE_ID = "claudecode/toolUseId"
"""Under which the CLI names the call in the metadata of a request (seen with 2.1.332)."""


def server(tools: Sequence[ClientTool], approvals: Approvals) -> McpSdkServerConfig | None:
    """The server with these tools, if there are any. An input that does not fit, and a call that nobody answers, are
    errors that the agent reads."""
    if not tools:
        return None
    known = {tool.name: tool for tool in tools}
    # Only calls of tools that change nothing are made at the same time by the CLI.
    listed = [
        Tool(
            name=tool.name,
            description=tool.description,
            input_schema=tool.input_schema,
            annotations=ToolAnnotations(read_only_hint=True) if tool.read_only else None,
        )
        for tool in known.values()
    ]

    async def list_tools(_context: Any, _params: Any) -> ListToolsResult:
        return ListToolsResult(tools=listed)

    async def call(_context: Any, params: Any) -> CallToolResult:
        tool, given = known.get(params.name), params.arguments or {}
        if tool is None:
            return _error(f"There is no tool {params.name[:100]}.")
        if reason := await asyncio.to_thread(client_tools.misfit, tool, given):
            return _error(f"The input does not fit the tool: {reason}")
        call_id = str((params.meta or {}).get(_TOOL_USE_ID) or "")
        answer = await approvals.result_of(tool.name, given, call_id)
        if answer is None:
            return _error("Nobody has answered this call.")
        return CallToolResult(content=[_block(block) for block in answer["content"]], is_error=answer["is_error"])

    made: Server[Any] = Server(client_tools.SERVER, on_list_tools=list_tools, on_call_tool=call)
    return McpSdkServerConfig(type="sdk", name=client_tools.SERVER, instance=made)


def _error(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def _block(block: dict[str, Any]) -> TextContent | ImageContent:
    if block["type"] == "text":
        return TextContent(type="text", text=block["text"])
    source = block["source"]
    return ImageContent(type="image", data=source["data"], mime_type=source["media_type"])
