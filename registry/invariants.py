"""What always holds in the catalog, checked row by row. It reads and reports; `fsck.py` says what to do about it.

Numbers     every number up to the adapter's last one is a version's or a tombstone's
Digests     a version's digest is that of its files; a commit that is a version holds its files
Aliases     an alias points where its last move took it, at a version of its own adapter; a deleted one nowhere
Refs        a branch or tag points at a commit of its own adapter
Blobs       what versions and commits refer to, their tenant has, stored
Experts     a mixture's experts are versions of its own tenant
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from registry.file_entry import FileEntry, digest_of_files
from registry.models import (
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    CommitFileRow,
    CommitRow,
    RefRow,
    TenantBlobRow,
    TenantRow,
    TombstoneRow,
    VersionExpertRow,
    VersionFileRow,
    VersionRow,
)

ROWS_PER_FETCH = 5_000


def catalog_faults(session: Session) -> Iterator[str]:
    """Every invariant that does not hold, as a sentence."""
    yield from _numbers(session)
    yield from _digests(session)
    yield from _commits(session)
    yield from _aliases(session)
    yield from _refs(session)
    yield from _experts(session)
    yield from (f"{tenant} has no record of blob {sha256}, which it refers to" for tenant, sha256, _ in unheld(session))


def unheld(session: Session) -> Iterator[tuple[str, str, int]]:
    """Blobs that a tenant refers to without having them: the tenant's name, the digest, the bytes."""
    held = and_(TenantBlobRow.tenant_id == AdapterRow.tenant_id, TenantBlobRow.is_stored)
    of_versions = (
        select(TenantRow.name, VersionFileRow.sha256, VersionFileRow.size)
        .join(VersionRow, VersionRow.id == VersionFileRow.version_id)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .outerjoin(TenantBlobRow, and_(held, TenantBlobRow.sha256 == VersionFileRow.sha256))
        .where(TenantBlobRow.sha256.is_(None))
    )
    of_commits = (
        select(TenantRow.name, CommitFileRow.sha256, CommitFileRow.size)
        .join(CommitRow, CommitRow.id == CommitFileRow.commit_id)
        .join(AdapterRow, AdapterRow.id == CommitRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .outerjoin(TenantBlobRow, and_(held, TenantBlobRow.sha256 == CommitFileRow.sha256))
        .where(TenantBlobRow.sha256.is_(None))
    )
    for row in session.execute(of_versions.union(of_commits)):
        yield row.name, row.sha256, row.size


def _numbers(session: Session) -> Iterator[str]:
    present: defaultdict[int, list[int]] = defaultdict(list)
    for adapter_id, number in session.execute(select(VersionRow.adapter_id, VersionRow.number)):
        present[adapter_id].append(number)
    buried: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    graves = select(TombstoneRow.tenant_id, TombstoneRow.name, TombstoneRow.number).where(TombstoneRow.number > 0)
    for tenant_id, name, number in session.execute(graves):
        buried[tenant_id, name].append(number)
    query = select(AdapterRow, TenantRow.name).join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
    for adapter, tenant in session.execute(query):
        numbers = sorted(present[adapter.id] + buried[adapter.tenant_id, adapter.name])
        if numbers != list(range(1, adapter.last_number + 1)):
            expected = set(range(1, adapter.last_number + 1))
            wrong = sorted(expected.symmetric_difference(numbers)) or [n for n in numbers if numbers.count(n) > 1]
            yield (
                f"{tenant}/{adapter.name} has given {adapter.last_number} numbers, and version {wrong[0]} is not "
                "either there or deleted"
            )


def _experts(session: Session) -> Iterator[str]:
    """Whatever deletes leaves them."""
    expert, of_expert = aliased(VersionRow), aliased(AdapterRow)
    present = (
        select(expert.id)
        .join(of_expert, of_expert.id == expert.adapter_id)
        .where(expert.digest == VersionExpertRow.digest, of_expert.tenant_id == AdapterRow.tenant_id)
    )
    query = (
        select(TenantRow.name, AdapterRow.name, VersionRow.number, VersionExpertRow.digest)
        .join(VersionRow, VersionRow.id == VersionExpertRow.version_id)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(~present.exists())
    )
    for tenant, adapter, number, digest in session.execute(query):
        yield f"{tenant}/{adapter}@{number} has the expert {digest}, which {tenant} does not have"


def _digests(session: Session) -> Iterator[str]:
    query = (
        select(
            VersionRow, AdapterRow.name, TenantRow.name, VersionFileRow.path, VersionFileRow.size, VersionFileRow.sha256
        )
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .outerjoin(VersionFileRow, VersionFileRow.version_id == VersionRow.id)
        .order_by(VersionRow.id)
        .execution_options(yield_per=ROWS_PER_FETCH)
    )
    current: tuple[VersionRow, str] | None = None
    files: list[FileEntry] = []
    for version, adapter, tenant, path, size, sha256 in session.execute(query):
        if current is not None and current[0].id != version.id:
            yield from _digest_fault(*current, files)
            files = []
        current = (version, f"{tenant}/{adapter}@{version.number}")
        if path is not None:
            files.append(FileEntry(path, size, sha256))
    if current is not None:
        yield from _digest_fault(*current, files)


def _digest_fault(version: VersionRow, name: str, files: list[FileEntry]) -> Iterator[str]:
    if str(digest_of_files(files)) != version.digest:
        yield f"{name} has the digest {version.digest}, which its files do not have"


def _commits(session: Session) -> Iterator[str]:
    """A commit that is a version has each of the version's files; the adapter of both is one."""
    foreign = (
        select(CommitRow.id, VersionRow.number)
        .join(VersionRow, VersionRow.id == CommitRow.version_id)
        .where(VersionRow.adapter_id != CommitRow.adapter_id)
    )
    same = and_(
        CommitFileRow.commit_id == CommitRow.id,
        CommitFileRow.path == VersionFileRow.path,
        CommitFileRow.sha256 == VersionFileRow.sha256,
    )
    lacking = (
        select(CommitRow.id, VersionFileRow.path)
        .join(VersionFileRow, VersionFileRow.version_id == CommitRow.version_id)
        .outerjoin(CommitFileRow, same)
        .where(CommitFileRow.path.is_(None))
    )
    for commit, number in session.execute(foreign):
        yield f"commit {commit} is said to be version {number} of another adapter"
    for commit, path in session.execute(lacking):
        yield f"commit {commit} is said to be a version, and its {path} is another"


def _aliases(session: Session) -> Iterator[str]:
    last = (
        select(AliasMoveRow.adapter_id, AliasMoveRow.alias, func.max(AliasMoveRow.sequence).label("sequence"))
        .group_by(AliasMoveRow.adapter_id, AliasMoveRow.alias)
        .subquery()
    )
    moved = and_(
        AliasMoveRow.adapter_id == last.c.adapter_id,
        AliasMoveRow.alias == last.c.alias,
        AliasMoveRow.sequence == last.c.sequence,
    )
    moves = {
        (row.adapter_id, row.alias): row.to_number
        for row in session.scalars(select(AliasMoveRow).join(last, moved))
        if row.to_number is not None
    }
    query = (
        select(AliasRow, VersionRow, AdapterRow.name, TenantRow.name)
        .join(VersionRow, VersionRow.id == AliasRow.version_id)
        .join(AdapterRow, AdapterRow.id == AliasRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
    )
    for alias, version, adapter, tenant in session.execute(query):
        name = f"{tenant}/{adapter}@{alias.name}"
        if version.adapter_id != alias.adapter_id:
            yield f"{name} points at a version of another adapter"
        elif moves.pop((alias.adapter_id, alias.name), None) != version.number:
            yield f"{name} points at version {version.number}, where its last move did not take it"
    for adapter_id, alias_name in moves:
        yield f"alias {alias_name} of adapter {adapter_id} was moved and is not there"


def _refs(session: Session) -> Iterator[str]:
    query = (
        select(RefRow.kind, RefRow.name, AdapterRow.name, TenantRow.name)
        .join(AdapterRow, AdapterRow.id == RefRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .outerjoin(CommitRow, CommitRow.id == RefRow.commit_id)
        .where(or_(CommitRow.id.is_(None), CommitRow.adapter_id != RefRow.adapter_id))
    )
    for kind, ref, adapter, tenant in session.execute(query):
        yield f"{kind} {ref} of {tenant}/{adapter} points at no commit of its adapter"
