"""Deleting and renaming: what is needed (`version_needs.py`) is refused, and what is gone leaves a tombstone.

One method is one transaction. Bytes are not touched here: garbage collection frees them when nothing refers to them any
more (`gc.py`). A request that has its files already finishes; the next one finds nothing. Commits whose tree was a
deleted version go with it, and branches that pointed at them fall back to the newest commit that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from registry import audit, events, tombstones
from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, InvalidValueError
from registry.event import EventKind
from registry.expert_use import mixture_in_need
from registry.failpoints import reach
from registry.lookup import find_adapter, find_version
from registry.models import (
    AdapterRow,
    AliasMoveRow,
    AliasPolicyRow,
    AliasRow,
    AttestationRow,
    CanaryRow,
    CommitFileRow,
    CommitRow,
    LeaseRow,
    MirrorRow,
    PinRow,
    RefRow,
    RetentionRow,
    TenantRow,
    VersionExpertRow,
    VersionFileRow,
    VersionRow,
)
from registry.names import AdapterName, AdapterRef
from registry.principal import Principal, Role
from registry.trees import BRANCH, DEFAULT_BRANCH, FORMER_TAG, insert_commit, point
from registry.usage import blob_rows, locked_tenant
from registry.version import Visibility
from registry.version_needs import refuse_needed

OF_VERSION = (AttestationRow, LeaseRow, PinRow, VersionExpertRow, VersionFileRow)
"""What is a version's own and goes with it."""
OF_ADAPTER = (CanaryRow, AliasPolicyRow, AliasRow, AliasMoveRow, RefRow, RetentionRow, MirrorRow)
"""What is an adapter's own and goes with it."""
IDS_PER_STATEMENT = 500
LINGER = timedelta(hours=1)
"""How long the bytes of what was deleted stay at least."""


