"""The feed over HTTP: long polls, server-sent events that resume, and webhooks and mirrors through both faces."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import registry
from registry import Principal, Role
from registry.errors import BusyError, NotFoundError, PermissionDeniedError
from registry.events import Feed
from registry.http import tide
from registry.http.controllers import events as controller
from registry.outbound import OutboundPolicy
from tests.registry.http.server import serving
from tests.registry.test_mirror import FakeHub
from tests.registry.web_peer import WebPeer

MakeAdapter = Callable[..., Path]
OPERATOR_SECRET = "operator-" + "s" * 32
OPERATOR = Principal.operator()


@pytest.fixture
def url(reg_sqlite: registry.Registry) -> Iterator[str]:
    with serving(reg_sqlite, operator_secret=OPERATOR_SECRET, token_cache_seconds=0.0) as url:
        yield url


@pytest.fixture
def remote(url: str) -> Iterator[registry.Registry]:
    with registry.open(url, token=OPERATOR_SECRET) as opened:
        yield opened


@pytest.fixture
def publish(reg_sqlite: registry.Registry, make_adapter: MakeAdapter) -> Callable[..., registry.Version]:
    seeds = iter(range(1, 1000))

    def publish_next(name: str = "acme/a", **options: Any) -> registry.Version:
        return reg_sqlite.publish(make_adapter(seed=next(seeds)), name, principal=OPERATOR, **options)

    return publish_next


Publish = Callable[..., registry.Version]


@contextmanager
def stream(url: str, token: str = OPERATOR_SECRET, **headers: str) -> Iterator[Iterator[dict[str, str]]]:
    """The blocks of an event stream, each as its fields; comments are under ''."""
    all_headers = {"authorization": f"Bearer {token}"} | {name.replace("_", "-"): headers[name] for name in headers}
    with (
        httpx.Client(timeout=30, trust_env=False) as client,
        client.stream("GET", f"{url}/registry/v1/events/stream", headers=all_headers) as response,
    ):
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield _blocks(response.iter_lines())


def _blocks(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    block: dict[str, str] = {}
    for line in lines:
        if not line and block:
            yield block
            block = {}
        elif line:
            name, _, value = line.partition(":")
            block[name] = value.removeprefix(" ")


def next_event(blocks: Iterator[dict[str, str]]) -> tuple[str, dict[str, Any]]:
    block = next(block for block in blocks if "data" in block)
    document = json.loads(block["data"])
    assert document["kind"] == block["event"]
    assert str(document["id"]) == block["id"]
    return block["id"], document


def test_a_long_poll_ends_with_the_event(remote: registry.Registry, publish: Publish) -> None:
    cursor = remote.events(OPERATOR).cursor
    timer = threading.Timer(0.3, publish)
    timer.start()
    begun = time.monotonic()
    page = remote.events(OPERATOR, after=cursor, seconds=40)
    assert time.monotonic() - begun < 30
    timer.join()
    assert [event.kind for event in page.events] == ["version.published"]
    begun = time.monotonic()
    assert remote.events(OPERATOR, after=page.cursor, seconds=0.3).events == ()
    assert time.monotonic() - begun >= 0.3


def test_a_long_poll_does_not_end_with_what_one_may_not_see(
    reg_sqlite: registry.Registry, remote: registry.Registry, publish: Publish
) -> None:
    reg_sqlite.create_tenant("rival")
    secret = reg_sqlite.create_token("rival", "reader").secret
    rival = remote.authenticate(secret)
    cursor = remote.events(rival).cursor
    publishing = threading.Thread(target=publish)
    publishing.start()
    begun = cursor
    deadline = time.monotonic() + 60
    while cursor == begun:
        assert time.monotonic() < deadline
        page = remote.events(rival, after=cursor, seconds=0.3)
        assert page.events == ()
        cursor = page.cursor
    publishing.join()


def test_many_wait_over_one_question_at_a_time(
    reg_sqlite: registry.Registry, url: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    newest = Feed.newest
    monkeypatch.setattr(Feed, "newest", lambda feed: (asked.append(time.monotonic()), newest(feed))[1])
    cursor = reg_sqlite.events(OPERATOR).cursor
    found: list[int] = []

    def wait() -> None:
        with registry.open(url, token=OPERATOR_SECRET) as reg:
            found.append(len(reg.events(OPERATOR, after=cursor, seconds=30).events))

    threads = [threading.Thread(target=wait) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    questions = len(asked)
    publish()
    for thread in threads:
        thread.join()
    assert found == [1] * 12
    assert questions <= 1.5 / tide.POLL_SECONDS
    time.sleep(0.3)
    quiet = len(asked)
    time.sleep(0.5)
    assert len(asked) == quiet, "nobody waits, nothing is asked"


def test_a_stream_tells_and_resumes(reg_sqlite: registry.Registry, url: str, publish: Publish) -> None:
    with stream(url) as blocks:
        assert next(blocks)["retry"] == "1000"
        next(blocks)
        publish()
        last, document = next_event(blocks)
        assert document["adapter"] == "acme/a"
    publish()
    reg_sqlite.promote("acme/a@2", "prod", principal=OPERATOR)
    with stream(url, last_event_id=last) as blocks:
        assert [next_event(blocks)[1]["kind"] for _ in range(2)] == ["version.published", "alias.promoted"]


def test_a_stream_shows_what_one_may_read(
    reg_sqlite: registry.Registry, url: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "KEEP_ALIVE_SECONDS", 0.2)
    reg_sqlite.create_tenant("rival")
    token = reg_sqlite.create_token("rival", "reader")
    with stream(url, token.secret) as blocks:
        next(blocks)
        start = int(next(blocks)["id"])
        publish("acme/secret")
        moved = next(int(block["id"]) for block in blocks if int(block["id"]) > start)
        assert moved == reg_sqlite.newest_event(), "the cursor moves past it without a word"
        publish("acme/open", visibility="public")
        assert next_event(blocks)[1]["adapter"] == "acme/open"
        reg_sqlite.revoke_token(token.token_id)
        publish("acme/open")
        list(blocks)  # it ends


def test_a_busy_stream_ends_with_its_token(
    reg_sqlite: registry.Registry, url: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always something to tell, so there are no keep-alives."""
    monkeypatch.setattr(controller, "KEEP_ALIVE_SECONDS", 0.5)
    publish(visibility="public")
    publish(visibility="public")
    reg_sqlite.create_tenant("rival")
    token = reg_sqlite.create_token("rival", "reader")
    done = threading.Event()

    def keep_busy() -> None:
        number = 0
        while not done.wait(0.05):
            number += 1
            reg_sqlite.promote(f"acme/a@{1 + number % 2}", "prod", principal=OPERATOR)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        with stream(url, token.secret) as blocks:
            next_event(blocks)
            reg_sqlite.revoke_token(token.token_id)
            list(blocks)  # it ends
    finally:
        done.set()
        busy.join()


