"""An MCP server for tests: over stdio when this file is run, over HTTP with `serving`."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

PROGRAM = Path(__file__)
COMMAND_LINE = shlex.join([sys.executable, "-I", str(PROGRAM)])
"""What operators allow in the tests: MCP_STDIO_COMMANDS."""


def stdio(**env: str) -> dict[str, Any]:
    """The server as a session names it."""
    command, *args = shlex.split(COMMAND_LINE)
    return {"type": "stdio", "command": command, "args": args, "env": env}


def _server() -> MCPServer:
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("things")

    @server.tool()
    def weigh(thing: str) -> str:
        """Say what a thing weighs."""
        return f"{thing} weighs {len(os.environ.get('SCALE', ''))} stone"

    return server


@contextlib.contextmanager
def serving(
    transport: Literal["http", "sse"], address: str = "127.0.0.1", port: int = 0
) -> Iterator[tuple[str, set[str]]]:
    """Serve in a thread: yields the URL, and the set of `authorization` headers and queries that come."""
    import uvicorn

    seen: set[str] = set()
    inner = _server().streamable_http_app() if transport == "http" else _server().sse_app()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.update(value.decode() for name, value in scope["headers"] if name == b"authorization")
            seen.add(scope["query_string"].decode())
            # It answers only to its own name, and may have others here.
            scope["headers"] = [(n, v if n != b"host" else b"127.0.0.1:1") for n, v in scope["headers"]]
        await inner(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    with socket.create_server((address, port)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), name="mcp-things")
        thread.start()
        path = "/mcp" if transport == "http" else "/sse"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}{path}", seen
        finally:
            server.should_exit = True
            thread.join(10)


if __name__ == "__main__":
    _server().run("stdio")
