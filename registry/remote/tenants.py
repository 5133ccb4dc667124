"""Tenants and tokens of a registry over HTTP, and who the caller is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from registry.errors import AuthenticationError, InvalidValueError
from registry.identity import Identity
from registry.names import parse_tenant
from registry.principal import OPERATOR, Principal, Role
from registry.remote.transport import Transport, part
from registry.scope import Scope
from registry.tenant import IssuedToken, Tenant, Token


class RemoteTenants:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def create_tenant(self, name: str, *, principal: Principal = OPERATOR) -> Tenant:
        """Make a tenant."""
        return self._http.ask("POST", "/tenants", Tenant, principal=principal, body={"name": parse_tenant(name)})

    def list_tenants(self, *, principal: Principal = OPERATOR) -> list[Tenant]:
        """Every tenant, by name; a token's holder sees its own."""
        return self._http.get("/tenants", list[Tenant], principal=principal)

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
        """Make a token; its secret is in the result and nowhere else."""
        if role not in list(Role):
            raise InvalidValueError("role", f"it is one of {', '.join(Role)}")
        body: dict[str, Any] = {"role": role, "label": label, "expires_at": expires_at, "scope": scope}
        path = f"/tenants/{part(tenant)}/tokens"
        return self._http.ask("POST", path, IssuedToken, principal=principal, body=body)

    def rotate_token(
        self, token_id: str, *, overlap: timedelta = timedelta(0), principal: Principal = OPERATOR
    ) -> IssuedToken:
        """Make a token that takes this one's place; the old one ends after the overlap."""
        body = {"overlap_seconds": overlap.total_seconds()}
        path = f"/tokens/{part(token_id)}/rotate"
        return self._http.ask("POST", path, IssuedToken, principal=principal, body=body)

    def revoke_token(self, token_id: str, *, principal: Principal = OPERATOR) -> Token:
        """End a token's life."""
        return self._http.ask("DELETE", f"/tokens/{part(token_id)}", Token, principal=principal)

    def list_tokens(self, tenant: str, *, principal: Principal = OPERATOR) -> list[Token]:
        """A tenant's tokens, without their secrets."""
        return self._http.get(f"/tenants/{part(tenant)}/tokens", list[Token], principal=principal)

    def has_tokens(self) -> bool:
        """Whether a token was ever made there."""
        try:
            return self._http.get("/whoami", Identity, principal=None).has_tokens
        except AuthenticationError:
            return True

    def authenticate(self, secret: str) -> Principal:
        """The principal whose secret this is; it carries the secret, to ask this registry with."""
        if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise AuthenticationError
        asking = Principal(tenant=None, role=Role.READER, token_id=None, secret=secret)
        found = self._http.get("/whoami", Identity, principal=asking)
        if found.is_open:
            raise AuthenticationError
        return Principal(
            tenant=found.tenant,
            role=found.role,
            token_id=found.token_id,
            secret=secret,
            scope=None if found.scope is None else Scope(found.scope),
        )
