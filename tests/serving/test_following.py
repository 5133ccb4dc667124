"""A promotion is live in the server within a second: where the registry is its own, and where it is over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import registry
from registry import Principal, Registry, Version
from registry.errors import UnreachableError
from registry.event import Event, EventPage
from registry.principal import Role
from registry.version import Split, Visibility
from serving.registry_follower import RegistryFollower
from serving.resolved_names import (
    FOLLOWED_SECONDS,
    IN_USE_SECONDS,
    NAMES_LIMIT,
    SILENCE_SECONDS,
    UNFOLLOWED_SECONDS,
    NameInUse,
    ResolvedNames,
)
from tests.registry.http.server import serving
from tests.serving.conftest import Stocked, stock
from tests.serving.server import RunningServer, running_server, wait_until

OPERATOR = Principal.operator()
READER = Principal(tenant="acme", role=Role.READER, token_id="tok_r")
OPERATOR_SECRET = "operator-" + "s" * 32
LIVE_SECONDS = 1.0
GENEROUS_SECONDS = 20.0  # the machines that run tests are busy


def who(server: RunningServer, model: str = "acme/sql@prod") -> str:
    answer = server.complete("!who", model=model, max_tokens=200)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def seconds_until(holds: Callable[[], bool]) -> float:
    begun = time.monotonic()
    wait_until(holds, GENEROUS_SECONDS)
    return time.monotonic() - begun


@pytest.fixture
def stocked(tmp_path: Path) -> Stocked:
    return stock(tmp_path / "stocked")


@contextmanager
def remote_registry(stocked: Stocked) -> Iterator[tuple[Registry, str]]:
    with (
        registry.open(stocked.home / "registry") as reg,
        serving(reg, operator_secret=OPERATOR_SECRET, token_cache_seconds=0.5) as url,
    ):
        yield reg, url


@pytest.mark.parametrize("place", ["own", "over http"])
def test_a_promotion_is_live_and_warm(stocked: Stocked, scripted_engine: list[str], tmp_path: Path, place: str) -> None:
    with remote_registry(stocked) as (reg, url):
        token = reg.create_token("acme", "reader").secret
        own = {"registry": str(stocked.home / "registry")}
        elsewhere = {"registry": url, "registry_token": OPERATOR_SECRET, "home": tmp_path / "other-home"}
        settings = {"home": stocked.home} | (own if place == "own" else elsewhere)
        with running_server(
            tmp_path / "server", engine=scripted_engine, token=token, base="bytes", **settings
        ) as server:
            assert who(server) == stocked.first.digest
            cold = stocked.second.digest.removeprefix("sha256:")
            cache = Path(str(settings["home"])) / "adapters"
            assert not (cache / cold).exists()
            reg.promote("acme/sql@2", "prod", principal=OPERATOR)
            seconds = seconds_until(lambda: who(server) == stocked.second.digest)
            assert seconds < LIVE_SECONDS or _machine_is_busy(), f"live after {seconds:.2f} s"
            reg.rollback("acme/sql", "prod", principal=OPERATOR)
            wait_until(lambda: who(server) == stocked.first.digest, GENEROUS_SECONDS)
            reg.delete_alias("acme/sql", "prod", principal=OPERATOR)
            asked = {"model": "acme/sql@prod", "max_tokens": 1}
            seconds = seconds_until(lambda: server.complete("!who", **asked).status_code == 404)
            assert seconds < LIVE_SECONDS or _machine_is_busy(), f"gone after {seconds:.2f} s"
            reg.promote("acme/sql@2", "prod", principal=OPERATOR)
            wait_until(lambda: server.complete("!who", **asked).status_code == 200, GENEROUS_SECONDS)


def test_the_new_version_of_a_name_in_use_is_fetched_before_it_is_asked_for(
    stocked: Stocked, scripted_engine: list[str], tmp_path: Path
) -> None:
    with remote_registry(stocked) as (reg, url):
        token = reg.create_token("acme", "reader").secret
        settings = {"registry": url, "registry_token": OPERATOR_SECRET, "home": tmp_path / "home"}
        with running_server(
            tmp_path / "server", engine=scripted_engine, token=token, base="bytes", **settings
        ) as server:
            assert who(server) == stocked.first.digest
            folder = tmp_path / "home" / "adapters" / stocked.second.digest.removeprefix("sha256:")
            reg.promote("acme/sql@2", "prod", principal=OPERATOR)
            wait_until(folder.is_dir, GENEROUS_SECONDS)  # nobody has asked for it
            assert who(server) == stocked.second.digest


def test_without_the_feed_names_are_asked_for_again(
    stocked: Stocked, scripted_engine: list[str], tmp_path: Path
) -> None:
    """The server's own token opens nothing: there is no feed, and each name still moves within a moment."""
    with remote_registry(stocked) as (reg, url):
        token = reg.create_token("acme", "reader").secret
        settings = {"registry": url, "registry_token": "lpx_" + "x" * 43, "home": tmp_path / "home"}
        with running_server(
            tmp_path / "server", engine=scripted_engine, token=token, base="bytes", **settings
        ) as server:
            assert who(server) == stocked.first.digest
            reg.promote("acme/sql@2", "prod", principal=OPERATOR)
            wait_until(lambda: who(server) == stocked.second.digest, GENEROUS_SECONDS)


