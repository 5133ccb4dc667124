"""The guard before every route: nobody passes without a principal, but on the routes that say they are open.

A route is open by `opt={OPEN: True}`; one for admins only by `opt={ADMIN: True}`. Whatever says nothing is closed.
"""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from serving.api.auth import require_admin
from serving.api.errors import answer_of
from serving.api.service import Service
from serving.errors import AccessError

OPEN = "loraplex_open"
ADMIN = "loraplex_admin"


async def require_access(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Litestar guard: puts the principal at `request.auth`. Raises AccessError, RegistryUnavailableError."""
    service: Service = connection.app.state["service"]
    if handler.opt.get(OPEN):
        return
    if handler.opt.get(ADMIN) and service.settings.metrics_open:
        return
    try:
        connection.scope["auth"] = principal = await service.authenticator.principal_of(
            connection.headers.get("authorization"),
            host=connection.headers.get("host"),
            origin=connection.headers.get("origin"),
        )
        if handler.opt.get(ADMIN):
            require_admin(principal)
    except AccessError as error:
        service.instruments.access_denied(answer_of(error).code)
        raise
