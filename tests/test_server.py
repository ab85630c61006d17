"""The server around the application: what begins with it ends with it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI

from apps.api.server import build_server
from apps.api.settings import Settings


async def test_what_made_the_start_fail_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("the database is away")
        yield

    server = build_server(FastAPI(lifespan=lifespan), Settings(_env_file=None), host="127.0.0.1", port=0)
    with pytest.raises(RuntimeError, match="the database is away"):
        await server.serve()
    assert "Traceback" not in caplog.text


async def test_a_port_that_is_taken_ends_what_had_begun() -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        told.append("begun")
        try:
            yield
        finally:
            told.append("ended")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = build_server(FastAPI(lifespan=lifespan), Settings(_env_file=None), host="127.0.0.1", port=port)
        with pytest.raises(SystemExit):
            await server.serve()
    assert told == ["begun", "ended"]
