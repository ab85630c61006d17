"""What operators read never holds what clients or agents said."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest
import structlog
from pydantic import BaseModel

from apps.api.core.config.agent import AgentConfig
from apps.api.db import Database
from apps.api.errors import Unavailable
from apps.api.logs import configure_logging, told
from apps.api.settings import Settings

SECRET = "what-somebody-said"


class Strict(BaseModel):
    number: int


async def _pydantic(_: Database) -> None:
    AgentConfig.model_validate({"env": {"A": SECRET}, "max_turns": SECRET})


async def _argument(db: Database) -> None:
    await db.pool.execute("SELECT $1::int", SECRET)


async def _text(db: Database) -> None:
    await db.pool.execute("SELECT $1::text", f"{SECRET}\x00")


async def _syntax(db: Database) -> None:
    await db.pool.execute("SELECT $1::text::uuid", SECRET)


async def _check(db: Database) -> None:
    await db.pool.execute("INSERT INTO tenants (name) VALUES ($1)", SECRET + " !")


async def _unicode(_: Database) -> None:
    f"{SECRET}\ud83d".encode()


async def _key(_: Database) -> None:
    dict[str, str]()[SECRET]


async def _chained(_: Database) -> None:
    try:
        int(SECRET)
    except ValueError as error:
        raise RuntimeError(SECRET) from error


async def _group(_: Database) -> None:
    raise ExceptionGroup(SECRET, [ValueError(SECRET), KeyError(SECRET)])


QUOTING: list[Callable[[Database], Awaitable[None]]] = [
    _pydantic,
    _argument,
    _text,
    _syntax,
    _check,
    _unicode,
    _key,
    _chained,
    _group,
]


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    logging.basicConfig(force=True)


@pytest.mark.parametrize("fail", QUOTING, ids=lambda fail: fail.__name__)
@pytest.mark.usefixtures("logging_as_before")
async def test_no_log_quotes_what_an_exception_quotes(
    settings: Settings, db: Database, fail: Callable[[Database], Awaitable[None]], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging(settings)
    logger: Any = structlog.get_logger("test")
    try:
        await fail(db)
    except Exception as error:
        logger.error("failed", error=error, exc_info=True)
        logger.error("failed", error=error, exc_info=error)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=error)
        name = type(error).__name__
    written = capsys.readouterr().err
    assert SECRET not in written
    first = json.loads(written.splitlines()[0])
    assert first["error"].startswith(f"{name} at ")
    assert "tests/test_logs.py" in first["exception"]
    assert written.count(name) >= 3


def test_what_quotes_nothing_is_told_with_its_message() -> None:
    assert told(Unavailable("The database is away.")) == "Unavailable: The database is away."
    assert told(FileNotFoundError(2, "No such file", "x")) == "FileNotFoundError: [Errno 2] No such file: 'x'"
    assert told(asyncio.CancelledError(SECRET)) == "CancelledError"
    assert issubclass(asyncpg.DataError, Exception)
