"""Branches and tags. One method is one transaction.

    branches    the ones that were made by name, `main` among them; and every alias, read only, at its version's commit
    tags        the ones that were made by name; and every version N as v<N>, at the first commit that had its files

An alias that is called like a version (`v3`) is not shown: as a revision, that means the version.
A tag is written once: its name never comes to mean another commit, not even when it was deleted in between.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from registry import audit
from registry.bounded_text import check_text
from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, ReadOnlyRevisionError
from registry.lookup import find_adapter
from registry.models import AdapterRow, AliasRow, RefRow, VersionRow
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.revisions import SHORT_COMMIT_MIN_DIGITS, find_commit, version_number
from registry.trees import BRANCH, DEFAULT_BRANCH, FORMER_TAG, TAG, commits_of_versions, kind_of_ref, point

REF_CHARACTERS = 96
REFS_LIMIT = 1_000
MESSAGE_CHARACTERS = 2_000

_REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/+-]{0,94}[A-Za-z0-9_+-])?", re.ASCII)
_HEX = re.compile(f"[0-9a-f]{{{SHORT_COMMIT_MIN_DIGITS},}}", re.ASCII)


@dataclass(frozen=True)
class Ref:
    """A name for a commit. `is_derived` is True for those that follow from aliases and versions."""

    name: str
    commit_id: str
    is_derived: bool


@dataclass(frozen=True)
class RefList:
    """All refs of an adapter, by name; main comes first."""

    branches: tuple[Ref, ...]
    tags: tuple[Ref, ...]


def parse_ref(text: str) -> str:
    """Return the name of a branch or tag to be made. Raises InvalidNameError with the rule that it breaks."""
    kind = "a branch or tag name"
    if not _REF.fullmatch(text) or ".." in text or "//" in text or "/." in text or text.endswith(".lock"):
        rule = f"it has at most {REF_CHARACTERS} characters of a-z, A-Z, 0-9 and . _ / + -, beginning with 0-9a-Z"
        raise InvalidNameError(kind, text, rule)
    if version_number(text) is not None or _HEX.fullmatch(text) or text == "HEAD" or text.startswith("refs/"):
        raise InvalidNameError(kind, text, "it would be taken for a version, a commit or a full ref; choose another")
    return text


class Refs:
    """Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self, name: AdapterName, principal: Principal) -> RefList:
        """Every branch and tag. Raises NotFoundError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            made = session.scalars(select(RefRow).where(RefRow.adapter_id == adapter.id).order_by(RefRow.name)).all()
            branches = [Ref(row.name, row.commit_id, False) for row in made if row.kind == BRANCH]
            tags = [Ref(row.name, row.commit_id, False) for row in made if row.kind == TAG]
            commits = commits_of_versions(session, adapter)
            taken = {ref.name for ref in branches + tags}
            aliases = select(AliasRow).where(AliasRow.adapter_id == adapter.id).order_by(AliasRow.name)
            branches += [
                Ref(row.name, commits[row.version_id], True)
                for row in session.scalars(aliases)
                if row.version_id in commits and row.name not in taken and version_number(row.name) is None
            ]
            versions = select(VersionRow.id, VersionRow.number).where(VersionRow.adapter_id == adapter.id)
            tags += [
                Ref(f"v{row.number}", commits[row.id], True)
                for row in session.execute(versions.order_by(VersionRow.number))
                if row.id in commits
            ]
            branches.sort(key=lambda ref: ref.name != DEFAULT_BRANCH)
            return RefList(tuple(branches), tuple(tags))

    def create_branch(self, name: AdapterName, branch: str, start: str | None, principal: Principal) -> None:
        """Make a branch at a revision (None: the head of main). Raises NotFoundError, ConflictError."""
        self._create(BRANCH, name, branch, start or DEFAULT_BRANCH, "", principal)

    def create_tag(self, name: AdapterName, tag: str, revision: str, message: str, principal: Principal) -> None:
        """Make a tag at a revision. Raises NotFoundError, ConflictError."""
        check_text("message", message, limit_characters=MESSAGE_CHARACTERS)
        self._create(TAG, name, tag, revision, message, principal)

    def delete_branch(self, name: AdapterName, branch: str, principal: Principal) -> None:
        """Take a branch away; its commits stay. Raises NotFoundError, ConflictError, ReadOnlyRevisionError."""
        if branch == DEFAULT_BRANCH:
            raise ConflictError(f"Branch {branch!r} of {str(name)!r} is the default one and cannot be deleted.")
        self._delete(BRANCH, name, branch, principal)

    def delete_tag(self, name: AdapterName, tag: str, principal: Principal) -> None:
        """Take a tag away; its name may mean this commit again, and no other.

        Raises NotFoundError, ReadOnlyRevisionError.
        """
        self._delete(TAG, name, tag, principal)

    def _create(
        self, kind: str, name: AdapterName, ref: str, revision: str, message: str, principal: Principal
    ) -> None:
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.PUBLISHER, name, action=f"make a {kind} of")
            parse_ref(ref)
            commit = find_commit(session, adapter, name, revision)
            _refuse_taken(session, adapter, name, ref)
            former = session.get(RefRow, (adapter.id, FORMER_TAG, ref))
            if kind == TAG and former is not None and former.commit_id != commit.id:
                raise ConflictError(
                    f"Tag {ref!r} of {str(name)!r} was commit {former.commit_id} before it was deleted. A tag never "
                    "means two things: choose another name."
                )
            point(session, adapter, kind, ref, commit.id, at=now, message=message)
            _audit(session, f"create_{kind}", name, ref, commit.id, principal, now)

    def _delete(self, kind: str, name: AdapterName, ref: str, principal: Principal) -> None:
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.PUBLISHER, name, action=f"delete a {kind} of")
            row = session.get(RefRow, (adapter.id, kind, ref))
            if row is None:
                find_commit(session, adapter, name, ref)  # a revision that is not there is missing, not read only
                raise ReadOnlyRevisionError(str(name), ref)
            commit_id = row.commit_id
            session.delete(row)
            session.flush()
            if kind == TAG:
                point(session, adapter, FORMER_TAG, ref, commit_id, at=now)
            _audit(session, f"delete_{kind}", name, ref, commit_id, principal, now)


def _refuse_taken(session: Session, adapter: AdapterRow, name: AdapterName, ref: str) -> None:
    """One name means one thing, be it a branch, a tag or an alias. Raises ConflictError."""
    kind = kind_of_ref(session, adapter, ref)
    if kind is not None:
        raise ConflictError(f"Reference {ref!r} of {str(name)!r} exists already: it is a {kind}. Choose another name.")
    if session.get(AliasRow, (adapter.id, ref)) is not None:
        raise ConflictError(f"Reference {ref!r} of {str(name)!r} exists already: it is an alias. Choose another name.")
    count = session.scalar(select(func.count()).select_from(RefRow).where(RefRow.adapter_id == adapter.id))
    if (count or 0) >= REFS_LIMIT:
        raise ConflictError(f"{str(name)!r} has {REFS_LIMIT:,} branches and tags already. Delete some first.")


def _audit(
    session: Session, action: str, name: AdapterName, ref: str, commit_id: str, principal: Principal, now: datetime
) -> None:
    audit.record(session, at=now, actor=principal.actor, action=action, subject=f"{name}@{ref}", commit=commit_id)
