"""S3 that fails: bounded retries, a clear error, and no part of a blob or wrong byte that anybody can see."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import obstore
import pytest

import registry
from registry.blobs.object_blobs import ObjectBlobs
from registry.blobs.object_client import Patience
from registry.errors import IntegrityError, StorageError
from registry.file_entry import Blob
from tests.registry.backends import BUCKET, S3Server, ServerPlace
from tests.registry.fault_proxy import Fault, FaultProxy, Request, fault_proxy

# Every HANG takes request_seconds; a sound answer must come within it on a machine that others keep busy.
HURRIED = Patience(connect_seconds=5, request_seconds=2, retries=2, retry_seconds=3, attempts=2, pause_seconds=0.01)
PATIENT = replace(HURRIED, request_seconds=10, retry_seconds=20)
BOUND_SECONDS = 40
SMALL = 20_000
LARGE = (8 << 20) + 1000
PASSING = [fault for fault in Fault if fault is not Fault.NONE]


@dataclass
class Faulty:
    """A store behind a proxy, and the bucket as it really is."""

    proxy: FaultProxy
    s3: S3Server
    prefix: str
    scratch: Path

    def open(self, patience: Patience = HURRIED) -> ObjectBlobs:
        address = f"s3://{BUCKET}/{self.prefix}?endpoint={self.proxy.endpoint}"
        return ObjectBlobs(address, self.scratch, patience)

    def visible(self) -> dict[str, bytes]:
        """Every object that can be seen below the digests."""
        bucket = self.s3.bucket()
        found = obstore.list(bucket, prefix=f"{self.prefix}/blobs/").collect()
        return {meta["path"].rpartition("/")[2]: bytes(obstore.get(bucket, meta["path"]).bytes()) for meta in found}


@pytest.fixture
def faulty(s3: S3Server, tmp_path: Path) -> Iterator[Faulty]:
    with fault_proxy(s3.endpoint) as proxy:
        yield Faulty(proxy, s3, secrets.token_hex(8), tmp_path / "scratch")


def receive(store: ObjectBlobs, raw: bytes) -> Blob:
    with store.receive() as writer:
        writer.write(raw)
        return writer.finish()


def nth(number: int, fault: Fault) -> Callable[[Request], Fault]:
    """A plan for one request of those that come from now on."""
    count = iter(range(1_000_000))
    return lambda request: fault if next(count) == number else Fault.NONE


@pytest.mark.parametrize("fault", PASSING)
def test_one_fault_at_any_request_is_survived(faulty: Faulty, fault: Fault) -> None:
    """Writing a small blob anew takes head, put and get; each of these fails once."""
    store = faulty.open()
    for number in range(3):
        raw = os.urandom(SMALL)
        faulty.proxy.plan = nth(number, fault)
        blob = receive(store, raw)
        faulty.proxy.plan = lambda request: Fault.NONE
        assert blob == Blob(hashlib.sha256(raw).hexdigest(), SMALL)
        assert faulty.visible()[blob.sha256] == raw
    assert [seen for _, seen in faulty.proxy.seen].count(fault) == 3


def test_one_fault_at_each_request_of_a_large_blob_is_survived(faulty: Faulty) -> None:
    """Each request of its upload in parts fails once, in one of the ways, one after the other."""
    store, raw = faulty.open(PATIENT), os.urandom(LARGE)
    begun = len(faulty.proxy.seen)
    blob = receive(store, raw)
    requests = len(faulty.proxy.seen) - begun
    assert requests >= 8, "head, begin, two parts, complete, two ranges, copy, delete"
    faults = [Fault.ERROR_500, Fault.LOSE_ANSWER, Fault.CUT_ANSWER, Fault.FLIP_REQUEST]
    for number in range(requests):
        assert store.delete(blob.sha256)
        faulty.proxy.plan = nth(number, faults[number % len(faults)])
        assert receive(store, raw) == blob
        faulty.proxy.plan = lambda request: Fault.NONE
        assert faulty.visible() == {blob.sha256: raw}


def test_one_fault_while_reading_is_survived_or_an_error(faulty: Faulty) -> None:
    raw = os.urandom(LARGE)
    blob = receive(faulty.open(PATIENT), raw)
    store = faulty.open(PATIENT)
    store.verify(blob)
    for fault in (Fault.ERROR_500, Fault.SLOW_DOWN, Fault.CUT_ANSWER, Fault.LOSE_ANSWER):
        for number in range(3):
            faulty.proxy.plan = nth(number, fault)
            with store.open(blob) as reader:
                assert b"".join(reader) == raw
    for number in (1, 2):  # a byte that was changed on the way is found wherever bytes are hashed
        faulty.proxy.plan = nth(number, Fault.FLIP)
        with pytest.raises(IntegrityError):
            store.verify(blob)
        store.verify(blob)


@pytest.mark.parametrize("fault", PASSING)
def test_a_store_that_keeps_failing_is_a_clear_error_in_bounded_time(faulty: Faulty, fault: Fault) -> None:
    store, raw = faulty.open(), os.urandom(SMALL)
    sound = receive(store, b"sound")
    faulty.proxy.plan = lambda request: fault
    begun, requests = time.monotonic(), len(faulty.proxy.seen)
    with pytest.raises(StorageError, match="cannot be used"):
        receive(store, raw)
    assert time.monotonic() - begun < BOUND_SECONDS
    assert len(faulty.proxy.seen) - requests < 60, "retries are bounded"
    seen = faulty.visible()
    assert seen.pop(sound.sha256) == b"sound"
    sha256 = hashlib.sha256(raw).hexdigest()
    assert set(seen) <= {sha256}
    if fault is not Fault.FLIP_REQUEST:  # whole or not there; what nobody acknowledged is nobody's
        assert set(seen.values()) <= {raw}
    assert not list(store.scratch.iterdir())
    faulty.proxy.plan = lambda request: Fault.NONE
    assert receive(store, raw).sha256 == sha256
    assert faulty.visible()[sha256] == raw


def test_a_store_that_cannot_be_reached_when_opened(faulty: Faulty) -> None:
    faulty.proxy.plan = lambda request: Fault.ERROR_500
    with pytest.raises(StorageError, match="cannot be used"):
        faulty.open()


def test_a_publish_that_fails_changes_nothing_and_works_again(
    faulty: Faulty, postgres_place: ServerPlace, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    operator = registry.Principal.operator()
    address = f"s3://{BUCKET}/{faulty.prefix}?endpoint={faulty.proxy.endpoint}"
    with registry.open(postgres_place.where, blobs=address, scratch=tmp_path / "scratch") as reg:
        first = reg.publish(make_adapter(seed=1), "acme/a", principal=operator)
        faulty.proxy.plan = lambda request: Fault.NONE if request.method == "HEAD" else Fault.CUT_REQUEST
        folder = make_adapter(seed=2)
        with pytest.raises(StorageError):
            reg.publish(folder, "acme/a", principal=operator)
        assert reg.list_versions("acme/a", operator) == [first]
        used = reg.usage("acme").used_bytes
        faulty.proxy.plan = lambda request: Fault.NONE
        assert reg.publish(folder, "acme/a", principal=operator).number == 2
        assert reg.usage("acme").used_bytes > used, "what failed was given back"
        reg.check_integrity()
