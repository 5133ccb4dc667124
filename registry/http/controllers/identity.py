"""Who the caller is."""

from __future__ import annotations

from typing import Any

from litestar import Request, get

from registry.http.service import caller_of, service_of
from registry.identity import Identity


@get("/whoami", sync_to_thread=True, tags=("identity",))
def whoami(request: Request[Any, Any, Any]) -> Identity:
    """The tenant and role of the token that was sent."""
    caller, service = caller_of(request), service_of(request)
    return Identity(
        tenant=caller.tenant,
        role=caller.role,
        token_id=caller.token_id,
        scope=None if caller.scope is None else caller.scope.patterns,
        is_operator=caller.is_operator,
        is_open=service.authenticator.is_open,
        has_tokens=service.registry.has_tokens(),
    )
