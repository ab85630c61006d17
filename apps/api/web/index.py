"""What `/` answers: the console for people, and for programs where to go on."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response
from starlette.responses import RedirectResponse

from apps.api import __version__
from apps.api.web.route import core_of

router = APIRouter()


@router.get("/", include_in_schema=False)
async def index(request: Request) -> Response:
    """Needs no key and says nothing that `/health` does not."""
    settings = core_of(request).settings
    if settings.web_console and "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("console")  # a proxy may have stripped the beginning of the path
    places = {"name": "Claude Agent API", "version": __version__, "api": "/api/v1", "health": "/health"}
    places |= {"console": "/console"} if settings.web_console else {}
    places |= {"docs": "/docs", "openapi": "/openapi.json"} if settings.api_docs else {}
    # With a line end, for those who look at it with a bare curl.
    return Response(json.dumps(places) + "\n", media_type="application/json", headers={"Vary": "Accept"})
