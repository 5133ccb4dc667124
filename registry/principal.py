"""Who is asking: a tenant's token with a role, or the local operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from registry.errors import PermissionDeniedError
from registry.names import AdapterName
from registry.scope import Scope

OPERATOR_ACTOR = "operator"


class Role(StrEnum):
    """What a token may do in its own tenant; each role may also do what the ones before it may."""

    READER = "reader"
    PUBLISHER = "publisher"
    PROMOTER = "promoter"
    ADMIN = "admin"

    def includes(self, needed: Role) -> bool:
        """Whether this role is the needed one or higher."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True)
class Principal:
    """The caller. `tenant` is None only for the operator, who owns the machine and may do everything.

    `secret` is set where another machine's registry authenticated the caller: asking it on the caller's behalf needs
    the token itself (`registry.client`). `scope` None is every adapter of the tenant; otherwise the private ones that
    it does not name are not there for this caller.
    """

    tenant: str | None
    role: Role
    token_id: str | None
    secret: str | None = field(default=None, repr=False, compare=False, kw_only=True)
    scope: Scope | None = field(default=None, kw_only=True)

    @classmethod
    def operator(cls) -> Principal:
        """Whoever can run commands on the machine that holds the registry."""
        return cls(tenant=None, role=Role.ADMIN, token_id=None)

    @property
    def is_operator(self) -> bool:
        """Whether no tenant bounds this caller."""
        return self.tenant is None

    @property
    def actor(self) -> str:
        """How histories and the audit log name this caller."""
        return OPERATOR_ACTOR if self.token_id is None else self.token_id

    def covers(self, name: AdapterName) -> bool:
        """Whether the adapter is of this caller's tenant and in its scope."""
        if self.tenant is None:
            return True
        return self.tenant == name.tenant and (self.scope is None or self.scope.covers(name.name))

    def require(self, needed: Role, name: AdapterName, *, action: str) -> None:
        """Raises PermissionDeniedError unless this caller may act on the tenant's adapters in this role."""
        if self.tenant is not None and self.tenant != name.tenant:
            why = f"your token belongs to tenant {self.tenant!r}"
            raise PermissionDeniedError(action, str(name), f"{why}; use a token of {name.tenant!r}")
        if not self.covers(name):
            why = f"your token is for {self.scope} only"
            raise PermissionDeniedError(
                action, str(name), f"{why}; ask an admin of {name.tenant!r} for one that names it"
            )
        if not self.role.includes(needed):
            why = f"your token has the role {self.role.value!r}, and this needs {needed.value!r}"
            raise PermissionDeniedError(action, str(name), f"{why}; ask an admin of {name.tenant!r} for one")

    def require_operator(self, *, action: str, subject: str) -> None:
        """Raises PermissionDeniedError unless this caller is the operator."""
        if not self.is_operator:
            why = "only the operator of the registry may, on its machine or with the operator's token"
            raise PermissionDeniedError(action, subject, why)

    def require_tenant(self, needed: Role, tenant: str, *, action: str) -> None:
        """As `require`, for what concerns the whole tenant: a token with a scope may not do it."""
        if self.tenant is not None and self.tenant != tenant:
            why = f"your token belongs to tenant {self.tenant!r}"
            raise PermissionDeniedError(action, tenant, f"{why}; use a token of {tenant!r}")
        if self.scope is not None:
            why = f"your token is for {self.scope} only, and this concerns all of {tenant!r}"
            raise PermissionDeniedError(action, tenant, f"{why}; ask an admin for a token without a scope")
        if not self.role.includes(needed):
            why = f"your token has the role {self.role.value!r}, and this needs {needed.value!r}"
            raise PermissionDeniedError(action, tenant, f"{why}; ask an admin of {tenant!r} for one")


OPERATOR = Principal.operator()
"""The default caller of methods that are the operator's."""