def test_a_stream_ends_after_a_while(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "STREAM_SECONDS", 0.3)
    monkeypatch.setattr(controller, "KEEP_ALIVE_SECONDS", 0.1)
    with stream(url) as blocks:
        assert 2 <= len(list(blocks)) < 20


def test_places_are_bounded_and_given_back(
    url: str, remote: registry.Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tide, "CLIENTS_OF_TENANT_LIMIT", 1)
    monkeypatch.setattr(controller, "KEEP_ALIVE_SECONDS", 0.1)
    with stream(url) as blocks:
        next(blocks)
        with pytest.raises(BusyError):
            remote.events(OPERATOR, after=0, seconds=5)
        answer = httpx.get(
            f"{url}/registry/v1/events/stream", headers={"authorization": f"Bearer {OPERATOR_SECRET}"}, trust_env=False
        )
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert remote.events(OPERATOR, after=0).events, "reading without waiting needs no place"
    deadline = time.monotonic() + 20
    while True:
        try:
            remote.events(OPERATOR, after=0, seconds=5)
            break
        except BusyError:
            assert time.monotonic() < deadline, "the place was not given back"
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("events?after=-1", 400),
        ("events?limit=0", 400),
        ("events?limit=100000", 400),
        ("events?wait_seconds=46", 400),
        ("events?other=1", 400),
        ("events", 401),
        ("events/stream", 401),
    ],
)
def test_what_is_refused(url: str, path: str, status: int) -> None:
    headers = {} if status == 401 else {"authorization": f"Bearer {OPERATOR_SECRET}"}
    assert httpx.get(f"{url}/registry/v1/{path}", headers=headers, trust_env=False).status_code == status


def test_a_stream_cannot_begin_at_nonsense(url: str) -> None:
    headers = {"authorization": f"Bearer {OPERATOR_SECRET}", "last-event-id": "x"}
    assert httpx.get(f"{url}/registry/v1/events/stream", headers=headers, trust_env=False).status_code == 400


def test_webhooks_over_http(reg_sqlite: registry.Registry, remote: registry.Registry, publish: Publish) -> None:
    """The courier that delivers is the served application's own."""
    reg_sqlite.create_tenant("acme")
    policy = OutboundPolicy(allows_http=True, networks=("127.0.0.0/8",))
    assert remote.set_webhook_policy(policy, OPERATOR) == policy
    assert remote.webhook_policy() == policy
    admin = remote.authenticate(reg_sqlite.create_token("acme", Role.ADMIN).secret)
    with pytest.raises(PermissionDeniedError):
        remote.webhook_policy(principal=admin)
    with pytest.raises(PermissionDeniedError):
        remote.set_webhook_policy(policy, admin)
    with WebPeer().running() as peer:
        made = remote.create_webhook("acme", peer.url, kinds=["version.published"], principal=admin)
        assert made.secret.startswith("whsec_")
        assert remote.list_webhooks("acme", admin) == reg_sqlite.list_webhooks("acme", OPERATOR)
        publish()
        remote.test_webhook(made.webhook_id, admin)
        deadline = time.monotonic() + 20
        while any(each.delivered_at is None for each in remote.webhook_deliveries(made.webhook_id, admin)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert {json.loads(request.body)["type"] for request in peer.received} == {"version.published", "webhook.test"}
        assert remote.replay_webhook(made.webhook_id, principal=admin) == 0
        assert remote.replay_webhook(made.webhook_id, principal=admin, after=0) == 1
    assert remote.delete_webhook(made.webhook_id, admin).webhook_id == made.webhook_id
    with pytest.raises(NotFoundError):
        remote.delete_webhook(made.webhook_id, admin)


def test_mirrors_over_http(remote: registry.Registry, make_adapter: MakeAdapter) -> None:
    with WebPeer().running() as peer:
        hub = FakeHub(peer)
        hub.push("org/x", make_adapter(seed=1))
        done = remote.add_mirror("acme/x", f"{peer.url}/org/x", principal=OPERATOR)
        assert done.publication is not None
        assert remote.list_mirrors(OPERATOR) == [done.mirror]
        assert remote.sync_mirror("acme/x", principal=OPERATOR).publication is None
        hub.push("org/x", make_adapter(seed=2))
        second = remote.sync_mirror("acme/x", principal=OPERATOR)
        assert second.publication is not None
        assert second.publication.version == remote.resolve("acme/x@2", principal=OPERATOR)
        assert remote.remove_mirror("acme/x", OPERATOR) == second.mirror
        assert remote.list_mirrors(OPERATOR) == []
