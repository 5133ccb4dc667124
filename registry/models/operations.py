"""What keeps a registry going: events and webhooks, leases and pins, tombstones, mirrors, retention."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from registry.models.row import Row, UtcDateTime


class EventRow(Row):
    """Something that happened, for those who follow. `id` is the order of commits; `document` is JSON."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    kind: Mapped[str] = mapped_column(String(40))
    tenant: Mapped[str] = mapped_column(String(40), index=True)
    adapter: Mapped[str] = mapped_column(String(140))
    is_public: Mapped[bool]
    document: Mapped[str] = mapped_column(Text)


class WebhookRow(Row):
    """An address of a tenant that is told of events. The secret signs each delivery. `kinds` is JSON, null for all."""

    __tablename__ = "webhooks"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), index=True)
    url: Mapped[str] = mapped_column(Text)
    secret: Mapped[str] = mapped_column(String(100))
    kinds: Mapped[str | None] = mapped_column(Text)
    created_by: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    disabled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class DeliveryRow(Row):
    """One event on its way to one webhook: the outbox. It is written with the event, in the event's transaction."""

    __tablename__ = "deliveries"
    id: Mapped[int] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), index=True)
    event_id: Mapped[int] = mapped_column(ForeignKey("events.id"), index=True)
    attempts: Mapped[int]
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    delivered_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    status: Mapped[int | None]
    failure: Mapped[str | None] = mapped_column(Text)


class LeaseRow(Row):
    """A holder (a server) uses a version until then: garbage collection leaves it."""

    __tablename__ = "leases"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    holder: Mapped[str] = mapped_column(String(100), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)


class PinRow(Row):
    """A version that somebody wants kept, whatever the retention rules say."""

    __tablename__ = "pins"
    version_id: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    reason: Mapped[str] = mapped_column(Text)
    actor: Mapped[str] = mapped_column(String(80))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TombstoneRow(Row):
    """A name or a version that was deleted, and when the name may be used again. `number` 0 is the adapter itself."""

    __tablename__ = "tombstones"
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(96), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str | None] = mapped_column(String(71))
    moved_to: Mapped[str | None] = mapped_column(String(140))
    actor: Mapped[str] = mapped_column(String(80))
    deleted_at: Mapped[datetime] = mapped_column(UtcDateTime)
    reusable_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RetentionRow(Row):
    """How long an adapter's versions are kept. `document` is JSON."""

    __tablename__ = "retention_rules"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    document: Mapped[str] = mapped_column(Text)
    set_by: Mapped[str] = mapped_column(String(80))
    set_at: Mapped[datetime] = mapped_column(UtcDateTime)


class MirrorRow(Row):
    """An adapter that is pulled through from another Hub, at the upstream commit that it was pinned to.

    `every_seconds` None: it is looked at only when somebody asks. `failures` counts those since the last success.
    """

    __tablename__ = "mirrors"
    adapter_id: Mapped[int] = mapped_column(ForeignKey("adapters.id"), primary_key=True)
    endpoint: Mapped[str] = mapped_column(Text)
    repository: Mapped[str] = mapped_column(String(200))
    revision: Mapped[str] = mapped_column(String(200))
    commit: Mapped[str] = mapped_column(String(64))
    fetched_at: Mapped[datetime] = mapped_column(UtcDateTime)
    every_seconds: Mapped[int | None]
    next_sync_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    failures: Mapped[int] = mapped_column(server_default="0", default=0)
    failure: Mapped[str | None] = mapped_column(Text)
