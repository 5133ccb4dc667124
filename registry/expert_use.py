"""Which versions are experts of living mixtures: these are kept, however old they are and whoever deletes.

A mixture uses versions of its own tenant, by digest. Of several versions with the same digest all but one may go.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from registry.models import AdapterRow, TenantRow, VersionExpertRow, VersionRow

IDS_PER_QUERY = 500
"""Databases bound the number of parameters of a statement."""


def mixture_in_need(session: Session, tenant: TenantRow, doomed: Sequence[int]) -> str | None:
    """The name of a mixture that would stay and lose an expert, if these versions of the tenant went."""
    going = frozenset(doomed)
    for start in range(0, len(doomed), IDS_PER_QUERY):
        found = session.execute(_uses(tenant.id).where(VersionRow.id.in_(doomed[start : start + IDS_PER_QUERY])))
        for digest, mixture_id, adapter, number in found:
            if mixture_id not in going and not _has_another(session, tenant, digest, going):
                return f"{tenant.name}/{adapter}@{number}"
    return None


def expert_ids(session: Session, adapter: AdapterRow) -> set[int]:
    """Versions of the adapter that a mixture of its tenant uses."""
    query = _uses(adapter.tenant_id).with_only_columns(VersionRow.id).where(VersionRow.adapter_id == adapter.id)
    return set(session.scalars(query))


def _uses(tenant_id: int) -> Select[str, int, str, int]:
    """The versions of a tenant that its mixtures use: digest, and the mixture's id, adapter and number."""
    mixture, of_mixture, of_version = aliased(VersionRow), aliased(AdapterRow), aliased(AdapterRow)
    return (
        select(VersionRow.digest, mixture.id, of_mixture.name, mixture.number)
        .join(of_version, of_version.id == VersionRow.adapter_id)
        .join(VersionExpertRow, VersionExpertRow.digest == VersionRow.digest)
        .join(mixture, mixture.id == VersionExpertRow.version_id)
        .join(of_mixture, of_mixture.id == mixture.adapter_id)
        .where(of_mixture.tenant_id == tenant_id, of_version.tenant_id == tenant_id)
        .order_by(mixture.id)
    )


def _has_another(session: Session, tenant: TenantRow, digest: str, going: Collection[int]) -> bool:
    query = select(VersionRow.id).join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
    query = query.where(AdapterRow.tenant_id == tenant.id, VersionRow.digest == digest)
    return any(version_id not in going for version_id in session.scalars(query))
