"""Webhooks: addresses of a tenant that are told of its events. One method is one transaction.

The secret that signs deliveries is shown once, when the webhook is made; the database keeps it, because it has to sign.
Admins of the tenant manage them, and the operator. A tenant's webhook is told of the tenant's own events only.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from registry import audit, locks
from registry.database import Database
from registry.errors import ConflictError, InvalidValueError, NotFoundError
from registry.event import EventKind
from registry.locks import Lock
from registry.models import DeliveryRow, EventRow, MetaRow, TenantRow, WebhookRow
from registry.names import parse_tenant
from registry.outbound import OutboundPolicy, Target
from registry.principal import Principal, Role
from registry.tenant_rows import find_tenant
from registry.webhook import Delivery, IssuedWebhook, Webhook
from registry.webhook_signature import new_secret

WEBHOOKS_LIMIT = 20
REPLAY_LIMIT = 1_000
DELIVERIES_SHOWN = 100
POLICY_KEY = "webhook_policy"


class Webhooks:
    """Webhooks and what became of their deliveries. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def policy(self) -> OutboundPolicy:
        """What the operator allows beyond public addresses over https."""
        with self._database.reading() as session:
            return _policy(session)

    def shown_policy(self, principal: Principal) -> OutboundPolicy:
        """As `policy`, for whoever may see it. Raises PermissionDeniedError."""
        principal.require_operator(action="see", subject="the addresses of webhooks")
        return self.policy()

    def set_policy(self, policy: OutboundPolicy, principal: Principal) -> OutboundPolicy:
        """Allow http, hosts and networks. Only the operator may."""
        principal.require_operator(action="change", subject="the addresses of webhooks")
        document = json.dumps(policy.to_json(), sort_keys=True)
        with self._database.writing() as session:
            session.merge(MetaRow(key=POLICY_KEY, value=document))
            _audit(session, principal, "webhook_policy", POLICY_KEY, document=document)
        return policy

    def create(
        self, tenant: str, url: str, *, kinds: Sequence[str] | None = None, principal: Principal
    ) -> IssuedWebhook:
        """Make a webhook. Raises PermissionDeniedError, ForbiddenAddressError, InvalidValueError, ConflictError."""
        _require_admin(tenant, principal)
        wanted = _check_kinds(kinds)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            Target.parse(url, _policy(session))
            tenant_row = find_tenant(session, tenant, lock=True)
            count = select(func.count()).select_from(WebhookRow).where(WebhookRow.tenant_id == tenant_row.id)
            if (session.scalar(count) or 0) >= WEBHOOKS_LIMIT:
                raise ConflictError(
                    f"Tenant {tenant!r} has {WEBHOOKS_LIMIT} webhooks, which is the limit. "
                    "Remove one with `loraplex webhook rm` first."
                )
            row = WebhookRow(
                id="whk_" + secrets.token_hex(8),
                tenant_id=tenant_row.id,
                url=url,
                secret=new_secret(),
                kinds=None if wanted is None else json.dumps(wanted),
                created_by=principal.actor,
                created_at=now,
                disabled_at=None,
            )
            session.add(row)
            _audit(session, principal, "create_webhook", row.id, tenant=tenant)
            return IssuedWebhook(row.id, tenant, url, wanted, row.created_by, now, None, secret=row.secret)

    def all(self, tenant: str, principal: Principal) -> list[Webhook]:
        """A tenant's webhooks, oldest first. Raises PermissionDeniedError."""
        _require_admin(tenant, principal)
        with self._database.reading() as session:
            query = select(WebhookRow).join(TenantRow, TenantRow.id == WebhookRow.tenant_id)
            rows = session.scalars(query.where(TenantRow.name == tenant).order_by(WebhookRow.created_at))
            return [_to_webhook(row, tenant) for row in rows]

    def delete(self, webhook_id: str, principal: Principal) -> Webhook:
        """Remove a webhook with its deliveries. Raises NotFoundError, PermissionDeniedError."""
        with self._database.writing() as session:
            row, tenant = _find(session, webhook_id, principal, lock=True)
            session.execute(delete(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id))
            session.delete(row)
            _audit(session, principal, "delete_webhook", webhook_id, tenant=tenant)
            return _to_webhook(row, tenant)

    def deliveries(self, webhook_id: str, principal: Principal) -> list[Delivery]:
        """The newest deliveries, newest first. Raises NotFoundError, PermissionDeniedError."""
        with self._database.reading() as session:
            _find(session, webhook_id, principal)
            query = (
                select(DeliveryRow, EventRow.kind)
                .join(EventRow, EventRow.id == DeliveryRow.event_id)
                .where(DeliveryRow.webhook_id == webhook_id)
                .order_by(DeliveryRow.id.desc())
                .limit(DELIVERIES_SHOWN)
            )
            return [_to_delivery(row, kind) for row, kind in session.execute(query)]

    def replay(self, webhook_id: str, *, after: int | None = None, principal: Principal) -> int:
        """Queue deliveries again, and enable the webhook if it was disabled; returns how many.

        Without `after`, those that were given up; with it, every event of a later number, also those that arrived
        before or happened while the webhook was disabled. At most 1000 in one call, the oldest first.
        """
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row, tenant = _find(session, webhook_id, principal, lock=True)
            row.disabled_at = None
            if after is None:
                query = select(DeliveryRow).where(
                    DeliveryRow.webhook_id == webhook_id,
                    DeliveryRow.due_at.is_(None),
                    DeliveryRow.delivered_at.is_(None),
                )
                again = list(session.scalars(query.order_by(DeliveryRow.id).limit(REPLAY_LIMIT).with_for_update()))
            else:
                again = _deliveries_after(session, row, tenant, after, now)
            for delivery in again:
                delivery.attempts, delivery.due_at = 0, now
                delivery.delivered_at = delivery.status = delivery.failure = None
            _audit(session, principal, "replay_webhook", webhook_id, tenant=tenant, count=len(again))
            return len(again)

    def test(self, webhook_id: str, principal: Principal) -> Delivery:
        """Queue an event of kind `webhook.test` for this webhook alone. Raises NotFoundError, ConflictError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            row, tenant = _find(session, webhook_id, principal, lock=True)
            if row.disabled_at is not None:
                raise ConflictError(
                    f"Webhook {webhook_id} is disabled. Enable it with `loraplex webhook replay {webhook_id}`."
                )
            locks.hold(session, Lock.EVENTS)
            document = json.dumps({"webhook": webhook_id, "actor": principal.actor})
            happened = EventRow(
                at=now, kind=EventKind.WEBHOOK_TEST, tenant=tenant, adapter="", is_public=False, document=document
            )
            session.add(happened)
            session.flush()
            delivery = DeliveryRow(webhook_id=webhook_id, event_id=happened.id, attempts=0, due_at=now)
            session.add(delivery)
            session.flush()
            return _to_delivery(delivery, happened.kind)


def _deliveries_after(
    session: Session, webhook: WebhookRow, tenant: str, after: int, now: datetime
) -> list[DeliveryRow]:
    """The deliveries of later events, made where there is none."""
    query = select(EventRow.id).where(EventRow.tenant == tenant, EventRow.id > after)
    if webhook.kinds is not None:
        query = query.where(EventRow.kind.in_(json.loads(webhook.kinds)))
    event_ids = list(session.scalars(query.order_by(EventRow.id).limit(REPLAY_LIMIT)))
    present = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook.id, DeliveryRow.event_id.in_(event_ids))
    rows = {row.event_id: row for row in session.scalars(present.with_for_update())}
    for event_id in event_ids:
        if event_id not in rows:
            rows[event_id] = DeliveryRow(webhook_id=webhook.id, event_id=event_id, attempts=0, due_at=now)
            session.add(rows[event_id])
    return list(rows.values())


def _find(session: Session, webhook_id: str, principal: Principal, *, lock: bool = False) -> tuple[WebhookRow, str]:
    """The webhook and its tenant's name; another tenant's is missing. Raises NotFoundError, PermissionDeniedError."""
    query = select(WebhookRow, TenantRow.name).join(TenantRow, TenantRow.id == WebhookRow.tenant_id)
    query = query.where(WebhookRow.id == webhook_id)
    if not principal.is_operator:
        query = query.where(TenantRow.name == principal.tenant)
    found = session.execute(query.with_for_update(of=WebhookRow) if lock else query).first()
    if found is None:
        raise NotFoundError("webhook", webhook_id, "List a tenant's with `loraplex webhook ls`.")
    row, tenant = found
    _require_admin(tenant, principal)
    return row, tenant


def _require_admin(tenant: str, principal: Principal) -> None:
    principal.require_tenant(Role.ADMIN, parse_tenant(tenant), action="manage the webhooks of")


def _check_kinds(kinds: Collection[str] | None) -> tuple[str, ...] | None:
    if kinds is None:
        return None
    known = tuple(kind.value for kind in EventKind if kind is not EventKind.BASE_REGISTERED)
    if not kinds or not set(kinds) <= set(known):
        raise InvalidValueError("kinds", f"each is one of {', '.join(known)}")
    return tuple(dict.fromkeys(str(kind) for kind in kinds))


def _policy(session: Session) -> OutboundPolicy:
    row = session.get(MetaRow, POLICY_KEY)
    return OutboundPolicy() if row is None else OutboundPolicy.from_json(json.loads(row.value))


def _audit(
    session: Session,
    principal: Principal,
    action: str,
    subject: str,
    *,
    tenant: str | None = None,
    **detail: str | int | None,
) -> None:
    now = datetime.now(UTC)
    audit.record(session, at=now, actor=principal.actor, action=action, subject=subject, tenant=tenant, **detail)


def _to_webhook(row: WebhookRow, tenant: str) -> Webhook:
    kinds = None if row.kinds is None else tuple(json.loads(row.kinds))
    return Webhook(row.id, tenant, row.url, kinds, row.created_by, row.created_at, row.disabled_at)


def _to_delivery(row: DeliveryRow, kind: str) -> Delivery:
    return Delivery(row.id, row.event_id, kind, row.attempts, row.due_at, row.delivered_at, row.status, row.failure)
