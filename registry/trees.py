"""Commits and their trees inside an open transaction. A commit's rows hold its whole tree and are never changed.

What a tree means (whether it is an adapter) is not known here; see `commits.py` and `catalog.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from registry.models import AdapterRow, CommitFileRow, CommitRow, RefRow, VersionRow

DEFAULT_BRANCH = "main"
BRANCH = "branch"
TAG = "tag"
FORMER_TAG = "former_tag"
"""A tag that was deleted: its name may mean the same commit again, and no other."""
LFS_FROM_BYTES = 1_000_000
LFS_SUFFIX = ".safetensors"


@dataclass(frozen=True, order=True)
class TreeFile:
    """A file of a commit's tree; its content is the blob `sha256`.

    `git_oid` is git's SHA-1 of the content (of the pointer, where `is_lfs`); None where it was never computed, which is
    so for small files of versions that are older than commits.
    """

    path: str
    size: int
    sha256: str
    is_lfs: bool
    git_oid: str | None


@dataclass(frozen=True)
class Commit:
    """A commit. `version` is the number of the version that its tree is, where it is one. Times are UTC."""

    id: str
    sequence: int
    parent_id: str | None
    title: str
    message: str
    author: str
    created_at: datetime
    version: int | None


def is_large(path: str, size: int) -> bool:
    """Whether a file counts as LFS where no client has decided it."""
    return path.endswith(LFS_SUFFIX) or size >= LFS_FROM_BYTES


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git keeps of an LFS file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode("ascii")


def git_oid(content: bytes) -> str:
    """Git's name of a blob with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def lfs_file(path: str, sha256: str, size: int) -> TreeFile:
    """An LFS file of a tree."""
    return TreeFile(path, size, sha256, True, git_oid(lfs_pointer(sha256, size)))


def tree_file(path: str, sha256: str, size: int, content_oid: str | None) -> TreeFile:
    """A file of a tree whose kind follows from its name and size; `content_oid` is git's name of its content."""
    return lfs_file(path, sha256, size) if is_large(path, size) else TreeFile(path, size, sha256, False, content_oid)


def head_of(session: Session, adapter: AdapterRow, branch: str = DEFAULT_BRANCH) -> str | None:
    """The commit that a branch points at; None where there is no such branch.

    Who writes has locked the adapter's row before, so that nobody moves the branch meanwhile.
    """
    return session.scalar(
        select(RefRow.commit_id).where(RefRow.adapter_id == adapter.id, RefRow.kind == BRANCH, RefRow.name == branch)
    )


def kind_of_ref(session: Session, adapter: AdapterRow, name: str) -> str | None:
    """Whether a branch or a tag of this name was made; None where neither was."""
    query = select(RefRow.kind).where(RefRow.adapter_id == adapter.id, RefRow.name == name)
    return session.scalar(query.where(RefRow.kind.in_((BRANCH, TAG))).limit(1))


def tree_of(session: Session, commit_id: str | None) -> dict[str, TreeFile]:
    """The files of a commit by path, in order of their paths. None is the empty tree."""
    if commit_id is None:
        return {}
    query = select(CommitFileRow).where(CommitFileRow.commit_id == commit_id)
    files = sorted(to_file(row) for row in session.scalars(query))
    return {file.path: file for file in files}


def file_of(session: Session, commit_id: str, path: str) -> TreeFile | None:
    """One file of a commit."""
    row = session.get(CommitFileRow, (commit_id, path))
    return None if row is None else to_file(row)


def insert_commit(
    session: Session,
    adapter: AdapterRow,
    tree: Iterable[TreeFile],
    *,
    branch: str,
    title: str,
    message: str,
    author: str,
    at: datetime,
    version_id: int | None,
) -> CommitRow:
    """Put a commit with this whole tree on top of the branch, and move the branch. The adapter's row is locked."""
    files = sorted(tree)
    last = session.scalar(select(func.max(CommitRow.sequence)).where(CommitRow.adapter_id == adapter.id)) or 0
    parent = head_of(session, adapter, branch)
    row = CommitRow(
        id=_commit_id(adapter.id, last + 1, parent, files, title, message, author, at),
        adapter_id=adapter.id,
        sequence=last + 1,
        parent_id=parent,
        title=title,
        message=message,
        author=author,
        created_at=at,
        version_id=version_id,
    )
    session.add(row)
    session.flush()
    if files:
        session.execute(insert(CommitFileRow), [_to_values(row.id, file) for file in files])
    point(session, adapter, BRANCH, branch, row.id, at=at)
    return row


def point(
    session: Session, adapter: AdapterRow, kind: str, name: str, commit_id: str, *, at: datetime, message: str = ""
) -> None:
    """Make a ref, or move the one that is there."""
    ref = session.get(RefRow, (adapter.id, kind, name))
    if ref is None:
        ref = RefRow(adapter_id=adapter.id, kind=kind, name=name, message=message, created_at=at)
        session.add(ref)
    ref.commit_id = commit_id
    session.flush()


def commits_of_versions(
    session: Session, adapter: AdapterRow, version_ids: Sequence[int] | None = None
) -> dict[int, str]:
    """For each version of the adapter, the first commit whose tree was that version."""
    query = (
        select(CommitRow.version_id, CommitRow.id)
        .where(CommitRow.adapter_id == adapter.id, CommitRow.version_id.is_not(None))
        .order_by(CommitRow.sequence.desc())
    )
    return {row.version_id: row.id for row in session.execute(query)}


def to_commit(session: Session, row: CommitRow) -> Commit:
    """The row as a value."""
    number = None
    if row.version_id is not None:
        number = session.scalar(select(VersionRow.number).where(VersionRow.id == row.version_id))
    return commit_value(row, number)


def commit_value(row: CommitRow, version: int | None) -> Commit:
    """The row as a value, where the number of its version is known."""
    return Commit(row.id, row.sequence, row.parent_id, row.title, row.message, row.author, row.created_at, version)


def to_file(row: CommitFileRow) -> TreeFile:
    """The row as a value; the name of an LFS pointer follows from what it points at."""
    if row.git_oid is None and row.is_lfs:
        return lfs_file(row.path, row.sha256, row.size)
    return TreeFile(row.path, row.size, row.sha256, row.is_lfs, row.git_oid)


def _to_values(commit_id: str, file: TreeFile) -> Mapping[str, str | int | bool | None]:
    return {
        "commit_id": commit_id,
        "path": file.path,
        "size": file.size,
        "sha256": file.sha256,
        "git_oid": file.git_oid,
        "is_lfs": file.is_lfs,
    }


def _commit_id(
    adapter_id: int,
    sequence: int,
    parent: str | None,
    files: Sequence[TreeFile],
    title: str,
    message: str,
    author: str,
    at: datetime,
) -> str:
    """40 digits that name everything the commit is: equal only for the same commit of the same adapter."""
    listing = [[file.path, file.size, file.sha256] for file in files]
    identity = [adapter_id, sequence, parent, listing, title, message, author, at.isoformat()]
    canonical = json.dumps(identity, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha1(canonical.encode("ascii"), usedforsecurity=False).hexdigest()
