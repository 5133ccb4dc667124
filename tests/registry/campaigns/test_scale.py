"""Many versions: what is asked often goes by an index, pages cost the same wherever they lie, and the times hold."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

import registry
from registry.catalog import Catalog
from registry.errors import InvalidValueError, NotFoundError
from registry.names import AdapterRef
from registry.principal import Role
from registry.resolution import Resolution
from tests.registry.campaigns.filling import fill

RESOLVE_SECONDS = 0.005
PAGE_SECONDS = 0.050


def tenant_reader(name: str) -> registry.Principal:
    return registry.Principal(tenant=name, role=Role.READER, token_id="tok_reader")


def statements_of(action: Callable[[], object]) -> list[tuple[str, Any]]:
    """The SELECTs that the action runs, with their parameters."""
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        action()
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    return seen


def tables_read_whole(reg: registry.Registry, statement: str, parameters: Any) -> list[str]:
    """The lines of the database's plan that walk through a table; the few tenants may be walked through."""
    with reg._database.connected() as connection:
        if connection.dialect.name == "sqlite":
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            scans = [row[3] for row in rows if row[3].startswith("SCAN")]
        else:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # it is chosen only where there is no index
            rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
            scans = [row[0] for row in rows if "Seq Scan on" in row[0]]
        return [scan for scan in scans if " tenants" not in scan and " anon_" not in scan]


def fill_and_analyze(reg: registry.Registry, **counts: int) -> list[str]:
    names = fill(reg._database, **counts)
    with reg._database.writing() as session:
        if session.connection().dialect.name == "postgresql":
            session.execute(text("ANALYZE"))  # as autovacuum does within a minute
    return names


def seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


def test_what_is_asked_often_goes_by_an_index(reg: registry.Registry, operator: registry.Principal) -> None:
    names = fill_and_analyze(reg, tenants=10, adapters=500, versions=10)
    name = names[17]
    digest = reg.resolve(f"{name}@3", principal=operator).digest
    reader = tenant_reader(name.partition("/")[0])
    resolution = Resolution(reg._database, Catalog(reg._database))
    actions: dict[str, Callable[[], object]] = {
        ref: lambda ref=ref: resolution.look_up(AdapterRef.parse(ref), reader)
        for ref in [name, f"{name}@3", f"{name}@prod", f"{name}@{digest[:30]}", digest]
    }
    cursor = reg.page_adapters(operator, limit=300).next_cursor
    actions["page of the operator"] = lambda: reg.page_adapters(operator, limit=20, cursor=cursor)
    actions["page of versions"] = lambda: reg.page_versions(name, reader, limit=3, cursor="6")
    actions["aliases"] = lambda: reg.aliases(name, reader)
    for what, action in actions.items():
        asked = statements_of(action)
        assert asked, what
        for statement, parameters in asked:
            assert tables_read_whole(reg, statement, parameters) == [], (what, statement)


def test_pages_hold_everything_once_and_in_order(reg: registry.Registry, operator: registry.Principal) -> None:
    names = fill(reg._database, tenants=3, adapters=23, versions=7)
    reader = tenant_reader("tenant-001")
    readable = [name for name in names if name.startswith("tenant-001/") or int(name[-5:]) % 10 == 0]
    for principal, expected in ((operator, sorted(names)), (reader, sorted(readable))):
        for limit in (1, 2, 5, 22, 23, 24, 1000):
            shown: list[str] = []
            cursor: str | None = None
            while True:
                page = reg.page_adapters(principal, limit=limit, cursor=cursor)
                assert 0 < len(page.items) <= limit
                shown += [summary.adapter for summary in page.items]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert shown == expected, limit
        assert [summary.adapter for summary in reg.list_adapters(principal)] == expected
    first = reg.page_adapters(operator, limit=1).items[0]
    assert (first.newest_number, first.aliases, first.rank) == (7, {"prod": 6}, 16)
    only = reg.page_adapters(operator, tenant="tenant-002")
    assert [summary.tenant for summary in only.items] == ["tenant-002"] * 7
    versions = reg.list_versions(names[0], operator)
    pages = [reg.page_versions(names[0], operator, limit=3, cursor=cursor) for cursor in (None, "5", "2")]
    assert [version for page in pages for version in page.items] == versions
    assert [page.next_cursor for page in pages] == ["5", "2", None]


def test_a_page_of_what_there_is_not(reg: registry.Registry, operator: registry.Principal) -> None:
    assert reg.page_adapters(operator).items == ()
    assert reg.page_adapters(operator, cursor="zz/zz").next_cursor is None
    names = fill(reg._database, tenants=1, adapters=2, versions=1)
    assert reg.page_adapters(operator, tenant="nobody").items == ()
    for limit in (0, -1, 1001):
        with pytest.raises(InvalidValueError, match="limit"):
            reg.page_adapters(operator, limit=limit)
        with pytest.raises(InvalidValueError, match="limit"):
            reg.page_versions(names[0], operator, limit=limit)
    for cursor in ("", "acme", "acme/../x", "\0"):
        with pytest.raises(InvalidValueError, match="cursor"):
            reg.page_adapters(operator, cursor=cursor)
    for cursor in ("", "x", "-1", "²", "9" * 12):
        with pytest.raises(InvalidValueError, match="cursor"):
            reg.page_versions(names[0], operator, cursor=cursor)
    with pytest.raises(NotFoundError):
        reg.page_versions(names[1], tenant_reader("other"))


@pytest.mark.long
def test_100_000_versions_of_10_000_adapters(reg: registry.Registry, operator: registry.Principal) -> None:
    """Resolving without the cache under 5 ms, a page under 50 ms; the largest adapter's pages too."""
    names = fill_and_analyze(reg, tenants=50, adapters=10_000, versions=10)
    chance = random.Random(4)
    reader = tenant_reader("tenant-007")
    own = [name for name in names if name.startswith("tenant-007/")]

    resolution = Resolution(reg._database, Catalog(reg._database))

    def resolve(ref: str, principal: registry.Principal) -> float:
        parsed = AdapterRef.parse(ref)
        return seconds_of(lambda: resolution.look_up(parsed, principal))

    selectors = ["", "@prod", "@4"]
    resolve(names[0], operator)
    resolved = [resolve(chance.choice(names) + chance.choice(selectors), operator) for _ in range(3_000)]
    resolved += [resolve(chance.choice(own) + chance.choice(selectors), reader) for _ in range(3_000)]
    assert p99(resolved) < RESOLVE_SECONDS
    pages = [seconds_of(lambda: reg.page_adapters(operator, cursor=chance.choice(names))) for _ in range(200)]
    pages += [seconds_of(lambda: reg.page_adapters(reader, cursor=chance.choice(names))) for _ in range(200)]
    pages += [seconds_of(lambda: reg.page_versions(chance.choice(names), operator)) for _ in range(200)]
    assert p99(pages) < PAGE_SECONDS
