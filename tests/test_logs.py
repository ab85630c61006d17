"""What operators read never holds what clients or agents said."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from pydantic import BaseModel

from apps.api import logs, tracing
from apps.api.core.config.agent import AgentConfig
from apps.api.db import Database
from apps.api.errors import Unavailable
from apps.api.logs import configure_logging, told
from apps.api.runner.agent.process import CannotStart, TranscriptLost
from apps.api.runner.session.hooks import Unusable
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
    logs._instance.clear()
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


@pytest.mark.usefixtures("logging_as_before")
def test_a_line_says_what_its_task_works_on(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings)
    logs.speak_for("an instance")
    logger: Any = structlog.get_logger("test")
    work = tracing.Work(f"00-{'a' * 32}-{'b' * 16}-01", "a request")
    with tracing.working_on(work):
        logger.info("first")
        tracing.queued("a session", "a run")
        logger.info("second", session_id="another session")
    logger.info("third")
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first | {"request_id": "a request", "trace_id": "a" * 32, "instance_id": "an instance"} == first
    assert second | {"session_id": "another session", "run_id": "a run", "trace_id": "a" * 32} == second
    assert "trace_id" not in third
    assert third["instance_id"] == "an instance"


def test_what_quotes_nothing_is_told_with_its_message() -> None:
    assert told(Unavailable("The database is away.")) == "Unavailable: The database is away."
    assert told(FileNotFoundError(2, "No such file", "x")) == "FileNotFoundError: [Errno 2] No such file: 'x'"
    assert told(asyncio.CancelledError(SECRET)) == "CancelledError"
    assert issubclass(asyncpg.DataError, Exception)


@pytest.mark.parametrize("kind", [CannotStart, TranscriptLost, Unusable])
def test_ours_that_quote_are_told_by_their_type(kind: type[Exception]) -> None:
    assert told(kind(SECRET)) == kind.__name__


def _made_by_hand(value: ast.expr) -> bool:
    if isinstance(value, ast.Subscript):
        return _made_by_hand(value.value)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("str", "repr"):
        return isinstance(value.args[0], ast.Name) and value.args[0].id == "error"
    return isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Attribute) and value.attr == "error")


def test_no_log_is_given_the_text_of_an_exception() -> None:
    """It would go around `told`. The fence's exceptions are ours and hold ids alone."""
    found = [
        f"{path.name}: {ast.unparse(call)}"
        for path in Path(logs.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("log.")
        if any(_made_by_hand(given.value) for given in call.keywords)
    ]
    assert [line for line in found if "execution.fenced" not in line] == []
