"""Commits: operations on the head of a branch become a new tree, and a version where the tree is a sound adapter.

    read the head -> the new tree -> is its root an adapter? judge it, from the blobs, outside of any transaction
    -> one transaction: compare the head with the caller's parent, room, version, commit, ref, audit, event

The version's files are those at the root that an adapter may have (`registry/adapter.py`); other data may lie beside
them. What the judge refuses is kept as a commit without a version, and the outcome says why. A commit that changes
nothing gives the head, and so does one that is the head already: it can be sent again. A crash leaves the old state or
the new one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.adapter_config import CONFIG_FILE
from registry.adapter_files import WEIGHTS_FILE, required_files
from registry.admission import admit
from registry.bases import Bases
from registry.blobs import BlobStore
from registry.bounded_text import check_text
from registry.branch_head import head_to_change, made_before, stored_sizes
from registry.catalog import Catalog, enter_version
from registry.database import Database
from registry.errors import (
    ConflictError,
    InvalidValueError,
    RejectedAdapterError,
)
from registry.event import EventKind
from registry.failpoints import reach
from registry.file_entry import Blob, FileEntry, digest_of_files
from registry.lookup import find_adapter
from registry.mixture_config import GATE_FILE, MIXTURE_FILE
from registry.models import AdapterRow, CommitRow, VersionRow
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.reasons import RejectReason
from registry.revisions import PARENT_MIN_DIGITS
from registry.tally import Tally
from registry.tenant_policies import TenantPolicies
from registry.tree_changes import (
    AddFile,
    AddLarge,
    Operation,
    apply_operations,
    check_operation,
    is_same,
    path_of,
    version_files,
)
from registry.tree_paths import BEGINNING_BYTES, check_beginning
from registry.trees import Commit, TreeFile, insert_commit, to_commit, tree_of
from registry.usage import claim, locked_tenant
from registry.version import VersionDraft, Visibility

TITLE_CHARACTERS = 500
MESSAGE_CHARACTERS = 20_000
OPERATIONS_LIMIT = 25_000
ATTEMPTS = 8


@dataclass(frozen=True)
class CommitOutcome:
    """What came of a commit. `refusal` says why a tree that looks like an adapter is no version.

    `makes_version` says that a version came into being with it.
    """

    commit: Commit
    is_new: bool
    refusal: str | None
    makes_version: bool = False


@dataclass(frozen=True)
class _Judgement:
    """What was found out about the files at the root: a version has them already, they can be one, or why not."""

    files: tuple[FileEntry, ...]
    is_known: bool = False
    draft: VersionDraft | None = None
    refusal: str | None = None


class Commits:
    """Writes commits. Holds no state but the database and the blobs, so threads may share it."""

    def __init__(
        self, database: Database, bases: Bases, blobs: BlobStore, policies: TenantPolicies, tally: Tally
    ) -> None:
        self._tally = tally
        self._database = database
        self._bases = bases
        self._blobs = blobs
        self._policies = policies
        self._catalog = Catalog(database)

    def check_writable(self, name: AdapterName, principal: Principal) -> None:
        """Raises NotFoundError where the caller may not read the adapter, PermissionDeniedError where not write."""
        with self._database.reading() as session:
            find_adapter(session, name, principal)
            principal.require(Role.PUBLISHER, name, action="commit to")

    def tree_to_change(self, name: AdapterName, branch: str, principal: Principal) -> dict[str, TreeFile]:
        """The files that a commit to this branch would begin with.

        Raises NotFoundError, PermissionDeniedError, ReadOnlyRevisionError.
        """
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            principal.require(Role.PUBLISHER, name, action="commit to")
            return tree_of(session, head_to_change(session, adapter, name, branch, None))

    def apply(
        self,
        name: AdapterName,
        branch: str,
        operations: Sequence[Operation],
        *,
        parent: str | None,
        title: str,
        message: str,
        principal: Principal,
    ) -> CommitOutcome:
        """Put the operations on top of a branch; `parent` is the beginning of the commit that its head must be.

        Raises NotFoundError, PermissionDeniedError, ParentMovedError, InvalidNameError, InvalidValueError,
        QuotaExceededError, ConflictError, StorageError.
        """
        _check_call(operations, parent, title, message)
        for operation in operations:
            check_operation(operation)
        judgement: _Judgement | None = None
        for _ in range(ATTEMPTS):
            with self._database.reading() as session:
                adapter = find_adapter(session, name, principal)
                principal.require(Role.PUBLISHER, name, action="commit to")
                if (made := made_before(session, adapter, branch, parent, operations)) is not None:
                    return CommitOutcome(to_commit(session, made), False, None)
                head = head_to_change(session, adapter, name, branch, parent)
                before = tree_of(session, head)
                tree = apply_operations(before, operations, stored_sizes(session, adapter.tenant_id, operations))
                files = version_files(tree)
                is_known = _version_with(session, adapter, files) is not None
            self._check_beginnings(before, tree)
            if is_known:
                judgement = _Judgement(files, is_known=True)
            elif judgement is None or judgement.files != files or judgement.is_known:
                judgement = self._judge(name, files, title, principal)
            reach("commit.after_judge")
            outcome = self._write(name, branch, operations, judgement, parent, title, message, principal)
            if outcome is not None:
                reach("commit.after_commit")
                self._count(outcome)
                return outcome
        raise ConflictError(f"Others commit to {str(name)!r} all the time. Nothing was changed: try again.")

    def _count(self, outcome: CommitOutcome) -> None:
        if outcome.is_new and (outcome.refusal is not None or outcome.commit.version is not None):
            made = "new" if outcome.makes_version else "known"
            self._tally.published(made if outcome.refusal is None else "refused")

    def _check_beginnings(self, before: Mapping[str, TreeFile], after: Mapping[str, TreeFile]) -> None:
        """Refuse code and pickles by content, whatever the new files are called."""
        known = {file.sha256 for file in before.values()}
        for file in after.values():
            if file.sha256 not in known and file.size:
                end = min(BEGINNING_BYTES, file.size)
                with self._blobs.open(Blob(file.sha256, file.size), start=0, end=end) as reader:
                    check_beginning(file.path, b"".join(reader))

    def _judge(self, name: AdapterName, files: tuple[FileEntry, ...], title: str, principal: Principal) -> _Judgement:
        names = {file.path for file in files}
        if not names & {CONFIG_FILE, WEIGHTS_FILE, MIXTURE_FILE, GATE_FILE}:
            return _Judgement(files)
        try:
            for required in required_files(names):
                if required not in names:
                    detail = "it is not at the root of the repository"
                    raise RejectedAdapterError(RejectReason.MISSING_FILE, detail, file=required)
            with self._blobs.laid_out(files) as folder:
                admission = admit(
                    folder,
                    self._bases,
                    named_base=None,
                    policy=self._policies.of(name.tenant),
                    find_experts=lambda digests: self._catalog.experts(name.tenant, digests, principal),
                )
            return _Judgement(files, draft=admission.draft(files, message=title))
        except RejectedAdapterError as error:
            return _Judgement(files, refusal=error.message)

    def _write(
        self,
        name: AdapterName,
        branch: str,
        operations: Sequence[Operation],
        judgement: _Judgement,
        parent: str | None,
        title: str,
        message: str,
        principal: Principal,
    ) -> CommitOutcome | None:
        """The one transaction. None where the judgement does not hold any more: the head moved, or a version went."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant = locked_tenant(session, name.tenant, principal, now)
            adapter = find_adapter(session, name, principal, lock=True)
            head = head_to_change(session, adapter, name, branch, parent)
            before = tree_of(session, head)
            tree = apply_operations(before, operations, stored_sizes(session, tenant.id, operations))
            if version_files(tree) != judgement.files:
                return None
            if head is not None and is_same(tree, before):
                return CommitOutcome(to_commit(session, session.get_one(CommitRow, head)), False, judgement.refusal)
            known = {file.sha256 for file in before.values()}
            claim(session, tenant, {file.sha256 for file in tree.values()} - known)
            version = _version_with(session, adapter, judgement.files)
            if version is None and judgement.is_known:
                return None
            makes_version = version is None and judgement.draft is not None
            if version is None and judgement.draft is not None:
                version, _ = enter_version(session, name, tenant, adapter, judgement.draft, principal, now)
            row = insert_commit(
                session,
                adapter,
                tree.values(),
                branch=branch,
                title=title,
                message=message,
                author=principal.actor,
                at=now,
                version_id=None if version is None else version.id,
            )
            adapter.updated_at = now
            commit = to_commit(session, row)
            _record(session, name, adapter, branch, commit, principal, now)
            reach("commit.before_commit")
            return CommitOutcome(commit, True, judgement.refusal if version is None else None, makes_version)


