"""A tenant and its tokens, as they are shown. What makes and checks them is in `tenants.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from registry.principal import Role


@dataclass(frozen=True)
class Tenant:
    """A namespace with its own adapters and tokens."""

    name: str
    created_at: datetime


@dataclass(frozen=True)
class Token:
    """What is kept of a token: everything but its secret."""

    token_id: str
    tenant: str
    role: Role
    label: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scope: tuple[str, ...] | None = None
    replaced_by: str | None = None


@dataclass(frozen=True)
class IssuedToken(Token):
    """A token just made. Its secret is nowhere else, and not in its repr."""

    secret: str = field(repr=False, kw_only=True)
