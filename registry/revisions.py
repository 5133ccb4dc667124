"""What a revision means: the text that a Hub client wrote becomes one commit, once.

    main, any branch    where the branch points             v3, 3               the commit of version 3
    any tag             where the tag points                sha256:<64 hex>     the commit of the version of that digest
    any alias           the commit of the alias's version   <7 to 40 hex>       the commit that begins so

A full commit id is one. Else branches and tags are tried first, then versions, aliases, digests and commits. `refs.py`
keeps new branches and tags from taking a name that means something already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from registry.errors import ConflictError, NotFoundError
from registry.models import AdapterRow, AliasRow, CommitRow, RefRow, VersionRow
from registry.names import SHA256_DIGITS, AdapterName
from registry.trees import BRANCH, TAG

COMMIT_DIGITS = 40
SHORT_COMMIT_MIN_DIGITS = 7
PARENT_MIN_DIGITS = 5
REVISION_CHARACTERS = 200

_COMMIT = re.compile(f"[0-9a-f]{{{SHORT_COMMIT_MIN_DIGITS},{COMMIT_DIGITS}}}", re.ASCII)
_NUMBER = re.compile(r"v?([1-9][0-9]{0,8})", re.ASCII)
_DIGEST = re.compile(f"sha256:[0-9a-f]{{{SHA256_DIGITS}}}", re.ASCII)


def is_commit_id(text: str) -> bool:
    """Whether this is a full commit id."""
    return len(text) == COMMIT_DIGITS and _COMMIT.fullmatch(text) is not None


def version_number(text: str) -> int | None:
    """The version that `v3` or `3` names, whether it exists or not."""
    found = _NUMBER.fullmatch(text)
    return None if found is None else int(found.group(1))


def find_commit(session: Session, adapter: AdapterRow, name: AdapterName, revision: str) -> CommitRow:
    """The commit of the adapter that this revision means now. Raises NotFoundError, ConflictError."""
    if len(revision) <= REVISION_CHARACTERS:
        for query in _queries(adapter, revision):
            rows = session.scalars(query).all()
            if len(rows) > 1:
                raise ConflictError(f"{revision[:100]!r} fits several revisions of {str(name)!r}. Give more digits.")
            if rows:
                return rows[0]
    raise missing_revision(name, revision)


def missing_revision(name: AdapterName, revision: str) -> NotFoundError:
    """The one error for a revision that an adapter does not have."""
    return NotFoundError("revision", f"{name}@{revision[:100]}", "List its branches and tags to see those it has.")


def _queries(adapter: AdapterRow, revision: str) -> Iterator[Select[CommitRow]]:
    """At most two rows each: one is the answer, two are ambiguous."""
    own = select(CommitRow).where(CommitRow.adapter_id == adapter.id)
    if is_commit_id(revision):
        yield own.where(CommitRow.id == revision)
    named = select(CommitRow).join(RefRow, RefRow.commit_id == CommitRow.id).where(RefRow.adapter_id == adapter.id)
    for kind, prefix in ((BRANCH, "refs/heads/"), (TAG, "refs/tags/")):
        if not revision.startswith("refs/") or revision.startswith(prefix):
            yield named.where(RefRow.kind == kind, RefRow.name == revision.removeprefix(prefix))
    versions = select(VersionRow.id).where(VersionRow.adapter_id == adapter.id)
    if (number := version_number(revision.removeprefix("refs/tags/"))) is not None:
        yield _first_commit_of(own, versions.where(VersionRow.number == number))
    yield _first_commit_of(
        own,
        select(AliasRow.version_id).where(AliasRow.adapter_id == adapter.id, AliasRow.name == revision),
    )
    if _DIGEST.fullmatch(revision):
        yield _first_commit_of(own, versions.where(VersionRow.digest == revision))
    if _COMMIT.fullmatch(revision):
        yield own.where(CommitRow.id >= revision, CommitRow.id < revision + "g").limit(2)  # a range: the index answers


def _first_commit_of(own: Select[CommitRow], version_ids: Select[int]) -> Select[CommitRow]:
    return own.where(CommitRow.version_id.in_(version_ids)).order_by(CommitRow.sequence).limit(1)
