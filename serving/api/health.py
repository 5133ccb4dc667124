"""The probes of an orchestrator: the process lives, the server is ready, the server has started. Open to everybody."""

from __future__ import annotations

from typing import Any

from litestar import MediaType, Request, Response, get

from serving.api.access import OPEN
from serving.api.service import service_of


@get("/livez", opt={OPEN: True}, media_type=MediaType.TEXT)
async def livez() -> str:
    """The event loop answers."""
    return "ok"


@get("/readyz", opt={OPEN: True})
async def readyz(request: Request[Any, Any, Any]) -> Response[str]:
    """The engine has spoken within a few seconds and the server is not draining. The registry plays no part."""
    return _answer(service_of(request).is_ready, "ready", "not ready")


@get("/startupz", opt={OPEN: True})
async def startupz(request: Request[Any, Any, Any]) -> Response[str]:
    """The engine has been ready once."""
    return _answer(service_of(request).engine.was_ready, "started", "starting")


def _answer(holds: bool, yes: str, no: str) -> Response[str]:
    return Response(yes if holds else no, status_code=200 if holds else 503, media_type=MediaType.TEXT)
