"""From exceptions to responses. One shape for the native API; a dialect registers its own for its prefix."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError as PydanticError
from slowapi.errors import RateLimitExceeded
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from apps.api.codes import ErrorCode
from apps.api.core.config import sdk_options
from apps.api.db import CONNECTION_ERRORS, is_connection_error
from apps.api.errors import ApiError, BadRequest, RateLimited, Unavailable, ValidationError
from apps.api.web import figures
from apps.api.web.answer import Json
from apps.api.web.route import Instance

log = structlog.get_logger(__name__)


class Refused(HTTPException):
    """An error that is found while a body is read: FastAPI turns whatever else is raised then into its own 400."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.status, error.message)
        self.error = error


_HTTP_CODES: dict[int, ErrorCode] = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def native(error: ApiError, request_id: str) -> tuple[int, Any]:
    """The native API's own shape."""
    body = error.body(request_id)
    return error.status, {**body, "error": {**body["error"], "details": figures.details(error.details)}}


def error_response(scope: Scope, error: ApiError) -> Response:
    """The answer that a client of this path understands."""
    instance: Instance | None = getattr(scope["app"].state, "instance", None) if "app" in scope else None
    path, shapes = scope["path"], instance.error_shapes if instance else {}
    shape = next((s for prefix, s in shapes.items() if path == prefix or path.startswith(f"{prefix}/")), native)
    request_id = str(scope.get("state", {}).get("request_id", ""))
    status, body = shape(error, request_id)
    return Json(body, status_code=status, headers=error.headers)


def _field(location: tuple[Any, ...]) -> str:
    # Where it was found, and which member of a union pydantic tried, are no part of a field's name.
    names = [str(part) for part in location if "[" not in str(part) and part != "str"]
    return ".".join(names[1:] if len(names) > 1 and names[0] in ("body", "path", "query", "header") else names)


def _reason(error: Any) -> str:
    if error["loc"] == ("body",) and error["type"] in ("model_attributes_type", "missing"):
        return "send a JSON object, with Content-Type: application/json"
    if error["type"] == "extra_forbidden" and (reason := sdk_options.why_not(error["loc"])):
        return reason
    return str(error["msg"]).removeprefix("Value error, ")


def findings(errors: Iterable[Any]) -> list[dict[str, str]]:
    """What pydantic found, as field and reason. Never echoes the input."""
    return [{"field": _field(error["loc"]), "reason": _reason(error)} for error in errors]


def from_validation(error: RequestValidationError | PydanticError) -> ApiError:
    """422 with the path of every field, or 400 when the body is no JSON at all. Never echoes the input."""
    found = error.errors()
    if any(e["type"] == "json_invalid" for e in found):
        return BadRequest("The body is not valid JSON.", code="invalid_json")
    errors = findings(found[:50])
    summary = "; ".join(f"{e['field']}: {e['reason']}" for e in errors[:3])
    return ValidationError(summary or "The request is not valid.", details={"errors": errors})


def _from_http(error: HTTPException) -> ApiError:
    if isinstance(error, Refused):
        return error.error
    made = ApiError(str(error.detail), code=_HTTP_CODES.get(error.status_code, "bad_request"), headers=error.headers)
    made.status = error.status_code
    return made


_traced: dict[type[Exception], float] = {}


def _is_news(error: Exception) -> bool:
    """Whether no other error of its kind was logged with all of its frames within a second: that costs more than many
    requests do."""
    now = time.monotonic()
    if now - _traced.get(type(error), -math.inf) < 1.0:
        return False
    _traced[type(error)] = now
    return True


def from_exception(error: Exception, request_id: str) -> ApiError:
    """The error that a client is told for whatever was raised. What nobody expected is logged."""
    if isinstance(error, ApiError):
        return error
    if is_connection_error(error):
        log.warning("request.dependency_unavailable", error=type(error).__name__)
        text = "A part that this service depends on is away. Try again."
        return Unavailable(text, headers={"Retry-After": "1"})
    log.error("request.failed", error=error, request_id=request_id, exc_info=error if _is_news(error) else None)
    return ApiError("The server failed. The request id helps to find out why.")


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> Response:
        return error_response(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.scope, from_validation(error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return error_response(request.scope, _from_http(error))

    @app.exception_handler(RateLimitExceeded)
    async def _limited(request: Request, error: RateLimitExceeded) -> Response:
        limited = RateLimited("Too many requests from this address.", headers={"Retry-After": "60"})
        return error_response(request.scope, limited)

    async def _other(request: Request, error: Exception) -> Response:
        request_id = str(request.scope.get("state", {}).get("request_id", ""))
        found = from_exception(error, request_id)
        if found.status == 500 and request_id:
            # Starlette answers this one outside of all middleware, so nobody else adds the header.
            found.headers["X-Request-ID"] = request_id
        return error_response(request.scope, found)

    for kind in (*CONNECTION_ERRORS, DBAPIError):
        app.add_exception_handler(kind, _other)
    app.add_exception_handler(Exception, _other)