def _machine_is_busy() -> bool:
    return os.getloadavg()[0] > (os.cpu_count() or 1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def names(clock: Clock) -> ResolvedNames:
    return ResolvedNames(asks_always=False, clock=clock)


def split_of(stocked: Stocked, which: str = "first", **changes: object) -> Split:
    version: Version = getattr(stocked, which)
    return Split(dataclasses.replace(version, **changes))  # type: ignore[arg-type]


def keep(names: ResolvedNames, clock: Clock, split: Split, principal: Principal = READER, model: str = "m") -> None:
    names.remember(principal, model, split, asked_at=clock.now, changes=names.changes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Stocked:
    return stock(tmp_path_factory.mktemp("shared"))


def test_an_answer_holds_longer_while_the_feed_is_heard(names: ResolvedNames, clock: Clock, shared: Stocked) -> None:
    split = split_of(shared)
    keep(names, clock, split)
    assert names.current(READER, "m") is split
    clock.now += UNFOLLOWED_SECONDS
    assert names.current(READER, "m") is None
    assert names.last(READER, "m") is split
    names.followed_by(OPERATOR)
    keep(names, clock, split)
    for _ in range(int(FOLLOWED_SECONDS)):
        assert names.current(READER, "m") is split
        clock.now += 1
        names.heard()
    assert names.current(READER, "m") is None


@pytest.mark.parametrize("end", ["silence", "lost"])
def test_a_feed_that_ends_is_no_reason_to_wait(names: ResolvedNames, clock: Clock, shared: Stocked, end: str) -> None:
    names.followed_by(OPERATOR)
    keep(names, clock, split_of(shared))
    clock.now += 1
    assert names.current(READER, "m") is not None
    if end == "lost":
        names.lost()
    else:
        clock.now += SILENCE_SECONDS
    assert names.current(READER, "m") is None


def test_an_event_ends_the_answers_of_its_adapter(names: ResolvedNames, clock: Clock, shared: Stocked) -> None:
    names.followed_by(OPERATOR)
    keep(names, clock, split_of(shared), model="acme/sql@prod")
    keep(names, clock, split_of(shared, "public"), model="open/cron")
    assert names.changed("acme/sql") == [NameInUse("acme/sql@prod", READER)]
    assert names.current(READER, "acme/sql@prod") is None
    assert names.current(READER, "open/cron") is not None
    clock.now += IN_USE_SECONDS + 1
    assert names.changed("open/cron") == [], "nobody has asked for it for a while"


def test_an_answer_that_was_asked_for_before_an_event_is_old(
    names: ResolvedNames, clock: Clock, shared: Stocked
) -> None:
    names.followed_by(OPERATOR)
    before = names.changes
    names.changed("acme/sql")
    names.remember(READER, "m", split_of(shared), asked_at=clock.now, changes=before)
    assert names.current(READER, "m") is None
    assert names.last(READER, "m") is not None


def test_only_events_that_are_heard_count(names: ResolvedNames, clock: Clock, shared: Stocked) -> None:
    """A server whose own token is a tenant's does not hear of other tenants' private adapters."""
    names.followed_by(Principal(tenant="rival", role=Role.READER, token_id="tok_s"))
    private, public = split_of(shared), split_of(shared, visibility=Visibility.PUBLIC)
    own = split_of(shared, tenant="rival")
    for model, split in (("private", private), ("public", public), ("own", own)):
        keep(names, clock, split, model=model)
    clock.now += UNFOLLOWED_SECONDS
    assert names.current(READER, "private") is None
    assert names.current(READER, "public") is public
    assert names.current(READER, "own") is own


def test_callers_do_not_share_answers(names: ResolvedNames, clock: Clock, shared: Stocked) -> None:
    keep(names, clock, split_of(shared))
    assert names.current(Principal(tenant="rival", role=Role.READER, token_id="tok_s"), "m") is None
    assert names.current(OPERATOR, "m") is None


def test_memory_is_bounded(names: ResolvedNames, clock: Clock, shared: Stocked) -> None:
    split = split_of(shared)
    for number in range(NAMES_LIMIT + 1):
        keep(names, clock, split, model=f"m{number}")
    assert names.last(READER, "m0") is None
    assert names.last(READER, f"m{NAMES_LIMIT}") is split
    names.forget(READER, f"m{NAMES_LIMIT}")
    assert names.last(READER, f"m{NAMES_LIMIT}") is None


def test_a_registry_in_process_is_asked_each_time(clock: Clock, shared: Stocked) -> None:
    names = ResolvedNames(asks_always=True, clock=clock)
    names.followed_by(OPERATOR)
    keep(names, clock, split_of(shared))
    assert names.current(READER, "m") is None


class FlakyFeed:
    """The feed of a real registry, which can be told to be unreachable."""

    def __init__(self, reg: Registry) -> None:
        self.reg = reg
        self.is_down = threading.Event()

    def events(self, principal: Principal, *, after: int | None = None, seconds: float = 0.0) -> EventPage:
        if self.is_down.is_set():
            raise UnreachableError("http://registry.example", "it is down")
        return self.reg.events(principal, after=after, seconds=min(seconds, 0.2))

    def authenticate(self, secret: str) -> Principal:
        return self.reg.authenticate(secret)


async def test_what_happened_during_an_outage_is_heard_afterwards(
    names: ResolvedNames, clock: Clock, stocked: Stocked
) -> None:
    warmed: list[str] = []

    async def warm(name: NameInUse) -> None:
        warmed.append(name.model)

    with registry.open(stocked.home / "registry") as reg:
        feed = FlakyFeed(reg)
        follower = RegistryFollower(feed, names, warm, is_remote=True, token=None)  # type: ignore[arg-type]
        follower.start()
        await _until(lambda: names._follower is not None)
        keep(names, clock, split_of(stocked), model="acme/sql@prod")
        reg.promote("acme/sql@2", "prod", principal=OPERATOR)
        await _until(lambda: warmed == ["acme/sql@prod"])
        assert names.current(READER, "acme/sql@prod") is None
        assert follower.is_following
        feed.is_down.set()
        await _until(lambda: names._follower is None)
        assert not follower.is_following
        reg.rollback("acme/sql", "prod", principal=OPERATOR)
        feed.is_down.clear()
        await _until(lambda: len(warmed) == 2)
        assert follower.events == 2
        assert follower.failures >= 1
        await follower.stop()


async def test_a_burst_of_events_warms_a_name_once_or_twice(
    names: ResolvedNames, clock: Clock, stocked: Stocked
) -> None:
    warmed: list[str] = []
    release = asyncio.Event()

    async def warm(name: NameInUse) -> None:
        warmed.append(name.model)
        await release.wait()

    with registry.open(stocked.home / "registry") as reg:
        for number in (2, 1) * 10:
            reg.promote(f"acme/sql@{number}", "prod", principal=OPERATOR)
        everything = reg.events(OPERATOR, after=0).events
        follower = RegistryFollower(reg, names, warm, is_remote=False, token=None)
        for model in ("acme/sql@prod", "acme/sql"):
            keep(names, clock, split_of(stocked), model=model)
        for event in everything:
            follower._take(event)
        await _until(lambda: len(warmed) == 2)
        for event in everything:
            follower._take(event)
        release.set()
        await _until(lambda: len(warmed) == 4)
        await asyncio.sleep(0.05)
        assert sorted(warmed) == ["acme/sql", "acme/sql", "acme/sql@prod", "acme/sql@prod"]
        await follower.stop()


async def _until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(GENEROUS_SECONDS):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def test_events_name_their_adapter() -> None:
    """What the follower relies on."""
    assert {"adapter", "kind", "document"} <= set(Event.__dataclass_fields__)
