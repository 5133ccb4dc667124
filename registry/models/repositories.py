"""An adapter as a Hugging Face repository: commits, their trees, branches and tags; and what is being uploaded.

adapters 1--n commits 1--n commit_files     a commit whose tree is a sound adapter has a version
adapters 1--n refs                          branches and tags that were made by name
tenants  1--n tenant_blobs                  the blobs that a tenant has, or has reserved room for

Aliases and versions are refs too, but they are not kept here: they are derived from `aliases` and `versions`.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from registry.models.row import Row, UtcDateTime


class CommitRow(Row):
    """One commit. `id` has 40 hexadecimal digits; `sequence` counts from 1 per adapter. Rows are never updated."""

    __tablename__ = "commits"
    __table_args__ = (UniqueConstraint("adapter_id", "sequence"),)
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    sequence: Mapped[int]
    parent_id: Mapped[str | None] = mapped_column(String(40))
    title: Mapped[str] = mapped_column(Text)
    message: Mapped[str] = mapped_column(Text)
    author: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    version_id: Mapped[int | None] = mapped_column(ForeignKey("versions.id"), index=True)


class CommitFileRow(Row):
    """One file of a commit's whole tree. `git_oid` is git's SHA-1 of the content (of the pointer, where `is_lfs`)."""

    __tablename__ = "commit_files"
    commit_id: Mapped[str] = mapped_column(ForeignKey("commits.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    git_oid: Mapped[str | None] = mapped_column(String(40))
    is_lfs: Mapped[bool]


class RefRow(Row):
    """A branch (it moves with commits) or a tag (it never moves)."""

    __tablename__ = "refs"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(10), primary_key=True)
    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    commit_id: Mapped[str] = mapped_column(ForeignKey("commits.id"), index=True)
    message: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TenantBlobRow(Row):
    """A blob that a tenant has, or has reserved room for. It counts once in the tenant's `used_bytes`.

    While `leased_until` lies ahead, garbage collection leaves it; after that it lives as long as something refers to
    it.
    """

    __tablename__ = "tenant_blobs"
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    leased_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    is_stored: Mapped[bool]
