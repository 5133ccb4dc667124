"""Reading an adapter as a repository: the tree and the commits of a revision. One method is one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.database import Database
from registry.fresh_cache import FreshCache
from registry.lookup import find_adapter, to_versions
from registry.models import AdapterRow, CommitFileRow, CommitRow, VersionRow
from registry.names import AdapterName
from registry.principal import Principal
from registry.revisions import find_commit
from registry.trees import Commit, TreeFile, commit_value, file_of, to_commit, tree_of
from registry.version import Version, Visibility

T = TypeVar("T")

LOG_PAGE_LIMIT = 1_000
CHANGES_LIMIT = 1_000
CHANGES_BATCH = 50
FILES_KEPT = 4_096
SNAPSHOTS_KEPT = 256


@dataclass(frozen=True)
class Snapshot:
    """An adapter at one commit: its whole tree by path, and the version that the tree is, where it is one.

    It is shared by all who ask: nobody changes it.
    """

    name: str
    visibility: Visibility
    commit: Commit
    files: dict[str, TreeFile]
    version: Version | None


@dataclass(frozen=True)
class FileAt:
    """A file at one commit; `file` is None where the commit has none of that path."""

    commit_id: str
    visibility: Visibility
    file: TreeFile | None


class PullThrough(Protocol):
    """Reads again after a pull, where an adapter is unknown and its tenant's policy names an upstream."""

    def pulling_through(self, read: Callable[[], T], ref: str, principal: Principal) -> T:
        """What `read` gives."""
        ...


class Snapshots:
    """Holds no state but the database and answers that hold until it changes, so threads may share it."""

    def __init__(self, database: Database, mirrors: PullThrough) -> None:
        self._database = database
        self._mirrors = mirrors
        self._files: FreshCache[tuple[Principal, AdapterName, str, str], FileAt] = FreshCache(database, FILES_KEPT)
        self._snapshots: FreshCache[tuple[Principal, AdapterName, str], Snapshot] = FreshCache(database, SNAPSHOTS_KEPT)

    def at(self, name: AdapterName, revision: str, principal: Principal) -> Snapshot:
        """The adapter at this revision. Raises NotFoundError (of kind `adapter` or `revision`), ConflictError."""
        key = (principal, name, revision)
        return self._snapshots.get(key, lambda: self._find(name, revision, principal))

    def _find(self, name: AdapterName, revision: str, principal: Principal) -> Snapshot:
        return self._mirrors.pulling_through(lambda: self._at(name, revision, principal), str(name), principal)

    def _at(self, name: AdapterName, revision: str, principal: Principal) -> Snapshot:
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            row = find_commit(session, adapter, name, revision)
            return Snapshot(
                name=str(name),
                visibility=Visibility(adapter.visibility),
                commit=to_commit(session, row),
                files=tree_of(session, row.id),
                version=_version_of(session, adapter, name, row),
            )

    def file(self, name: AdapterName, revision: str, path: str, principal: Principal) -> FileAt:
        """One file at this revision. Raises NotFoundError (of kind `adapter` or `revision`), ConflictError."""
        key = (principal, name, revision, path)
        return self._files.get(key, lambda: self._find_file(name, revision, path, principal))

    def _find_file(self, name: AdapterName, revision: str, path: str, principal: Principal) -> FileAt:
        def read() -> FileAt:
            return self._read_file(name, revision, path, principal)

        return self._mirrors.pulling_through(read, str(name), principal)

    def _read_file(self, name: AdapterName, revision: str, path: str, principal: Principal) -> FileAt:
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            row = find_commit(session, adapter, name, revision)
            return FileAt(row.id, Visibility(adapter.visibility), file_of(session, row.id, path))

    def log(
        self, name: AdapterName, revision: str, principal: Principal, *, limit: int, below: int | None = None
    ) -> list[Commit]:
        """Up to `limit` commits that lead to this revision, newest first; `below` goes on after that sequence number.

        Raises NotFoundError, ConflictError.
        """
        assert 1 <= limit <= LOG_PAGE_LIMIT
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            row = find_commit(session, adapter, name, revision)
            line = _line_to(session, adapter, row)
            return list(islice((commit for commit in line if below is None or commit.sequence < below), limit))

    def last_changes(self, name: AdapterName, commit_id: str, principal: Principal) -> dict[str, Commit]:
        """For each file of a commit, the commit that gave it the content that it has there.

        Files that did not change in the last thousand commits have the oldest of these. Raises NotFoundError.
        """
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            row = find_commit(session, adapter, name, commit_id)
            line = islice(_line_to(session, adapter, row), CHANGES_LIMIT)
            left: dict[str, str] = {}
            found: dict[str, Commit] = {}
            child: Commit | None = None
            while batch := list(islice(line, CHANGES_BATCH)):
                contents = _contents(session, [commit.id for commit in batch])
                for commit in batch:
                    if child is None:
                        left = dict(contents[commit.id])
                    else:
                        changed = [path for path, sha256 in left.items() if contents[commit.id].get(path) != sha256]
                        found |= {path: child for path in changed if left.pop(path)}
                    child = commit
                if not left:
                    break
            return found if child is None else found | dict.fromkeys(left, child)


def _contents(session: Session, commit_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """SHA-256 by path, by commit."""
    contents: dict[str, dict[str, str]] = {commit_id: {} for commit_id in commit_ids}
    query = select(CommitFileRow.commit_id, CommitFileRow.path, CommitFileRow.sha256)
    for row in session.execute(query.where(CommitFileRow.commit_id.in_(commit_ids))):
        contents[row.commit_id][row.path] = row.sha256
    return contents


def _line_to(session: Session, adapter: AdapterRow, head: CommitRow) -> Iterator[Commit]:
    """A commit, its parent, and so on. Where a parent went with its deleted version, the commit before it follows."""
    wanted: str | None = head.id
    present: str | None = head.id
    for commit in _commits_down_from(session, adapter, head.sequence):
        if commit.id != wanted and wanted != present:
            found = session.get(CommitRow, wanted)
            present = wanted = commit.id if found is None else wanted
        if commit.id == wanted:
            yield commit
            wanted = commit.parent_id
            if wanted is None:
                return


def _commits_down_from(session: Session, adapter: AdapterRow, sequence: int) -> Iterator[Commit]:
    """The adapter's commits of all branches from this one down; a parent comes after its children."""
    while True:
        query = (
            select(CommitRow, VersionRow.number)
            .outerjoin(VersionRow, VersionRow.id == CommitRow.version_id)
            .where(CommitRow.adapter_id == adapter.id, CommitRow.sequence <= sequence)
            .order_by(CommitRow.sequence.desc())
            .limit(LOG_PAGE_LIMIT)
        )
        rows = session.execute(query).all()
        yield from (commit_value(row, number) for row, number in rows)
        if len(rows) < LOG_PAGE_LIMIT:
            return
        sequence = rows[-1][0].sequence - 1


def _version_of(session: Session, adapter: AdapterRow, name: AdapterName, commit: CommitRow) -> Version | None:
    if commit.version_id is None:
        return None
    row = session.get_one(VersionRow, commit.version_id)
    return to_versions(session, [(row, adapter, name.tenant)])[0]
