"""The guard before every REST route: nobody passes without a principal, but on the routes that say they are open.

A route is open by `opt={OPEN: True}`; one for admins only by `opt={ADMIN: True}`. Whatever says nothing is closed. What
a principal may do with a tenant's things is decided by the registry itself. Parameters of the query that a route does
not know are refused here, too.
"""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.params import QueryParameter

from registry.errors import InvalidValueError, PermissionDeniedError
from registry.http.service import RegistryService
from registry.principal import Role

OPEN = "loraplex_open"
ADMIN = "loraplex_admin"


async def require_access(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Litestar guard: puts the principal at `request.auth`.

    Raises MissingTokenError, AuthenticationError, PermissionDeniedError, InvalidValueError, StorageError.
    """
    service: RegistryService = connection.app.state["service"]
    if not handler.opt.get(OPEN) and not (handler.opt.get(ADMIN) and service.settings.metrics_open):
        principal = await service.authenticator.principal_of_scope(connection.scope)
        connection.scope["auth"] = principal
        if handler.opt.get(ADMIN) and not principal.role.includes(Role.ADMIN):
            raise PermissionDeniedError("read", "this", "it needs a token with the role 'admin'")
    if connection.scope["query_string"]:
        _refuse_unknown_query(connection, handler)


def _refuse_unknown_query(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    known = {
        field.kwarg_definition.name or name
        for name, field in handler.parsed_fn_signature.parameters.items()
        if isinstance(field.kwarg_definition, QueryParameter)
    }
    for name in connection.query_params:
        if name not in known:
            raise InvalidValueError(name[:64], "this route knows no such parameter of the query")
