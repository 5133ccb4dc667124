"""Who is asking: a tenant's token with a role, or the local operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from registry.errors import PermissionDeniedError
from registry.names import AdapterName

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
    the token itself (`registry.client`).
    """

    tenant: str | None
    role: Role
    token_id: str | None
    secret: str | None = field(default=None, repr=False, compare=False, kw_only=True)

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

    def may_read(self, tenant: str, *, is_public: bool) -> bool:
        """Whether this caller may know of an adapter of this tenant."""
        return is_public or self.tenant is None or self.tenant == tenant

    def require(self, needed: Role, name: AdapterName, *, action: str) -> None:
        """Raises PermissionDeniedError unless this caller may act on the tenant's adapters in this role."""
        if self.tenant is not None and self.tenant != name.tenant:
            why = f"your token belongs to tenant {self.tenant!r}"
            raise PermissionDeniedError(action, str(name), f"{why}; use a token of {name.tenant!r}")
        if not self.role.includes(needed):
            why = f"your token has the role {self.role.value!r}, and this needs {needed.value!r}"
            raise PermissionDeniedError(action, str(name), f"{why}; ask an admin of {name.tenant!r} for one")
