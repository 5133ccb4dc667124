"""Who the caller is."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, get

from registry.http.service import caller_of, registry_of
from registry.principal import Role


class Identity(msgspec.Struct, frozen=True):
    """The caller. `tenant` null is the operator; `has_tokens` says whether the registry has made any token yet."""

    tenant: str | None
    role: Role
    token_id: str | None
    is_operator: bool
    has_tokens: bool
    scope: list[str] | None


@get("/whoami", sync_to_thread=True, tags=("identity",))
def whoami(request: Request[Any, Any, Any]) -> Identity:
    """The tenant and role of the token that was sent."""
    caller = caller_of(request)
    return Identity(
        tenant=caller.tenant,
        role=caller.role,
        token_id=caller.token_id,
        is_operator=caller.is_operator,
        has_tokens=registry_of(request).has_tokens(),
        scope=None if caller.scope is None else list(caller.scope.patterns),
    )
