"""Adapters as Hub repositories: made without a version, their settings, pages of them. One method, one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from registry import audit, events
from registry.bounded_text import check_text
from registry.catalog import adapter_for_publish
from registry.database import Database
from registry.errors import InvalidValueError
from registry.event import EventKind
from registry.fresh_cache import FreshCache
from registry.lookup import find_adapter, is_readable
from registry.models import AdapterRow, RefRow, TenantRow, VersionRow
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.trees import BRANCH, DEFAULT_BRANCH, head_of, insert_commit
from registry.usage import locked_tenant
from registry.version import Visibility

FIRST_COMMIT_TITLE = "initial commit"
PAGE_LIMIT = 1_000
SEARCH_CHARACTERS = 200
FOUND_KEPT = 1_024


class Order(Enum):
    """How a listing is sorted: by name, or by the moment, the latest first, and then by name."""

    NAME = "name"
    UPDATED = "updated"
    CREATED = "created"


@dataclass(frozen=True)
class Position:
    """A place in a listing: the repository after which the next page begins."""

    name: str
    moment: datetime | None


@dataclass(frozen=True)
class Repository:
    """An adapter as a repository. `head` is the commit of its main branch; `version` and its base are the newest's."""

    name: str
    tenant: str
    visibility: Visibility
    created_at: datetime
    updated_at: datetime
    head: str | None
    version: int | None
    base_fingerprint: str | None

    def position(self, order: Order) -> Position:
        """Where this repository stands in a listing of this order."""
        moments = {Order.NAME: None, Order.UPDATED: self.updated_at, Order.CREATED: self.created_at}
        return Position(self.name, moments[order])


class Repositories:
    """Holds no state but the database and answers that hold until it changes, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: FreshCache[tuple[AdapterName, Principal], Repository] = FreshCache(database, FOUND_KEPT)

    def create(
        self, name: AdapterName, *, visibility: Visibility | None, principal: Principal
    ) -> tuple[Repository, bool]:
        """Make an adapter that has no version yet; the flag says whether it is new, and an old one stays as it is.

        Raises PermissionDeniedError, ConflictError.
        """
        principal.require(Role.PUBLISHER, name, action="create")
        now = datetime.now(UTC)
        with self._database.writing() as session:
            tenant = locked_tenant(session, name.tenant, principal, now)
            query = select(AdapterRow).where(AdapterRow.tenant_id == tenant.id, AdapterRow.name == name.name)
            present = session.scalar(query)
            if present is not None:
                return _to_repository(session, present, name.tenant), False
            adapter = adapter_for_publish(session, name, tenant, visibility, principal, now)
            insert_commit(
                session,
                adapter,
                (),
                branch=DEFAULT_BRANCH,
                title=FIRST_COMMIT_TITLE,
                message="",
                author=principal.actor,
                at=now,
                version_id=None,
            )
            audit.record(session, at=now, actor=principal.actor, action="create_adapter", subject=str(name))
            _tell(session, EventKind.ADAPTER_CREATED, adapter, name, now, principal)
            return _to_repository(session, adapter, name.tenant), True

    def find(self, name: AdapterName, principal: Principal) -> Repository:
        """One repository. Raises NotFoundError."""
        return self._found.get((name, principal), lambda: self._find(name, principal))

    def _find(self, name: AdapterName, principal: Principal) -> Repository:
        with self._database.reading() as session:
            return _to_repository(session, find_adapter(session, name, principal), name.tenant)

    def set_visibility(self, name: AdapterName, visibility: Visibility, principal: Principal) -> Repository:
        """Make it private or public. Raises NotFoundError, PermissionDeniedError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.ADMIN, name, action=f"make {visibility.value}")
            if adapter.visibility != visibility.value:
                adapter.visibility = visibility.value
                adapter.updated_at = now
                audit.record(
                    session,
                    at=now,
                    actor=principal.actor,
                    action="visibility",
                    subject=str(name),
                    visibility=visibility.value,
                )
                _tell(session, EventKind.ADAPTER_VISIBILITY, adapter, name, now, principal, was_public=True)
            return _to_repository(session, adapter, name.tenant)

    def page(
        self,
        principal: Principal,
        *,
        limit: int,
        order: Order = Order.NAME,
        after: Position | None = None,
        tenant: str | None = None,
        search: str | None = None,
    ) -> list[Repository]:
        """Up to `limit` repositories that the caller may read, from the one after `after` on.

        `search` is a part of the full name, in lower case. Raises InvalidValueError.
        """
        assert 1 <= limit <= PAGE_LIMIT
        check_text("search", search or "", limit_characters=SEARCH_CHARACTERS)
        query = (
            select(AdapterRow, TenantRow.name)
            .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
            .where(is_readable(principal), *_filters(tenant, search))
        )
        moment = {Order.UPDATED: AdapterRow.updated_at, Order.CREATED: AdapterRow.created_at}.get(order)
        if after is not None:
            query = query.where(_is_after(after, moment))
        by_name = (TenantRow.name, AdapterRow.name)
        query = query.order_by(*(by_name if moment is None else (moment.desc(), *by_name))).limit(limit)
        with self._database.reading() as session:
            found = session.execute(query).all()
            ids = [adapter.id for adapter, _ in found]
            heads, versions = _heads(session, ids), _newest_versions(session, ids)
            return [
                _value(adapter, tenant_name, heads.get(adapter.id), versions.get(adapter.id))
                for adapter, tenant_name in found
            ]


