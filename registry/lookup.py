"""Finds adapters and versions inside an open transaction, as one caller may see them.

What the caller may not read is filtered in the query itself, so that a foreign private adapter and a missing one take
the same path, the same time and the same words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, or_, select, true
from sqlalchemy.orm import Session

from registry.errors import ConflictError, NotFoundError
from registry.file_entry import FileEntry
from registry.models import AdapterRow, AliasRow, TenantRow, VersionExpertRow, VersionFileRow, VersionRow
from registry.names import AdapterName, AdapterRef
from registry.principal import Principal
from registry.scope import ESCAPE
from registry.verdict import read_verdict
from registry.version import Version, Visibility

VERSIONS_PER_QUERY = 1000
"""Databases bound the number of parameters of a statement."""

VersionTriple = tuple[VersionRow, AdapterRow, str]
"""A version's row, its adapter's, and the tenant's name."""


def is_readable(principal: Principal) -> ColumnElement[bool]:
    """The condition on adapters (joined with tenants) that this caller may read."""
    if principal.is_operator:
        return true()
    own = [TenantRow.name == principal.tenant]
    if principal.scope is not None:
        own.append(or_(*(AdapterRow.name.like(like, escape=ESCAPE) for like in principal.scope.like_patterns())))
    return or_(AdapterRow.visibility == Visibility.PUBLIC.value, and_(*own))


def find_adapter(session: Session, name: AdapterName, principal: Principal, *, lock: bool = False) -> AdapterRow:
    """The adapter's row; with `lock`, kept from other writers until the transaction ends. Raises NotFoundError."""
    query = (
        select(AdapterRow)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(TenantRow.name == name.tenant, AdapterRow.name == name.name, is_readable(principal))
    )
    row = session.scalar(query.with_for_update(of=AdapterRow) if lock else query)
    if row is None:
        raise missing_adapter(name)
    return row


def find_version(session: Session, ref: AdapterRef, principal: Principal) -> VersionTriple:
    """The version that this reference means to this caller. Raises NotFoundError, ConflictError."""
    if ref.adapter is None:
        return _find_by_digest(session, ref, principal)
    adapter = find_adapter(session, ref.adapter, principal)
    query = select(VersionRow).where(VersionRow.adapter_id == adapter.id)
    if ref.number is not None:
        query = query.where(VersionRow.number == ref.number)
    elif ref.alias is not None:
        query = query.join(AliasRow, AliasRow.version_id == VersionRow.id)
        query = query.where(AliasRow.adapter_id == adapter.id, AliasRow.name == ref.alias)
    elif ref.digest_hex is not None:
        query = query.where(digest_begins(f"sha256:{ref.digest_hex}"))
    rows = session.scalars(query.order_by(VersionRow.number.desc()).limit(2)).all()
    if ref.digest_hex is not None and len(rows) > 1:
        raise ConflictError(f"{str(ref)!r} fits several versions. Give more digits of the digest.")
    if not rows:
        kind = "version" if ref.alias is None else "alias"
        raise NotFoundError(kind, str(ref), f"See its versions and aliases with `loraplex show {ref.adapter}`.")
    return rows[0], adapter, ref.adapter.tenant


def digest_begins(prefix: Any) -> ColumnElement[bool]:
    """The condition on versions whose digest begins so: a range, which an index answers, and LIKE would not.

    Every hexadecimal digit sorts before "g", in every collation.
    """
    return and_(VersionRow.digest >= prefix, VersionRow.digest < prefix + "g")


def missing_adapter(name: AdapterName) -> NotFoundError:
    """The one error for an adapter that does not exist and for one that the caller may not read."""
    return NotFoundError("adapter", str(name), "See those that you can read with `loraplex ls`.")


def joined_versions(principal: Principal) -> Select[VersionRow, AdapterRow, str]:
    """All versions that this caller may read, with their adapters and tenants."""
    return (
        select(VersionRow, AdapterRow, TenantRow.name)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(is_readable(principal))
    )


def to_versions(session: Session, triples: Iterable[VersionTriple]) -> list[Version]:
    """Turn rows into values; their files and experts are asked for many versions at a time."""
    listed = list(triples)
    files = _files_of(session, [row.id for row, _, _ in listed])
    experts = _experts_of(session, [row.id for row, _, _ in listed])
    return [
        to_version(row, adapter.name, adapter.visibility, tenant, files[row.id], experts.get(row.id, ()))
        for row, adapter, tenant in listed
    ]


def _find_by_digest(session: Session, ref: AdapterRef, principal: Principal) -> VersionTriple:
    """A digest may be in several adapters, with equal bytes: the caller's own comes first, then the oldest."""
    query = joined_versions(principal).where(VersionRow.digest == f"sha256:{ref.digest_hex}")
    found = session.execute(query.order_by(TenantRow.name != (principal.tenant or ""), VersionRow.id).limit(1)).first()
    if found is None:
        raise NotFoundError("version", str(ref), "See the digests that you can read with `loraplex show ADAPTER`.")
    row, adapter, tenant = found
    return row, adapter, tenant


def _files_of(session: Session, version_ids: Sequence[int]) -> dict[int, tuple[FileEntry, ...]]:
    files: dict[int, list[FileEntry]] = {version_id: [] for version_id in version_ids}
    query = select(VersionFileRow).order_by(VersionFileRow.version_id, VersionFileRow.path)
    for start in range(0, len(version_ids), VERSIONS_PER_QUERY):
        asked = version_ids[start : start + VERSIONS_PER_QUERY]
        for row in session.scalars(query.where(VersionFileRow.version_id.in_(asked))):
            files[row.version_id].append(FileEntry(row.path, row.size, row.sha256))
    return {version_id: tuple(entries) for version_id, entries in files.items()}


def _experts_of(session: Session, version_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    experts: dict[int, tuple[str, ...]] = {}
    query = select(VersionExpertRow).order_by(VersionExpertRow.version_id, VersionExpertRow.place)
    for start in range(0, len(version_ids), VERSIONS_PER_QUERY):
        asked = version_ids[start : start + VERSIONS_PER_QUERY]
        for row in session.scalars(query.where(VersionExpertRow.version_id.in_(asked))):
            experts[row.version_id] = (*experts.get(row.version_id, ()), row.digest)
    return experts


def to_version(
    row: VersionRow | Row[Any],
    name: str,
    visibility: str,
    tenant: str,
    files: tuple[FileEntry, ...],
    experts: tuple[str, ...],
) -> Version:
    """The value of a version's row; `name` and `visibility` are the adapter's."""
    return Version(
        tenant=tenant,
        adapter=f"{tenant}/{name}",
        number=row.number,
        digest=row.digest,
        base_fingerprint=row.base_fingerprint,
        base_verified=row.base_verified,
        files=files,
        adapter_bytes=row.adapter_bytes,
        rank=row.rank,
        target_modules=tuple(json.loads(row.target_modules)),
        visibility=Visibility(visibility),
        created_at=row.created_at,
        created_by=row.created_by,
        manifest=None if row.manifest is None else json.loads(row.manifest),
        message=row.message,
        parent_digest=row.parent_digest,
        data_digest=row.data_digest,
        serving=read_verdict(row.verdict),
        experts=experts,
    )
