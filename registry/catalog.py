"""Adapters and their versions in the database. One method is one transaction.

Who may act is decided by the verbs above (`publish.py`, `resolve.py`); what a caller may see is decided here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events, tombstones
from registry.database import Database
from registry.errors import ConflictError
from registry.event import EventKind
from registry.failpoints import reach
from registry.lookup import find_adapter, find_version, is_readable, to_versions
from registry.models import AdapterRow, TenantRow, VersionExpertRow, VersionFileRow, VersionRow
from registry.names import AdapterName, AdapterRef
from registry.principal import Principal, Role
from registry.trees import DEFAULT_BRANCH, insert_commit, tree_file
from registry.usage import charge_version, claim, locked_tenant
from registry.verdict import write_verdict
from registry.version import Version, VersionDraft, Visibility


class Catalog:
    """Adapters and versions. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_version(
        self,
        name: AdapterName,
        draft: VersionDraft,
        *,
        visibility: Visibility | None,
        principal: Principal,
        git_oids: Mapping[str, str] | None = None,
    ) -> tuple[Version, bool]:
        """Give the draft the adapter's next number, and put it on the main branch; the flag says whether it is new.

        A digest that the adapter already has gives the version that has it. The adapter is made where it does not
        exist, and so is the tenant where the operator publishes. The blobs must be reserved and stored before
        (`quotas.py`). `git_oids` are git's names of the small files, by path.
        Raises ConflictError, PermissionDeniedError, QuotaExceededError.
        """
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant = locked_tenant(session, name.tenant, principal, now)
            adapter = adapter_for_publish(session, name, tenant, visibility, principal, now)
            row, is_new = enter_version(session, name, tenant, adapter, draft, principal, now)
            if is_new:
                _commit_version(session, adapter, row, draft, git_oids or {}, principal, now)
            reach("publish.before_commit")
            return to_versions(session, [(row, adapter, tenant.name)])[0], is_new

    def version(self, ref: AdapterRef, principal: Principal) -> Version:
        """The version that the reference means now. Raises NotFoundError, ConflictError."""
        with self._database.reading() as session:
            return to_versions(session, [find_version(session, ref, principal)])[0]

    def versions(self, name: AdapterName, principal: Principal) -> list[Version]:
        """All versions of an adapter, newest first. Raises NotFoundError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            query = select(VersionRow).where(VersionRow.adapter_id == adapter.id).order_by(VersionRow.number.desc())
            return to_versions(session, [(row, adapter, name.tenant) for row in session.scalars(query)])

    def experts(self, tenant: str, digests: Sequence[str], principal: Principal) -> dict[str, Version]:
        """The versions of this tenant with these digests that the caller may read: what a mixture may use."""
        with self._database.reading() as session:
            query = (
                select(VersionRow, AdapterRow)
                .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
                .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
                .where(TenantRow.name == tenant, VersionRow.digest.in_(digests), is_readable(principal))
                .order_by(VersionRow.id)
            )
            found = to_versions(session, [(row, adapter, tenant) for row, adapter in session.execute(query)])
            return {version.digest: version for version in reversed(found)}


def adapter_for_publish(
    session: Session,
    name: AdapterName,
    tenant: TenantRow,
    visibility: Visibility | None,
    principal: Principal,
    now: datetime,
) -> AdapterRow:
    """The adapter's row, locked; it is made where there is none. The tenant's row is locked by the caller."""
    query = select(AdapterRow).where(AdapterRow.tenant_id == tenant.id, AdapterRow.name == name.name)
    adapter = session.scalar(query.with_for_update())
    if adapter is None:
        adapter = AdapterRow(
            tenant_id=tenant.id,
            name=name.name,
            visibility=(visibility or Visibility.PRIVATE).value,
            last_number=tombstones.check_free(session, tenant.id, name, now),
            created_at=now,
            updated_at=now,
        )
        session.add(adapter)
        session.flush()
    elif visibility is not None and visibility.value != adapter.visibility:
        principal.require(Role.ADMIN, name, action=f"make {visibility.value}")
        adapter.visibility = visibility.value
        facts = {"visibility": visibility.value}
        _tell(session, name, adapter, EventKind.ADAPTER_VISIBILITY, principal, now, facts, was_public=True)
        audit.record(
            session, at=now, actor=principal.actor, action="visibility", subject=str(name), visibility=visibility.value
        )
    return adapter


def enter_version(
    session: Session,
    name: AdapterName,
    tenant: TenantRow,
    adapter: AdapterRow,
    draft: VersionDraft,
    principal: Principal,
    now: datetime,
) -> tuple[VersionRow, bool]:
    """The version of this draft, and whether it is new. The rows of tenant and adapter are locked by the caller.

    Raises ConflictError, QuotaExceededError.
    """
    query = select(VersionRow).where(VersionRow.adapter_id == adapter.id, VersionRow.digest == draft.digest)
    present = session.scalar(query)
    if present is not None:
        if present.base_fingerprint != draft.base_fingerprint:
            raise ConflictError(
                f"The same files are version {present.number} of {str(name)!r} already, for base "
                f"{present.base_fingerprint}; you named base {draft.base_fingerprint}. A version never "
                "changes: publish under another name."
            )
        return present, False
    _check_experts(session, tenant, draft)
    charge_version(session, tenant)
    claim(session, tenant, (file.sha256 for file in draft.files))
    row = _insert_version(session, adapter, draft, principal, now)
    audit.record(
        session, at=now, actor=principal.actor, action="publish", subject=f"{name}@{row.number}", digest=row.digest
    )
    _tell(session, name, adapter, EventKind.VERSION_PUBLISHED, principal, now, _facts(row))
    return row, True


def _check_experts(session: Session, tenant: TenantRow, draft: VersionDraft) -> None:
    """The experts were judged before the tenant was locked: they must still be there. Raises ConflictError."""
    if not draft.experts:
        return
    query = select(VersionRow.digest).join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
    query = query.where(AdapterRow.tenant_id == tenant.id, VersionRow.digest.in_(draft.experts))
    if gone := set(draft.experts) - set(session.scalars(query)):
        raise ConflictError(f"Expert {min(gone)} was deleted meanwhile. Nothing was changed: publish it again first.")


def _commit_version(
    session: Session,
    adapter: AdapterRow,
    row: VersionRow,
    draft: VersionDraft,
    git_oids: Mapping[str, str],
    principal: Principal,
    now: datetime,
) -> None:
    """The main branch becomes exactly this version's files."""
    title, _, rest = draft.message.partition("\n")
    insert_commit(
        session,
        adapter,
        [tree_file(file.path, file.sha256, file.size, git_oids.get(file.path)) for file in draft.files],
        branch=DEFAULT_BRANCH,
        title=title.strip() or f"Version {row.number}",
        message=rest.strip(),
        author=principal.actor,
        at=now,
        version_id=row.id,
    )