def _filters(tenant: str | None, search: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if tenant is not None:
        conditions.append(TenantRow.name == tenant)
    if search:
        full_name = TenantRow.name + "/" + AdapterRow.name
        conditions.append(full_name.contains(search.lower(), autoescape=True))
    return conditions


def _is_after(after: Position, moment: InstrumentedAttribute[datetime] | None) -> ColumnElement[bool]:
    tenant, _, name = after.name.partition("/")
    by_name = or_(TenantRow.name > tenant, and_(TenantRow.name == tenant, AdapterRow.name > name))
    if moment is None:
        return by_name
    if after.moment is None:
        raise InvalidValueError("cursor", "it is of a listing in another order")
    return or_(moment < after.moment, and_(moment == after.moment, by_name))


def _heads(session: Session, adapter_ids: Sequence[int]) -> dict[int, str]:
    query = select(RefRow.adapter_id, RefRow.commit_id).where(
        RefRow.adapter_id.in_(adapter_ids), RefRow.kind == BRANCH, RefRow.name == DEFAULT_BRANCH
    )
    return {row.adapter_id: row.commit_id for row in session.execute(query)}


def _newest_versions(session: Session, adapter_ids: Sequence[int]) -> dict[int, tuple[int, str]]:
    """Number and base of each adapter's newest version."""
    candidate = aliased(VersionRow)
    newest = select(func.max(candidate.number)).where(candidate.adapter_id == VersionRow.adapter_id).scalar_subquery()
    query = select(VersionRow.adapter_id, VersionRow.number, VersionRow.base_fingerprint).where(
        VersionRow.adapter_id.in_(adapter_ids), VersionRow.number == newest
    )
    return {row.adapter_id: (row.number, row.base_fingerprint) for row in session.execute(query)}


def _to_repository(session: Session, adapter: AdapterRow, tenant: str) -> Repository:
    newest = _newest_versions(session, [adapter.id]).get(adapter.id)
    return _value(adapter, tenant, head_of(session, adapter), newest)


def _value(adapter: AdapterRow, tenant: str, head: str | None, newest: tuple[int, str] | None) -> Repository:
    return Repository(
        name=f"{tenant}/{adapter.name}",
        tenant=tenant,
        visibility=Visibility(adapter.visibility),
        created_at=adapter.created_at,
        updated_at=adapter.updated_at,
        head=head,
        version=None if newest is None else newest[0],
        base_fingerprint=None if newest is None else newest[1],
    )


def _tell(
    session: Session,
    kind: EventKind,
    adapter: AdapterRow,
    name: AdapterName,
    at: datetime,
    principal: Principal,
    *,
    was_public: bool = False,
) -> None:
    """Record an event. Whoever could read the adapter before the change learns of it: `was_public`."""
    events.record(
        session,
        at=at,
        kind=kind,
        tenant=name.tenant,
        adapter=str(name),
        is_public=was_public or adapter.visibility == Visibility.PUBLIC.value,
        document={"visibility": adapter.visibility, "actor": principal.actor},
    )
