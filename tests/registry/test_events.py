"""The feed: an event stands exactly when its change does, in the order of commits, and shows only what one may read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

import registry
from registry import Principal, Role
from registry import events as events_module
from registry.errors import InvalidValueError
from registry.event import EventKind
from registry.events import Feed
from registry.scope import Scope
from tests.registry.backends import RegistryPlace

Publish = Callable[..., registry.Version]


def member(tenant: str) -> Principal:
    return Principal(tenant=tenant, role=Role.READER, token_id="tok_x")


def kinds(reg: registry.Registry, principal: Principal) -> list[str]:
    return [event.kind for event in reg.events(principal, after=0).events]


def test_each_change_of_an_adapter_is_an_event(reg: registry.Registry, operator: Principal, publish: Publish) -> None:
    start = reg.events(operator).cursor
    first = publish()
    publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    reg.promote("acme/text2sql@2", "prod", principal=operator)
    reg.rollback("acme/text2sql", "prod", principal=operator)
    publish(visibility="public")
    found = reg.events(operator, after=start).events
    assert [event.kind for event in found] == [
        EventKind.VERSION_PUBLISHED,
        EventKind.VERSION_PUBLISHED,
        EventKind.ALIAS_PROMOTED,
        EventKind.ALIAS_PROMOTED,
        EventKind.ALIAS_ROLLED_BACK,
        EventKind.ADAPTER_VISIBILITY,
        EventKind.VERSION_PUBLISHED,
    ]
    assert found[0].document == {
        "actor": "operator",
        "version": 1,
        "digest": first.digest,
        "base_fingerprint": first.base_fingerprint,
    }
    rolled_back = found[4].document
    assert (rolled_back["alias"], rolled_back["from_version"], rolled_back["to_version"]) == ("prod", 2, 1)
    assert rolled_back["digest"] == first.digest
    assert [event.id for event in found] == sorted({event.id for event in found})


@pytest.mark.sqlite_only
def test_what_changes_nothing_is_no_event(
    reg: registry.Registry, operator: Principal, make_adapter: Callable[..., object]
) -> None:
    folder = make_adapter()
    reg.publish(folder, "acme/a", principal=operator)  # type: ignore[arg-type]
    reg.promote("acme/a@1", "prod", principal=operator)
    cursor = reg.events(operator).cursor
    reg.publish(folder, "acme/a", principal=operator)  # type: ignore[arg-type]
    reg.promote("acme/a@1", "prod", principal=operator)
    assert reg.events(operator, after=cursor).events == ()


def test_a_change_that_is_undone_has_no_event(reg: registry.Registry, operator: Principal, publish: Publish) -> None:
    publish()
    publish()
    cursor = reg.events(operator).cursor
    with pytest.raises(registry.AliasMovedError):
        reg.promote("acme/text2sql@1", "prod", principal=operator, expected=7)
    with pytest.raises(RuntimeError):
        _record_and_fail(reg)
    assert reg.events(operator, after=cursor).events == ()


def test_another_tenant_sees_only_what_was_public(
    reg: registry.Registry, operator: Principal, publish: Publish
) -> None:
    start = reg.events(operator).cursor
    publish("acme/secret")
    publish("acme/open", visibility="public")
    publish("rival/own")
    adapters = [event.adapter for event in reg.events(member("rival"), after=start).events]
    assert adapters == ["acme/open", "rival/own"]
    publish("acme/open", visibility="private")
    publish("acme/open")
    rival = [(event.adapter, event.kind) for event in reg.events(member("rival"), after=start).events[2:]]
    assert rival == [("acme/open", "adapter.visibility")], "who could read it learns that it is gone, and no more"


def test_a_token_with_a_scope_sees_its_adapters_and_public_ones(
    reg: registry.Registry, operator: Principal, publish: Publish
) -> None:
    start = reg.events(operator).cursor
    for name in ("acme/sql-a", "acme/other", "rival/sql-a"):
        publish(name)
    publish("rival/open", visibility="public")
    scoped = Principal(tenant="acme", role=Role.READER, token_id="tok_x", scope=Scope.parse(["sql-*"]))
    assert [event.adapter for event in reg.events(scoped, after=start).events] == ["acme/sql-a", "rival/open"]


def test_pages_follow_one_another_without_a_gap(reg: registry.Registry, operator: Principal, publish: Publish) -> None:
    start = reg.events(operator).cursor
    for name in ("acme/a", "rival/b", "acme/c", "acme/d"):
        publish(name)
    seen, cursor = [], start
    for _ in range(5):
        page = reg.events(member("acme"), after=cursor, limit=2)
        seen += [event.adapter for event in page.events]
        cursor = page.cursor
    assert seen == ["acme/a", "acme/c", "acme/d"]
    assert cursor == reg.events(operator).cursor, "an empty page moves the cursor past what one may not read"


@pytest.mark.sqlite_only
def test_kinds_choose(reg: registry.Registry, operator: Principal, publish: Publish) -> None:
    start = reg.events(operator).cursor
    publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    page = reg.events(operator, after=start, kinds=["alias.promoted"])
    assert [event.kind for event in page.events] == ["alias.promoted"]


@pytest.mark.sqlite_only
@pytest.mark.parametrize("arguments", [{"after": -1}, {"limit": 0}, {"limit": 1001}, {"seconds": 46.0}])
def test_bounds(reg: registry.Registry, operator: Principal, arguments: dict[str, float]) -> None:
    with pytest.raises(InvalidValueError):
        reg.events(operator, **({"after": 0} | arguments))  # type: ignore[arg-type]


def test_waiting_ends_with_the_event_or_with_the_time(
    reg: registry.Registry, operator: Principal, publish: Publish
) -> None:
    cursor = reg.events(operator).cursor
    begun = time.monotonic()
    assert reg.events(operator, after=cursor, seconds=0.2).events == ()
    assert time.monotonic() - begun >= 0.2
    timer = threading.Timer(0.2, publish)
    timer.start()
    page = reg.events(operator, after=cursor, seconds=45)
    timer.join()
    assert [event.kind for event in page.events] == ["version.published"]


def test_a_reader_who_moves_on_misses_nothing_while_many_publish(
    reg: registry.Registry, operator: Principal, publish: Publish
) -> None:
    """On PostgreSQL numbers are drawn before the commit: without the order, a cursor could pass a later arrival."""
    cursor = reg.events(operator).cursor
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        nonlocal cursor
        while not done.is_set() or reg.events(operator, after=cursor).events:
            page = reg.events(operator, after=cursor)
            seen.extend(event.id for event in page.events)
            cursor = page.cursor

    folders = [f"t{number % 3}/a{number}" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        reading = threading.Thread(target=read)
        reading.start()
        list(pool.map(publish, folders))
        done.set()
        reading.join()
    assert len(seen) == len(folders)
    assert seen == sorted(seen)


@pytest.mark.sqlite_only
def test_feed_of_a_new_registry_begins_with_its_base(reg: registry.Registry, operator: Principal) -> None:
    assert kinds(reg, operator) == ["base.registered"]
    assert kinds(reg, member("acme")) == ["base.registered"]
    assert Feed(reg._database).newest() == reg.events(operator).cursor


def _record_and_fail(reg: registry.Registry) -> None:
    with reg._database.writing() as session:
        events_module.record(
            session, at=datetime.now(UTC), kind="x", tenant="acme", adapter="acme/a", is_public=True, document={}
        )
        raise RuntimeError


@pytest.mark.sqlite_only
@pytest.mark.parametrize("point", ["publish.before_commit", "publish.after_commit"])
def test_a_publish_that_is_killed_has_its_event_or_neither(
    reg: registry.Registry, place: RegistryPlace, operator: Principal, make_adapter: Callable[..., Path], point: str
) -> None:
    """With its delivery: the three are one transaction."""
    reg.create_tenant("acme")
    webhook = reg.create_webhook("acme", "https://example.org/", principal=operator)
    cursor = reg.events(operator).cursor
    code = (
        "import json, sys, pathlib, registry\n"
        "with registry.open(**json.loads(sys.argv[1])) as reg:\n"
        "    reg.publish(pathlib.Path(sys.argv[2]), 'acme/a', principal=registry.Principal.operator())\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "LORAPLEX_FAILPOINTS": f"{point}=kill",
    }
    command = [sys.executable, "-c", code, json.dumps(place.arguments()), str(make_adapter())]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    happened = [event.kind for event in reg.events(operator, after=cursor).events]
    delivered = [delivery.kind for delivery in reg.webhook_deliveries(webhook.webhook_id, operator)]
    is_published = any(summary.adapter == "acme/a" for summary in reg.list_adapters(operator))
    assert is_published == (point == "publish.after_commit")
    assert happened == delivered == (["version.published"] if is_published else [])