def _check_call(operations: Sequence[Operation], parent: str | None, title: str, message: str) -> None:
    check_text("title", title, limit_characters=TITLE_CHARACTERS)
    check_text("message", message, limit_characters=MESSAGE_CHARACTERS)
    if not title.strip():
        raise InvalidValueError("title", "a commit needs a summary")
    if len(operations) > OPERATIONS_LIMIT:
        raise InvalidValueError("operations", f"there are more than {OPERATIONS_LIMIT:,}")
    if parent is not None and (len(parent) < PARENT_MIN_DIGITS or parent.strip("0123456789abcdef")):
        raise InvalidValueError("parent", f"it is not a commit id, or {PARENT_MIN_DIGITS} or more of its digits")
    written = [path_of(operation) for operation in operations if isinstance(operation, (AddFile, AddLarge))]
    if len(set(written)) != len(written):
        raise InvalidValueError("operations", "one path is written twice")


def _version_with(session: Session, adapter: AdapterRow, files: tuple[FileEntry, ...]) -> VersionRow | None:
    digest = str(digest_of_files(files))
    return session.scalar(select(VersionRow).where(VersionRow.adapter_id == adapter.id, VersionRow.digest == digest))


def _record(
    session: Session,
    name: AdapterName,
    adapter: AdapterRow,
    branch: str,
    commit: Commit,
    principal: Principal,
    now: datetime,
) -> None:
    audit.record(
        session,
        at=now,
        actor=principal.actor,
        action="commit",
        subject=f"{name}@{commit.id}",
        branch=branch,
        version=commit.version,
    )
    events.record(
        session,
        at=now,
        kind=EventKind.COMMIT_CREATED,
        tenant=name.tenant,
        adapter=str(name),
        is_public=adapter.visibility == Visibility.PUBLIC.value,
        document={"actor": principal.actor, "branch": branch, "commit": commit.id, "version": commit.version},
    )
