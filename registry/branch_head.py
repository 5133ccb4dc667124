"""The head of a branch as a change meets it: where the change begins, and whether it was made already.

These functions work inside the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.errors import InvalidValueError, NotFoundError, ParentMovedError, ReadOnlyRevisionError
from registry.models import AdapterRow, CommitRow, TenantBlobRow
from registry.names import AdapterName
from registry.revisions import find_commit
from registry.tree_changes import AddLarge, Operation, apply_operations, is_same
from registry.trees import DEFAULT_BRANCH, head_of, tree_of
from registry.usage import DIGESTS_PER_QUERY


def head_to_change(
    session: Session, adapter: AdapterRow, name: AdapterName, branch: str, parent: str | None
) -> str | None:
    """The commit on whose tree a change works; None for the main branch of an adapter without commits.

    Raises NotFoundError, ReadOnlyRevisionError, ParentMovedError.
    """
    head = head_of(session, adapter, branch)
    if head is None and branch != DEFAULT_BRANCH:
        raise _not_a_branch(session, adapter, name, branch)
    if parent is not None and (head is None or not head.startswith(parent)):
        raise ParentMovedError(str(name), branch, expected=parent, actual=head)
    return head


def made_before(
    session: Session, adapter: AdapterRow, branch: str, parent: str | None, operations: Sequence[Operation]
) -> CommitRow | None:
    """The head, if it is this very change of the caller's parent: the answer to it was lost, and it is sent again."""
    head_id = head_of(session, adapter, branch)
    head = None if head_id is None else session.get_one(CommitRow, head_id)
    if parent is None or head is None or head.parent_id is None or not head.parent_id.startswith(parent):
        return None
    try:
        wanted = apply_operations(
            tree_of(session, head.parent_id), operations, stored_sizes(session, adapter.tenant_id, operations)
        )
    except (NotFoundError, InvalidValueError):
        return None
    return head if is_same(wanted, tree_of(session, head.id)) else None


def _not_a_branch(
    session: Session, adapter: AdapterRow, name: AdapterName, branch: str
) -> NotFoundError | ReadOnlyRevisionError:
    try:
        find_commit(session, adapter, name, branch)
    except NotFoundError as error:
        return error
    return ReadOnlyRevisionError(str(name), branch)


def stored_sizes(session: Session, tenant_id: int, operations: Sequence[Operation]) -> dict[str, int]:
    """The sizes of those named blobs that the tenant has uploaded; of others it must not learn that they exist."""
    asked = sorted({operation.sha256 for operation in operations if isinstance(operation, AddLarge)})
    sizes: dict[str, int] = {}
    for start in range(0, len(asked), DIGESTS_PER_QUERY):
        query = select(TenantBlobRow.sha256, TenantBlobRow.size).where(
            TenantBlobRow.tenant_id == tenant_id,
            TenantBlobRow.is_stored,
            TenantBlobRow.sha256.in_(asked[start : start + DIGESTS_PER_QUERY]),
        )
        sizes |= {row.sha256: row.size for row in session.execute(query)}
    return sizes