def _insert_version(
    session: Session, adapter: AdapterRow, draft: VersionDraft, principal: Principal, now: datetime
) -> VersionRow:
    adapter.last_number += 1
    adapter.updated_at = now
    row = VersionRow(
        adapter_id=adapter.id,
        number=adapter.last_number,
        digest=draft.digest,
        base_fingerprint=draft.base_fingerprint,
        base_verified=draft.base_verified,
        adapter_bytes=draft.adapter_bytes,
        rank=draft.rank,
        target_modules=json.dumps(draft.target_modules),
        manifest=None if draft.manifest is None else json.dumps(draft.manifest, sort_keys=True),
        message=draft.message,
        created_at=now,
        created_by=principal.actor,
        parent_digest=draft.parent_digest,
        data_digest=draft.data_digest,
        verdict=None if draft.serving is None else write_verdict(draft.serving),
    )
    session.add(row)
    session.flush()
    session.add_all(
        VersionFileRow(version_id=row.id, path=file.path, size=file.size, sha256=file.sha256) for file in draft.files
    )
    session.add_all(
        VersionExpertRow(version_id=row.id, place=place, digest=digest) for place, digest in enumerate(draft.experts)
    )
    session.flush()
    return row


def _facts(row: VersionRow) -> dict[str, str | int]:
    return {"version": row.number, "digest": row.digest, "base_fingerprint": row.base_fingerprint}


def _tell(
    session: Session,
    name: AdapterName,
    adapter: AdapterRow,
    kind: EventKind,
    principal: Principal,
    now: datetime,
    facts: Mapping[str, str | int],
    *,
    was_public: bool = False,
) -> None:
    """Record an event. Whoever could read the adapter before the change learns of it: `was_public`."""
    events.record(
        session,
        at=now,
        kind=kind,
        tenant=name.tenant,
        adapter=str(name),
        is_public=was_public or adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": principal.actor, **facts},
    )