class Deletion:
    """Deletes and renames. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def delete_version(self, ref: AdapterRef, principal: Principal, *, force: bool) -> None:
        """Delete a version. Raises NotFoundError, PermissionDeniedError, and NeededVersionError.

        `force` deletes one that a server has loaded or a rollback would go back to; what an alias points at or somebody
        pinned stays anyway.
        """
        name = ref.adapter
        if name is None or ref.is_bare:
            raise InvalidNameError("a version to delete", str(ref), "name the adapter and the version: acme/text2sql@3")
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant, adapter = _locked(session, name, principal, now, action="delete a version of")
            version, _, _ = find_version(session, ref, principal)
            refuse_needed(session, name, tenant, adapter, version, now, force=force)
            remove_version(session, tenant, adapter, name, version, actor=principal.actor, now=now)
            reach("delete.before_commit")
        reach("delete.after_commit")

    def delete_adapter(self, name: AdapterName, principal: Principal) -> None:
        """Delete an adapter with its versions, aliases and history; the audit log and the tombstones stay.

        Raises NotFoundError, PermissionDeniedError, and ConflictError while one of its versions is pinned.
        """
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant, adapter = _locked(session, name, principal, now, action="delete")
            pinned = select(VersionRow.number).join(PinRow, PinRow.version_id == VersionRow.id)
            numbers = session.scalars(pinned.where(VersionRow.adapter_id == adapter.id)).all()
            if numbers:
                raise ConflictError(
                    f"{str(name)!r} cannot be deleted: version {min(numbers)} is pinned. "
                    f"Look at why with `loraplex pins {name}`, and unpin it first."
                )
            versions = session.execute(
                select(VersionRow.id, VersionRow.number, VersionRow.digest).where(VersionRow.adapter_id == adapter.id)
            ).all()
            if (found := mixture_in_need(session, tenant, [row.id for row in versions])) is not None:
                raise ConflictError(
                    f"{str(name)!r} cannot be deleted: the mixture {found} uses a version of it. Delete that first."
                )
            buried = [(row.number, row.digest) for row in versions]
            tombstones.bury_versions(session, tenant.id, name, buried, actor=principal.actor, at=now)
            tombstones.bury_name(session, tenant.id, name, actor=principal.actor, at=now)
            _tell(session, EventKind.ADAPTER_DELETED, name, adapter, principal.actor, now, {"versions": len(versions)})
            _linger(session, tenant, [row.id for row in versions], now)
            _delete_adapter(session, tenant, adapter, [row.id for row in versions])
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="delete_adapter",
                subject=str(name),
                versions=len(versions),
            )
            reach("delete.before_commit")
        reach("delete.after_commit")

    def move_adapter(self, old: AdapterName, new: AdapterName, principal: Principal) -> None:
        """Rename an adapter within its tenant; its versions and aliases stay as they are.

        Raises NotFoundError, PermissionDeniedError, and ConflictError where the new name is taken or rests.
        """
        if new.tenant != old.tenant:
            raise InvalidValueError(
                "name", f"{str(new)!r} is in another tenant than {str(old)!r}; publish it there and delete it here"
            )
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant, adapter = _locked(session, old, principal, now, action="rename")
            principal.require(Role.ADMIN, new, action="rename to")
            if new == old:
                return
            taken = select(AdapterRow.id).where(AdapterRow.tenant_id == tenant.id, AdapterRow.name == new.name)
            if session.scalar(taken) is not None:
                raise ConflictError(f"{str(new)!r} exists already. Choose another name.")
            tombstones.move(session, tenant.id, old, new, actor=principal.actor, now=now)
            adapter.name = new.name
            adapter.updated_at = now
            _tell(session, EventKind.ADAPTER_MOVED, old, adapter, principal.actor, now, {"moved_to": str(new)})
            audit.record(
                session, at=now, actor=principal.actor, action="move_adapter", subject=str(old), moved_to=str(new)
            )
            reach("delete.before_commit")
        reach("delete.after_commit")

    def moved_to(self, name: AdapterName, principal: Principal) -> AdapterName | None:
        """Where the adapter of this name went, if it was renamed and the caller may read it there."""
        with self._database.reading() as session:
            return tombstones.find_moved(session, name, principal)


def remove_version(
    session: Session,
    tenant: TenantRow,
    adapter: AdapterRow,
    name: AdapterName,
    version: VersionRow,
    *,
    actor: str,
    now: datetime,
) -> None:
    """Take a version away that nothing needs, inside a transaction that has locked the tenant and the adapter."""
    number, digest = version.number, version.digest
    tombstones.bury_versions(session, tenant.id, name, [(number, digest)], actor=actor, at=now)
    _linger(session, tenant, [version.id], now)
    _delete_commits(session, adapter, version, actor, now)
    _delete_versions(session, tenant, [version.id])
    adapter.updated_at = now
    facts = {"version": number, "digest": digest}
    _tell(session, EventKind.VERSION_DELETED, name, adapter, actor, now, facts)
    audit.record(session, at=now, actor=actor, action="delete_version", subject=f"{name}@{number}", digest=digest)


def _locked(
    session: Session, name: AdapterName, principal: Principal, now: datetime, *, action: str
) -> tuple[TenantRow, AdapterRow]:
    """The rows of the tenant and of the adapter, locked. What the caller may not read is missing."""
    find_adapter(session, name, principal)
    principal.require(Role.ADMIN, name, action=action)
    tenant = locked_tenant(session, name.tenant, principal, now)
    return tenant, find_adapter(session, name, principal, lock=True)


def _linger(session: Session, tenant: TenantRow, version_ids: Sequence[int], now: datetime) -> None:
    """Keep the bytes for a while: a request that was resolved already may be about to read them."""
    digests: set[str] = set()
    for start in range(0, len(version_ids), IDS_PER_STATEMENT):
        chosen = VersionFileRow.version_id.in_(version_ids[start : start + IDS_PER_STATEMENT])
        digests.update(session.scalars(select(VersionFileRow.sha256).where(chosen)))
    for row in blob_rows(session, tenant, digests).values():
        row.leased_until = max(row.leased_until or now, now + LINGER)
    session.flush()


def _delete_commits(session: Session, adapter: AdapterRow, version: VersionRow, actor: str, now: datetime) -> None:
    """Take away the commits whose tree is the version; branches fall back to what is left before them."""
    query = select(CommitRow.id, CommitRow.parent_id, CommitRow.version_id).where(CommitRow.adapter_id == adapter.id)
    rows = session.execute(query.order_by(CommitRow.sequence)).all()
    parents = _parents([(row.id, row.parent_id) for row in rows])
    doomed = [row.id for row in rows if row.version_id == version.id]
    branches = session.scalars(
        select(RefRow.name).where(RefRow.adapter_id == adapter.id, RefRow.kind == BRANCH, RefRow.commit_id.in_(doomed))
    ).all()
    for branch in branches:
        left: str | None = session.get_one(RefRow, (adapter.id, BRANCH, branch)).commit_id
        while left is not None and left in doomed:
            left = parents[left]
        if left is not None:
            point(session, adapter, BRANCH, branch, left, at=now)
        elif branch == DEFAULT_BRANCH:
            title = f"Delete version {version.number}"
            options: dict[str, Any] = {"title": title, "message": "", "author": actor}
            insert_commit(session, adapter, (), branch=branch, at=now, version_id=None, **options)
        else:
            session.delete(session.get_one(RefRow, (adapter.id, BRANCH, branch)))
    session.flush()
    former = select(RefRow).where(RefRow.adapter_id == adapter.id, RefRow.kind == FORMER_TAG)
    for row in session.scalars(former.where(RefRow.commit_id.in_(doomed))).all():
        session.delete(row)
    session.flush()
    _delete_where(session, CommitFileRow, CommitFileRow.commit_id, doomed)
    _delete_where(session, CommitRow, CommitRow.id, doomed)


def _parents(commits: Sequence[tuple[str, str | None]]) -> dict[str, str | None]:
    """The parent of each commit, oldest first; the commit before it, where the parent went with a version earlier."""
    known: dict[str, str | None] = {}
    before: str | None = None
    for commit, parent in commits:
        known[commit] = parent if parent is None or parent in known else before
        before = commit
    return known


def _delete_adapter(session: Session, tenant: TenantRow, adapter: AdapterRow, version_ids: Sequence[int]) -> None:
    for table in OF_ADAPTER:
        session.execute(delete(table).where(table.adapter_id == adapter.id))
    commits = session.scalars(select(CommitRow.id).where(CommitRow.adapter_id == adapter.id)).all()
    _delete_where(session, CommitFileRow, CommitFileRow.commit_id, commits)
    _delete_where(session, CommitRow, CommitRow.id, commits)
    _delete_versions(session, tenant, version_ids)
    session.delete(adapter)
    session.flush()


def _delete_versions(session: Session, tenant: TenantRow, version_ids: Sequence[int]) -> None:
    for table in OF_VERSION:
        _delete_where(session, table, table.version_id, version_ids)
    _delete_where(session, VersionRow, VersionRow.id, version_ids)
    tenant.used_versions -= len(version_ids)


def _delete_where(session: Session, table: type[Any], column: Any, values: Sequence[Any]) -> None:
    for start in range(0, len(values), IDS_PER_STATEMENT):
        chosen = column.in_(values[start : start + IDS_PER_STATEMENT])
        session.execute(delete(table).where(chosen).execution_options(synchronize_session=False))


def _tell(
    session: Session,
    kind: EventKind,
    name: AdapterName,
    adapter: AdapterRow,
    actor: str,
    at: datetime,
    facts: dict[str, Any],
) -> None:
    events.record(
        session,
        at=at,
        kind=kind,
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": actor, **facts},
    )
