"""Tenants and tokens of a registry in process, and who the caller is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from registry.database import Database
from registry.errors import InvalidValueError
from registry.principal import OPERATOR, Principal, Role
from registry.scope import Scope
from registry.tenant import IssuedToken, Tenant, Token
from registry.tenants import Tenants


class LocalTenants:
    """A part of `Registry`: who may ask, and as whom."""

    def __init__(self, database: Database) -> None:
        self._tenants = Tenants(database)

    def create_tenant(self, name: str, *, principal: Principal = OPERATOR) -> Tenant:
        """Make a tenant."""
        return self._tenants.create(name, principal=principal)

    def list_tenants(self, *, principal: Principal = OPERATOR) -> list[Tenant]:
        """Every tenant, by name; a token's holder sees its own."""
        return self._tenants.all(principal=principal)

    def create_token(
        self,
        tenant: str,
        role: Role | str,
        *,
        label: str = "",
        expires_at: datetime | None = None,
        scope: Sequence[str] | None = None,
        principal: Principal = OPERATOR,
    ) -> IssuedToken:
        """Make a token; its secret is in the result and nowhere else.

        `scope` are the adapters that it is for, named without the tenant (`sql-*` is all that begin so); None is all.
        """
        try:
            parsed = Role(role)
        except ValueError as error:
            raise InvalidValueError("role", f"it is one of {', '.join(Role)}") from error
        chosen = None if scope is None else Scope.parse(scope)
        return self._tenants.create_token(
            tenant, parsed, label=label, expires_at=expires_at, scope=chosen, principal=principal
        )

    def rotate_token(
        self, token_id: str, *, overlap: timedelta = timedelta(0), principal: Principal = OPERATOR
    ) -> IssuedToken:
        """Make a token that takes this one's place; the old one ends after the overlap."""
        return self._tenants.rotate_token(token_id, overlap=overlap, principal=principal)

    def revoke_token(self, token_id: str, *, principal: Principal = OPERATOR) -> Token:
        """End a token's life."""
        return self._tenants.revoke_token(token_id, principal=principal)

    def list_tokens(self, tenant: str, *, principal: Principal = OPERATOR) -> list[Token]:
        """A tenant's tokens, without their secrets."""
        return self._tenants.tokens(tenant, principal=principal)

    def has_tokens(self) -> bool:
        """Whether a token was ever made here; while none was, a server may listen on loopback only."""
        return self._tenants.has_tokens()

    def authenticate(self, secret: str) -> Principal:
        """The principal whose secret this is. Raises AuthenticationError."""
        return self._tenants.authenticate(secret)
