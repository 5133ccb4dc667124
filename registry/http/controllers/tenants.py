"""Tenants, and their tokens. Tenants are the operator's; a tenant's tokens are its admins'."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post
from litestar.params import JSONBody, PathParameter

from registry.http.parameters import TenantPart
from registry.http.service import caller_of, registry_of, service_of
from registry.names import ADAPTER_CHARACTERS, TENANT_CHARACTERS
from registry.principal import Role
from registry.scope import PATTERNS_LIMIT
from registry.tenant import IssuedToken, Tenant, Token
from registry.tenants import LABEL_CHARACTERS, OVERLAP_LIMIT

TOKEN_ID_CHARACTERS = 40
TokenPart = Annotated[str, PathParameter(max_length=TOKEN_ID_CHARACTERS, description="A token's id, `tok_...`.")]


class NewTenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a tenant to make."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=TENANT_CHARACTERS)]


ScopePattern = Annotated[str, msgspec.Meta(min_length=1, max_length=ADAPTER_CHARACTERS)]


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token to make. `expires_at` null is never; `scope` null is every adapter of the tenant."""

    role: Role = Role.READER
    label: Annotated[str, msgspec.Meta(max_length=LABEL_CHARACTERS)] = ""
    expires_at: datetime | None = None
    scope: Annotated[list[ScopePattern], msgspec.Meta(min_length=1, max_length=PATTERNS_LIMIT)] | None = None


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the old token stays valid beside the new one."""

    overlap_seconds: Annotated[float, msgspec.Meta(ge=0, le=OVERLAP_LIMIT.total_seconds())] = 0.0


class TenantController(Controller):
    """Namespaces with adapters and tokens of their own."""

    path = "/tenants"
    tags = ("tenants",)

    @get(sync_to_thread=True)
    def list_tenants(self, request: Request[Any, Any, Any]) -> list[Tenant]:
        """Every tenant, by name; whoever has a token is shown its own."""
        return registry_of(request).list_tenants(principal=caller_of(request))

    @post(sync_to_thread=True)
    def create_tenant(self, request: Request[Any, Any, Any], data: JSONBody[NewTenant]) -> Tenant:
        """Make a tenant. For the operator only."""
        return registry_of(request).create_tenant(data.name, principal=caller_of(request))

    @get("/{tenant:str}/tokens", sync_to_thread=True)
    def list_tokens(self, request: Request[Any, Any, Any], tenant: TenantPart) -> list[Token]:
        """A tenant's tokens, without their secrets, oldest first."""
        return registry_of(request).list_tokens(tenant, principal=caller_of(request))

    @post("/{tenant:str}/tokens")
    async def create_token(
        self, request: Request[Any, Any, Any], data: JSONBody[NewToken], tenant: TenantPart
    ) -> IssuedToken:
        """Make a token. Its secret is in this answer and nowhere else. The first one closes an open server."""
        service = service_of(request)
        issued = await service.transfers.run(
            service.registry.create_token,
            tenant,
            data.role,
            label=data.label,
            expires_at=data.expires_at,
            scope=data.scope,
            principal=caller_of(request),
        )
        service.authenticator.forget()
        return issued


class TokenController(Controller):
    """Tokens by their ids."""

    path = "/tokens"
    tags = ("tenants",)

    @delete("/{token_id:str}", status_code=200)
    async def revoke_token(self, request: Request[Any, Any, Any], token_id: TokenPart) -> Token:
        """End a token's life at once, for this server too; doing it again changes nothing."""
        service = service_of(request)
        token = await service.transfers.run(service.registry.revoke_token, token_id, principal=caller_of(request))
        service.authenticator.forget()
        return token

    @post("/{token_id:str}/rotate")
    async def rotate_token(
        self, request: Request[Any, Any, Any], data: JSONBody[Rotation], token_id: TokenPart
    ) -> IssuedToken:
        """Make a token that takes this one's place. Its secret is in this answer and nowhere else."""
        service = service_of(request)
        overlap = timedelta(seconds=data.overlap_seconds)
        issued = await service.transfers.run(
            service.registry.rotate_token, token_id, overlap=overlap, principal=caller_of(request)
        )
        service.authenticator.forget()
        return issued
