"""Finds a tenant's row inside a transaction that others own."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import NotFoundError
from registry.models import TenantRow


def find_tenant(session: Session, name: str, *, lock: bool = False) -> TenantRow:
    """The tenant's row; with `lock`, kept from other writers until the transaction ends. Raises NotFoundError."""
    query = select(TenantRow).where(TenantRow.name == name)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise missing_tenant(name)
    return row


def missing_tenant(name: str) -> NotFoundError:
    """The error for a tenant that does not exist."""
    return NotFoundError(
        "tenant", name, "List them with `loraplex tenant ls`, or make it with `loraplex tenant create`."
    )
