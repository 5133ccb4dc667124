"""What a server tells a caller of who it is."""

from __future__ import annotations

import msgspec

from registry.principal import Role


class Identity(msgspec.Struct, frozen=True):
    """The caller. `tenant` null is the operator.

    `is_open`: the server needs no tokens, so it has looked at none. `has_tokens`: the registry has made one before.
    """

    tenant: str | None
    role: Role
    token_id: str | None
    scope: tuple[str, ...] | None
    is_operator: bool
    is_open: bool
    has_tokens: bool
