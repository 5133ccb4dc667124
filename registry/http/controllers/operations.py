"""What an orchestrator asks: the process lives, the registry answers, the metrics."""

from __future__ import annotations

from typing import Any

from litestar import MediaType, Request, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from registry.errors import StorageError
from registry.http.access import ADMIN, OPEN
from registry.http.service import service_of


@get("/livez", opt={OPEN: True}, media_type=MediaType.TEXT, include_in_schema=False)
async def livez() -> str:
    """The event loop answers."""
    return "ok"


@get("/readyz", opt={OPEN: True}, include_in_schema=False)
async def readyz(request: Request[Any, Any, Any]) -> Response[str]:
    """The catalog can be read and the server is not draining."""
    service = service_of(request)
    try:
        await service.transfers.run(service.registry.has_tokens)
    except StorageError:
        is_ready = False
    else:
        is_ready = not service.draining.is_set()
    text = "ready" if is_ready else "not ready"
    return Response(text, status_code=200 if is_ready else 503, media_type=MediaType.TEXT)


@get("/metrics", opt={ADMIN: True}, include_in_schema=False)
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """All counters as they are now; with tokens, for admins, unless the settings open it."""
    return Response(generate_latest(service_of(request).metrics), media_type=CONTENT_TYPE_LATEST)
