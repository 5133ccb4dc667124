"""Lists adapters and versions page by page. The cost of a page does not depend on how many came before it.

A page begins after a key that the index holds (keyset pagination), never at an offset. What belongs to the adapters of
a page (newest versions, aliases) is asked for that page alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, exists, func, select
from sqlalchemy.orm import Session

from registry.database import Database
from registry.errors import InvalidNameError, InvalidValueError
from registry.lookup import find_adapter, is_readable, missing_adapter, to_versions
from registry.models import AdapterRow, AliasRow, TenantRow, VersionRow
from registry.names import VERSION_NUMBER_DIGITS, AdapterName
from registry.page import PAGE_DEFAULT, PAGE_LIMIT, Page, check_limit
from registry.principal import Principal
from registry.version import AdapterSummary, Version, Visibility


class Listing:
    """Pages of adapters and versions. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def adapters(
        self,
        principal: Principal,
        *,
        limit: int = PAGE_DEFAULT,
        cursor: str | None = None,
        tenant: str | None = None,
        search: str | None = None,
    ) -> Page[AdapterSummary]:
        """Adapters that have a version and that the caller may read, by name.

        Of one tenant, where it is given; and those in whose full name the searched text is. Raises InvalidValueError.
        """
        after = None if cursor is None else _parse_adapter_cursor(cursor)
        query = _adapters_query(principal)
        if search is not None:
            query = query.where((TenantRow.name + "/" + AdapterRow.name).contains(search, autoescape=True))
        with self._database.reading() as session:
            rows = _adapter_rows(session, query, after, tenant, check_limit(limit) + 1)
            summaries = tuple(_summaries(session, rows[:limit]))
        last = rows[:limit][-1] if len(rows) > limit else None
        return Page(summaries, None if last is None else f"{last.tenant}/{last.name}")

    def adapter(self, name: AdapterName, principal: Principal) -> AdapterSummary:
        """One adapter that has a version. Raises NotFoundError."""
        query = _adapters_query(principal).where(TenantRow.name == name.tenant, AdapterRow.name == name.name)
        with self._database.reading() as session:
            for summary in _summaries(session, session.execute(query).all()):
                return summary
        raise missing_adapter(name)

    def all_adapters(self, principal: Principal) -> list[AdapterSummary]:
        """Every adapter with a version that the caller may read, by name."""
        return list(self._walk(principal))

    def versions(
        self, name: AdapterName, principal: Principal, *, limit: int = PAGE_DEFAULT, cursor: str | None = None
    ) -> Page[Version]:
        """An adapter's versions, newest first. Raises NotFoundError, InvalidValueError."""
        below = None if cursor is None else _parse_version_cursor(cursor)
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            query = select(VersionRow).where(VersionRow.adapter_id == adapter.id)
            if below is not None:
                query = query.where(VersionRow.number < below)
            rows = session.scalars(query.order_by(VersionRow.number.desc()).limit(check_limit(limit) + 1)).all()
            shown = to_versions(session, [(row, adapter, name.tenant) for row in rows[:limit]])
        return Page(tuple(shown), str(shown[-1].number) if len(rows) > limit else None)

    def _walk(self, principal: Principal) -> Iterator[AdapterSummary]:
        cursor = None
        while True:
            page = self.adapters(principal, limit=PAGE_LIMIT, cursor=cursor)
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return


def _adapter_rows(
    session: Session, query: Select[Any], after: AdapterName | None, tenant: str | None, limit: int
) -> Sequence[Row[Any]]:
    """The next adapters in order: first the rest of the cursor's tenant, then the tenants after it.

    Two questions, because each is one walk along an index; joined by "or" they would be none.
    """
    if tenant is not None:
        query = query.where(TenantRow.name == tenant)
    if after is None:
        return session.execute(query.limit(limit)).all()
    of_tenant = _of_tenant(session, query, after.tenant, AdapterRow.name > after.name)
    rows = list(session.execute(of_tenant.limit(limit)))
    if len(rows) < limit:
        rows += session.execute(query.where(TenantRow.name > after.tenant).limit(limit - len(rows)))
    return rows


def _of_tenant(session: Session, query: Select[Any], tenant: str, condition: ColumnElement[bool]) -> Select[Any]:
    tenant_id = session.scalar(select(TenantRow.id).where(TenantRow.name == tenant))
    return query.where(AdapterRow.tenant_id == tenant_id, TenantRow.id == tenant_id, condition)


def _adapters_query(principal: Principal) -> Select[Any]:
    has_version = exists().where(VersionRow.adapter_id == AdapterRow.id)
    return (
        select(AdapterRow.__table__, TenantRow.name.label("tenant"))
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(is_readable(principal), has_version)
        .order_by(TenantRow.name, AdapterRow.name)
    )


def _summaries(session: Session, rows: Sequence[Row[Any]]) -> Iterator[AdapterSummary]:
    ids = [row.id for row in rows]
    aliases: dict[int, dict[str, int]] = {}
    unverified: dict[int, set[int]] = {}
    columns = (AliasRow.adapter_id, AliasRow.name, VersionRow.number, VersionRow.base_verified)
    alias_query = select(*columns).join(VersionRow, VersionRow.id == AliasRow.version_id)
    alias_query = alias_query.where(AliasRow.adapter_id.in_(ids)).order_by(AliasRow.adapter_id, AliasRow.name)
    for adapter_id, alias, number, base_verified in session.execute(alias_query):
        aliases.setdefault(adapter_id, {})[alias] = number
        if not base_verified:
            unverified.setdefault(adapter_id, set()).add(number)
    newest = _newest_versions(session, ids)
    for adapter_id, found in newest.items():
        if not found.base_verified:
            unverified.setdefault(adapter_id, set()).add(found.number)
    for row in rows:
        if version := newest.get(row.id):  # None: its versions were deleted since the adapters were read
            yield AdapterSummary(
                tenant=row.tenant,
                adapter=f"{row.tenant}/{row.name}",
                visibility=Visibility(row.visibility),
                newest_number=version.number,
                newest_digest=version.digest,
                base_fingerprint=version.base_fingerprint,
                rank=version.rank,
                adapter_bytes=version.adapter_bytes,
                aliases=aliases.get(row.id, {}),
                created_at=row.created_at,
                updated_at=row.updated_at,
                unverified=tuple(sorted(unverified.get(row.id, ()))),
            )


def _newest_versions(session: Session, adapter_ids: list[int]) -> dict[int, Row[Any]]:
    newest = (
        select(VersionRow.adapter_id, func.max(VersionRow.number).label("number"))
        .where(VersionRow.adapter_id.in_(adapter_ids))
        .group_by(VersionRow.adapter_id)
        .subquery()
    )
    is_newest = and_(VersionRow.adapter_id == newest.c.adapter_id, VersionRow.number == newest.c.number)
    columns = (VersionRow.adapter_id, VersionRow.number, VersionRow.digest, VersionRow.base_fingerprint)
    more = (VersionRow.rank, VersionRow.adapter_bytes, VersionRow.base_verified)
    query: Select[*tuple[Any, ...]] = select(*columns, *more).join(newest, is_newest)
    return {row.adapter_id: row for row in session.execute(query).all()}


def _parse_adapter_cursor(text: str) -> AdapterName:
    try:
        return AdapterName.parse(text)
    except InvalidNameError as error:
        raise _invalid_cursor() from error


def _parse_version_cursor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= VERSION_NUMBER_DIGITS):
        raise _invalid_cursor()
    return int(text)


def _invalid_cursor() -> InvalidValueError:
    return InvalidValueError("cursor", "it is not one that a page gave")
