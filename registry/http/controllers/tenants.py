"""Tenants, and their tokens. Tenants are the operator's; a tenant's tokens are its admins'."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, delete, get, post
from litestar.params import JSONBody, PathParameter

from registry.http.parameters import TenantPart
from registry.http.service import caller_of, registry_of, service_of
from registry.names import TENANT_CHARACTERS
from registry.principal import Role
from registry.tenants import LABEL_CHARACTERS, IssuedToken, Tenant, Token

TOKEN_ID_CHARACTERS = 40
TokenPart = Annotated[str, PathParameter(max_length=TOKEN_ID_CHARACTERS, description="A token's id, `tok_...`.")]


class NewTenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The name of a tenant to make."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=TENANT_CHARACTERS)]


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token to make. `expires_at` null is never."""

    role: Role = Role.READER
    label: Annotated[str, msgspec.Meta(max_length=LABEL_CHARACTERS)] = ""
    expires_at: datetime | None = None


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

    @post("/{tenant:str}/tokens", sync_to_thread=True)
    def create_token(
        self, request: Request[Any, Any, Any], data: JSONBody[NewToken], tenant: TenantPart
    ) -> IssuedToken:
        """Make a token. Its secret is in this answer and nowhere else."""
        return registry_of(request).create_token(
            tenant, data.role, label=data.label, expires_at=data.expires_at, principal=caller_of(request)
        )


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
