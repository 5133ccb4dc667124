"""Webhooks over a real HTTP server: each event arrives, signed; what does not arrive is tried again, or given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

import registry
from registry import Principal, Role
from registry.courier import Courier, CourierSettings
from registry.errors import (
    AuthenticationError,
    ConflictError,
    ForbiddenAddressError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
)
from registry.models import DeliveryRow
from registry.outbound import OutboundPolicy
from registry.outbox import Outbox
from registry.webhook_signature import new_secret, sign, verify
from registry.webhooks import WEBHOOKS_LIMIT
from tests.registry.backends import RegistryPlace
from tests.registry.web_peer import Received, Reply, WebPeer

Publish = Callable[..., registry.Version]
ADMIN = Principal(tenant="acme", role=Role.ADMIN, token_id="tok_a")
RIVAL = Principal(tenant="rival", role=Role.ADMIN, token_id="tok_r")
LOOPBACK = OutboundPolicy(allows_http=True, networks=("127.0.0.0/8",))
QUICK = CourierSettings(
    attempts_limit=3, first_retry_seconds=0.02, retry_factor=1.0, attempt_seconds=5.0, poll_seconds=0.02
)


@pytest.fixture
def peer() -> Iterator[WebPeer]:
    with WebPeer().running() as running:
        yield running


@pytest.fixture
def hooked(reg: registry.Registry) -> registry.Registry:
    """A registry with tenants, whose operator allows webhooks to this machine."""
    reg.create_tenant("acme")
    reg.create_tenant("rival")
    reg.set_webhook_policy(LOOPBACK, Principal.operator())
    return reg


@pytest.fixture
def courier(hooked: registry.Registry) -> Iterator[Courier]:
    running = hooked.courier(QUICK)
    running.start()
    yield running
    running.stop()


def wait_until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def is_settled(reg: registry.Registry, webhook_id: str) -> bool:
    return all(delivery.due_at is None for delivery in reg.webhook_deliveries(webhook_id, ADMIN))


def test_an_event_arrives_signed(
    hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish, operator: Principal
) -> None:
    webhook = hooked.create_webhook("acme", f"{peer.url}/hook?x=1", principal=ADMIN)
    assert webhook.secret not in repr(webhook)
    version = publish()
    hooked.promote("acme/text2sql@1", "prod", principal=operator)
    wait_until(lambda: len(peer.received) == 2)
    first = peer.received[0]
    assert (first.method, first.path, first.headers["content-type"]) == ("POST", "/hook?x=1", "application/json")
    assert verify(webhook.secret, first.headers, first.body, now=time.time()).startswith("msg_")
    document = json.loads(first.body)
    assert document["type"] == "version.published"
    assert datetime.fromisoformat(document["timestamp"]).tzinfo is not None
    assert document["data"]["adapter"] == "acme/text2sql"
    assert document["data"]["digest"] == version.digest
    wait_until(lambda: is_settled(hooked, webhook.webhook_id))
    shown = hooked.webhook_deliveries(webhook.webhook_id, ADMIN)
    assert [(each.kind, each.attempts, each.status) for each in shown] == [
        ("alias.promoted", 1, 200),
        ("version.published", 1, 200),
    ]
    assert hooked.list_webhooks("acme", ADMIN)[0].disabled_at is None


@pytest.mark.sqlite_only
def test_only_own_events_of_the_wanted_kinds(
    hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish, operator: Principal
) -> None:
    webhook = hooked.create_webhook("acme", peer.url, kinds=["alias.promoted"], principal=ADMIN)
    publish("rival/open", visibility="public")
    hooked.promote("rival/open@1", "prod", principal=operator)
    publish("acme/mine")
    hooked.promote("acme/mine@1", "prod", principal=operator)
    wait_until(lambda: peer.received)
    wait_until(lambda: is_settled(hooked, webhook.webhook_id))
    assert [json.loads(request.body)["data"]["adapter"] for request in peer.received] == ["acme/mine"]


def test_a_failure_is_tried_again_with_the_same_id(
    hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish
) -> None:
    answers = iter([500, 302])
    peer.answer = lambda request: Reply(next(answers, 204))
    webhook = hooked.create_webhook("acme", peer.url, principal=ADMIN)
    publish()
    wait_until(lambda: len(peer.received) == 3)
    wait_until(lambda: is_settled(hooked, webhook.webhook_id))
    assert len({request.headers["webhook-id"] for request in peer.received}) == 1
    (delivery,) = hooked.webhook_deliveries(webhook.webhook_id, ADMIN)
    assert (delivery.attempts, delivery.status, delivery.failure) == (3, 204, None)
    assert delivery.delivered_at is not None


def test_given_up_disabled_and_replayed(
    hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish
) -> None:
    peer.answer = lambda request: Reply(503)
    webhook = hooked.create_webhook("acme", peer.url, principal=ADMIN)
    cursor = hooked.events(ADMIN).cursor
    publish()
    wait_until(lambda: hooked.list_webhooks("acme", ADMIN)[0].disabled_at is not None)
    (delivery,) = hooked.webhook_deliveries(webhook.webhook_id, ADMIN)
    assert (delivery.attempts, delivery.status, delivery.failure) == (3, 503, "it answered 503")
    assert delivery.due_at is None
    publish()  # nobody is told: the webhook is disabled
    assert len(hooked.webhook_deliveries(webhook.webhook_id, ADMIN)) == 1
    with pytest.raises(ConflictError):
        hooked.test_webhook(webhook.webhook_id, ADMIN)

    peer.answer = lambda request: Reply(200)
    peer.received.clear()
    assert hooked.replay_webhook(webhook.webhook_id, principal=ADMIN) == 1
    wait_until(lambda: is_settled(hooked, webhook.webhook_id))
    assert hooked.list_webhooks("acme", ADMIN)[0].disabled_at is None
    assert hooked.replay_webhook(webhook.webhook_id, principal=ADMIN, after=cursor) == 2
    wait_until(lambda: len(peer.received) == 3)
    wait_until(lambda: is_settled(hooked, webhook.webhook_id))
    assert [json.loads(request.body)["data"]["version"] for request in peer.received] == [1, 1, 2]


@pytest.mark.sqlite_only
def test_gone_disables_at_once(hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish) -> None:
    peer.answer = lambda request: Reply(410)
    hooked.create_webhook("acme", peer.url, principal=ADMIN)
    publish()
    wait_until(lambda: hooked.list_webhooks("acme", ADMIN)[0].disabled_at is not None)
    assert len(peer.received) == 1


@pytest.mark.sqlite_only
def test_a_slow_webhook_delays_only_itself(
    hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish
) -> None:
    release = threading.Event()

    def answer(request: Received) -> Reply:
        if request.path == "/slow":
            release.wait(20)
        return Reply()

    peer.answer = answer
    hooked.create_webhook("acme", f"{peer.url}/slow", principal=ADMIN)
    for number in range(3):
        publish(f"acme/a{number}")
    wait_until(lambda: peer.received)
    hooked.create_webhook("rival", f"{peer.url}/quick", principal=RIVAL)
    publish("rival/b")
    wait_until(lambda: [request.path for request in peer.received].count("/quick") == 1, 10)
    assert [request.path for request in peer.received].count("/slow") == 1
    release.set()


@pytest.mark.sqlite_only
def test_a_test_goes_to_its_webhook_alone(hooked: registry.Registry, courier: Courier, peer: WebPeer) -> None:
    first = hooked.create_webhook("acme", f"{peer.url}/1", principal=ADMIN)
    hooked.create_webhook("acme", f"{peer.url}/2", principal=ADMIN)
    hooked.test_webhook(first.webhook_id, ADMIN)
    wait_until(lambda: peer.received)
    wait_until(lambda: is_settled(hooked, first.webhook_id))
    assert [request.path for request in peer.received] == ["/1"]
    assert json.loads(peer.received[0].body)["type"] == "webhook.test"


@pytest.mark.sqlite_only
def test_an_address_that_became_private_gets_nothing(
    hooked: registry.Registry, courier: Courier, peer: WebPeer, publish: Publish
) -> None:
    webhook = hooked.create_webhook("acme", peer.url, principal=ADMIN)
    hooked.set_webhook_policy(OutboundPolicy(allows_http=True), Principal.operator())
    publish()
    wait_until(lambda: hooked.list_webhooks("acme", ADMIN)[0].disabled_at is not None)
    (delivery,) = hooked.webhook_deliveries(webhook.webhook_id, ADMIN)
    assert "public internet" in (delivery.failure or "")
    assert peer.received == []


@pytest.mark.sqlite_only
def test_what_cannot_be_made(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    for url in ("http://example.org/", "https://127.0.0.1/", "https://10.1.2.3/", "https://localhost/"):
        with pytest.raises(ForbiddenAddressError):
            reg.create_webhook("acme", url, principal=ADMIN)
    for kinds in ([], ["no.such"]):
        with pytest.raises(InvalidValueError):
            reg.create_webhook("acme", "https://example.org/", kinds=kinds, principal=ADMIN)
    for number in range(WEBHOOKS_LIMIT):
        reg.create_webhook("acme", f"https://example.org/{number}", principal=ADMIN)
    with pytest.raises(ConflictError):
        reg.create_webhook("acme", "https://example.org/", principal=ADMIN)
    with pytest.raises(PermissionDeniedError):
        reg.set_webhook_policy(LOOPBACK, ADMIN)


@pytest.mark.sqlite_only
def test_admins_of_the_tenant_only(hooked: registry.Registry) -> None:
    webhook = hooked.create_webhook("acme", "https://example.org/", principal=ADMIN)
    promoter = Principal(tenant="acme", role=Role.PROMOTER, token_id="tok_p")
    for denied in (promoter, RIVAL):
        with pytest.raises(PermissionDeniedError):
            hooked.create_webhook("acme", "https://example.org/", principal=denied)
        with pytest.raises(PermissionDeniedError):
            hooked.list_webhooks("acme", denied)
    with pytest.raises(NotFoundError) as foreign:
        hooked.delete_webhook(webhook.webhook_id, RIVAL)
    with pytest.raises(NotFoundError) as missing:
        hooked.delete_webhook("whk_0000000000000000", RIVAL)
    assert str(foreign.value).replace(webhook.webhook_id, "ID") == str(missing.value).replace(
        "whk_0000000000000000", "ID"
    )
    with pytest.raises(PermissionDeniedError):
        hooked.replay_webhook(webhook.webhook_id, principal=promoter)
    hooked.delete_webhook(webhook.webhook_id, ADMIN)
    assert hooked.list_webhooks("acme", ADMIN) == []


def test_a_deleted_webhook_takes_its_deliveries_along(hooked: registry.Registry, publish: Publish) -> None:
    webhook = hooked.create_webhook("acme", "https://example.org/", principal=ADMIN)
    publish()
    (claim,) = Outbox(hooked._database).claim(datetime.now(UTC), seconds=60, limit=9)
    hooked.delete_webhook(webhook.webhook_id, ADMIN)
    Outbox(hooked._database).arrived(claim, datetime.now(UTC), 200)
    Outbox(hooked._database).give_up(claim, datetime.now(UTC), status=None, failure="x", is_gone=True)
    with hooked._database.reading() as session:
        assert session.scalars(select(DeliveryRow)).all() == []


def test_a_claim_is_one_workers_until_it_runs_out(hooked: registry.Registry, publish: Publish) -> None:
    hooked.create_webhook("acme", "https://example.org/1", principal=ADMIN)
    publish()
    outbox, now = Outbox(hooked._database), datetime.now(UTC) + timedelta(seconds=1)
    (first,) = outbox.claim(now, seconds=60, limit=9)
    assert first.secret not in repr(first)
    assert outbox.claim(now, seconds=60, limit=9) == []
    later = now + timedelta(seconds=61)
    (second,) = outbox.claim(later, seconds=60, limit=9)
    assert (second.delivery_id, second.attempts) == (first.delivery_id, 2)
    outbox.failed(first, status=None, failure="late", next_at=None)  # the first worker comes back: too late
    with hooked._database.reading() as session:
        assert session.scalars(select(DeliveryRow)).one().failure is None
    outbox.arrived(second, later, 200)
    assert outbox.next_due() is None


def test_a_courier_that_is_killed_loses_nothing(
    hooked: registry.Registry, place: RegistryPlace, peer: WebPeer, publish: Publish
) -> None:
    """The process dies in the middle of an attempt; another one delivers when the claim has run out."""
    hanging = threading.Event()
    peer.answer = lambda request: Reply(200 if hanging.wait(20) else 500)
    webhook = hooked.create_webhook("acme", peer.url, principal=ADMIN)
    publish()
    code = (
        "import json, sys, time, registry\nregistry.open(**json.loads(sys.argv[1])).courier().start()\ntime.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", code, json.dumps(place.arguments())], env=environment)
    wait_until(lambda: peer.received, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hanging.set()
    (delivery,) = hooked.webhook_deliveries(webhook.webhook_id, ADMIN)
    assert delivery.due_at is not None
    assert delivery.delivered_at is None
    with hooked._database.writing() as session:  # the clock: the claim has run out
        session.scalars(select(DeliveryRow)).one().due_at = datetime.now(UTC)
    second = hooked.courier(QUICK)
    second.start()
    wait_until(lambda: is_settled(hooked, webhook.webhook_id))
    second.stop()
    assert [request.headers["webhook-id"] for request in peer.received] == [f"msg_{delivery.delivery_id}"] * 2


def test_couriers_of_several_processes_deliver_each_event_once(
    hooked: registry.Registry, place: RegistryPlace, peer: WebPeer, publish: Publish
) -> None:
    webhook = hooked.create_webhook("acme", peer.url, principal=ADMIN)
    for number in range(6):
        publish(f"acme/a{number}")
    with place.open() as second:
        couriers = [hooked.courier(QUICK), second.courier(QUICK)]
        for courier in couriers:
            courier.start()
        try:
            wait_until(lambda: is_settled(hooked, webhook.webhook_id), 60)
        finally:
            for courier in couriers:
                courier.stop()
    ids = [request.headers["webhook-id"] for request in peer.received]
    assert len(ids) == len(set(ids)) == 6


def test_pauses_grow_up_to_their_limit_with_jitter() -> None:
    settings = CourierSettings()
    for attempts in range(1, settings.attempts_limit + 1):
        plain = min(5.0 * 3.0 ** (attempts - 1), 6 * 3600.0)
        pauses = [settings.retry_seconds(attempts) for _ in range(50)]
        assert plain * 0.8 <= min(pauses) < max(pauses) <= plain * 1.2
    total = sum(min(5.0 * 3.0**number, 6 * 3600.0) for number in range(settings.attempts_limit - 1))
    assert 0.5 < total / 86_400 < 2


def test_signatures_of_the_specification() -> None:
    """The example of the Standard Webhooks specification's reference libraries."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    headers = sign(secret, message_id="msg_p5jXN8AQM9LWM0D4loKWxJek", timestamp=1614265330, body=body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert verify(secret, headers, body, now=1614265330 + 299) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    both = headers | {"webhook-signature": "v1,AAAA " + headers["webhook-signature"]}
    assert verify(secret, both, body, now=1614265330)


@pytest.mark.parametrize("damage", ["body", "time", "id", "old", "secret", "none", "word"])
def test_signatures_that_are_wrong(damage: str) -> None:
    secret, body, now = new_secret(), b"{}", 1_700_000_000
    headers = sign(secret, message_id="msg_1", timestamp=now, body=body)
    if damage == "body":
        body = b"{ }"
    elif damage == "time":
        headers["webhook-timestamp"] = str(now + 1)
    elif damage == "id":
        headers["webhook-id"] = "msg_2"
    elif damage == "old":
        now += 301
    elif damage == "secret":
        secret = new_secret()
    elif damage == "none":
        del headers["webhook-signature"]
    else:
        headers["webhook-timestamp"] = "now"
    with pytest.raises(AuthenticationError):
        verify(secret, headers, body, now=now)
