"""What decides about promotions: attestations on versions, policies and canaries of aliases, keys of tenants."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from registry.models.row import Row, UtcDateTime


class AttestationRow(Row):
    """What somebody says of a version: an evaluation, a probe run, a scan, an approval, a signature. Never updated.

    `subject` narrows it down (the evaluation's name, the alias that is approved, the key's id); `document` is JSON.
    """

    __tablename__ = "attestations"
    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    subject: Mapped[str] = mapped_column(String(200))
    passed: Mapped[bool | None]
    document: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AliasPolicyRow(Row):
    """What a version must show before an alias may point at it. `document` is JSON."""

    __tablename__ = "alias_policies"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(40), primary_key=True)
    document: Mapped[str] = mapped_column(Text)
    set_by: Mapped[str] = mapped_column(String(80))
    set_at: Mapped[datetime] = mapped_column(UtcDateTime)


class CanaryRow(Row):
    """A second version that an alias gives to a part of the traffic, in thousandths."""

    __tablename__ = "canaries"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(40), primary_key=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)
    permille: Mapped[int]
    actor: Mapped[str] = mapped_column(String(80))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SigningKeyRow(Row):
    """A public key whose signatures a tenant trusts. `id` is the SHA-256 of its DER form."""

    __tablename__ = "signing_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "label"),)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    label: Mapped[str] = mapped_column(String(200))
    public_pem: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    created_by: Mapped[str] = mapped_column(String(80))
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
