"""Tenants, tokens, bases, adapters, versions, aliases and the audit log."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from registry.models.row import Row, UtcDateTime


class TenantRow(Row):
    """A namespace with its own adapters and tokens.

    `quota_*` None is no limit. `used_bytes` is the sum over the tenant's blobs (`tenant_blobs`), each once, with
    its reservations; `used_versions` counts its versions. `policy` is JSON: what the tenant demands of what enters.
    """

    __tablename__ = "tenants"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    quota_bytes: Mapped[int | None] = mapped_column(BigInteger)
    quota_versions: Mapped[int | None]
    used_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0", default=0)
    used_versions: Mapped[int] = mapped_column(server_default="0", default=0)
    policy: Mapped[str] = mapped_column(Text, server_default="{}", default="{}")


class TokenRow(Row):
    """A bearer token. Its secret is not here: only the SHA-256 of it.

    `scope` is JSON: the names of adapters that it is for, or null for all of the tenant's. `replaced_by` is the token
    that took its place when it was rotated.
    """

    __tablename__ = "tokens"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), index=True)
    role: Mapped[str] = mapped_column(String(20))
    label: Mapped[str] = mapped_column(String(200))
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    scope: Mapped[str | None] = mapped_column(Text)
    replaced_by: Mapped[str | None] = mapped_column(String(40))


class BaseRow(Row):
    """A registered base; `document` is its base.json."""

    __tablename__ = "bases"
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(512))
    document: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AdapterRow(Row):
    """An adapter's name. `last_number` only grows, so that a version number never means two things."""

    __tablename__ = "adapters"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(String(96))
    visibility: Mapped[str] = mapped_column(String(20))
    last_number: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class VersionRow(Row):
    """An immutable version. Rows are inserted and never updated.

    `parent_digest` is the adapter that training began from, `data_digest` its data; both repeat the
    manifest, to be asked for. `verdict` is JSON: who can serve it, and why not.
    """

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("adapter_id", "number"), UniqueConstraint("adapter_id", "digest"))
    id: Mapped[int] = mapped_column(primary_key=True)
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    digest: Mapped[str] = mapped_column(String(71), index=True)
    base_fingerprint: Mapped[str] = mapped_column(ForeignKey("bases.fingerprint"), index=True)
    base_verified: Mapped[bool]
    adapter_bytes: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int]
    target_modules: Mapped[str] = mapped_column(Text)
    manifest: Mapped[str | None] = mapped_column(Text)
    message: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(80))
    parent_digest: Mapped[str | None] = mapped_column(String(71), index=True)
    data_digest: Mapped[str | None] = mapped_column(String(71), index=True)
    verdict: Mapped[str | None] = mapped_column(Text)


class VersionFileRow(Row):
    """One file of a version; `sha256` names the blob."""

    __tablename__ = "version_files"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(128), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64), index=True)


class VersionExpertRow(Row):
    """One expert of a version that is a mixture, by its place in the gate. Never updated."""

    __tablename__ = "version_experts"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(String(71), index=True)


class AliasRow(Row):
    """Where an alias points now."""

    __tablename__ = "aliases"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    moved_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AliasMoveRow(Row):
    """One move of an alias; `sequence` counts from 1 per alias, and goes on after a deletion (`to_number` null).

    `gate` is JSON: how the alias's policy judged it.
    """

    __tablename__ = "alias_moves"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(40), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    from_number: Mapped[int | None]
    to_number: Mapped[int | None]
    actor: Mapped[str] = mapped_column(String(80))
    evidence: Mapped[str] = mapped_column(Text)
    moved_at: Mapped[datetime] = mapped_column(UtcDateTime)
    gate: Mapped[str | None] = mapped_column(Text)


class AuditRow(Row):
    """Who changed what, and when. `detail` is JSON. Each row's hash covers the row and the hash before it."""

    __tablename__ = "audit_events"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(String(80))
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(256))
    detail: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str | None] = mapped_column(String(40), index=True)
    previous_hash: Mapped[str | None] = mapped_column(String(64))
    row_hash: Mapped[str | None] = mapped_column(String(64))


class MetaRow(Row):
    """What the registry knows of itself: its random identity, its secret for signed addresses, its oldest reader."""

    __tablename__ = "registry_meta"
    key: Mapped[str] = mapped_column(String(40), primary_key=True)
    value: Mapped[str] = mapped_column(Text)
