"""GET /metrics: everything that Prometheus reads, in its text format.

It names the adapters of all tenants, so with tokens it needs one with the role admin, unless the settings open it.
"""

from __future__ import annotations

from typing import Any

from litestar import Request, Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.api.access import ADMIN
from serving.api.service import service_of


@get("/metrics", opt={ADMIN: True})
async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
    """All metrics as they are now."""
    return Response(generate_latest(service_of(request).metrics), media_type=CONTENT_TYPE_LATEST)
