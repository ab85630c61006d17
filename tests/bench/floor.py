"""What a bare FastAPI application costs on this machine: one that stores a row for each prompt, and streams that say
nothing. No service on these libraries does the same for less, whatever else it does.

`python -m tests.bench.floor` serves it, and prints its port; FLOOR_DATABASE is a DSN.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import uuid4

import asyncpg
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from tests.bench.client import Connection
from tests.bench.stage import SYNTHETIC, Stage, python_module
from tests.fleet import API_KEY

KEEP_ALIVE_SECONDS = 15.0


class Prompt(BaseModel):
    prompt: str


class Accepted(BaseModel):
    run_id: str


@asynccontextmanager
async def _database(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(os.environ["FLOOR_DATABASE"], min_size=10, max_size=10) as pool:
        await pool.execute("CREATE TABLE IF NOT EXISTS bench_floor (id uuid PRIMARY KEY, prompt text NOT NULL)")
        app.state.pool = pool
        yield


app = FastAPI(lifespan=_database)


@app.post("/prompts", status_code=202)
async def store(request: Request, body: Prompt) -> Accepted:
    """Store it, and say so."""
    made = uuid4()
    await request.app.state.pool.execute("INSERT INTO bench_floor (id, prompt) VALUES ($1, $2)", made, body.prompt)
    return Accepted(run_id=str(made))


@app.get("/events")
async def events() -> StreamingResponse:
    """A sign of life now and then."""

    async def signs() -> AsyncIterator[bytes]:
        while True:
            yield b": keep-alive\n\n"
            await asyncio.sleep(KEEP_ALIVE_SECONDS)

    return StreamingResponse(signs(), media_type="text/event-stream")


@dataclass(frozen=True, slots=True)
class Floor:
    """The application while it runs."""

    pid: int
    url: str

    async def connect(self) -> Connection:
        return await Connection.open(self.url, API_KEY)


@asynccontextmanager
async def served(stage: Stage) -> AsyncIterator[Floor]:
    """The application in a process of its own, on the database of the instances without agents."""
    dsn = stage.servers.database_owner_url(SYNTHETIC).replace("+asyncpg", "")
    async with python_module("tests.bench.floor", {"FLOOR_DATABASE": dsn}) as process:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 30))
        yield Floor(process.pid, f"http://127.0.0.1:{port}")


def main() -> None:
    """Serve it as uvicorn does for us, until SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False))
        print(listening.getsockname()[1], flush=True)
        server.run(sockets=[listening])


if __name__ == "__main__":
    main()
