"""Leases, pins, retention and garbage collection: what is needed stays, whoever publishes meanwhile; the rest goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import registry
from registry import failpoints
from registry.errors import (
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
    StorageError,
)
from registry.gc_report import GcReport
from registry.retention_rule import RetentionRule
from tests.registry.adapter_folders import write_adapter
from tests.registry.backends import RegistryPlace

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()
A = "acme/text2sql"
DAY = timedelta(days=1)


def collect(reg: registry.Registry, days: float = 3, *, dry_run: bool = False) -> GcReport:
    """Collect as it would be done in some days."""
    report = reg.collect_garbage(now=datetime.now(UTC) + days * DAY, dry_run=dry_run)
    reg.check_integrity()
    return report


def arm(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, value)
    failpoints._armed.cache_clear()


@pytest.fixture(autouse=True)
def _disarmed() -> None:
    failpoints._armed.cache_clear()


def numbers(reg: registry.Registry, name: str = A) -> list[int]:
    return [version.number for version in reg.list_versions(name, OPERATOR)]


def weights(version: registry.Version) -> tuple[str, int]:
    file = next(file for file in version.files if file.path.endswith(".safetensors"))
    return file.sha256, file.size


def test_what_was_deleted_goes_and_its_bytes_are_free(
    reg: registry.Registry, publish: Publish, place: RegistryPlace
) -> None:
    first, second = publish(), publish()
    reg.delete_version(f"{A}@1", OPERATOR)
    used = reg.usage("acme").used_bytes
    assert collect(reg, days=0.5).blobs_deleted == 0, "the upload's lease and the grace period hold it"
    sha256, size = weights(first)
    dry = collect(reg, dry_run=True)
    assert (dry.blobs, dry.blob_bytes_deleted, dry.tenant_bytes_freed) == ([sha256], size, {"acme": size})
    assert sha256 in place.blob_names(), "a dry run takes nothing"
    assert reg.usage("acme").used_bytes == used
    report = collect(reg)
    assert (report.blobs, report.blob_bytes_deleted, report.tenant_bytes_freed) == ([sha256], size, {"acme": size})
    assert sha256 not in place.blob_names()
    assert reg.usage("acme").used_bytes == used - size
    assert reg.resolve(A, principal=OPERATOR) == second
    assert collect(reg).blobs_deleted == 0
    assert [entry.action for entry in reg.audit_entries()].count("gc") == 1


@pytest.mark.sqlite_only
def test_a_blob_stays_while_another_tenant_has_it(
    reg: registry.Registry, make_adapter: Callable[..., Path], place: RegistryPlace
) -> None:
    folder = make_adapter(seed=5)
    for tenant in ("acme", "globex"):
        reg.publish(folder, f"{tenant}/a", principal=OPERATOR)
    reg.delete_adapter("acme/a", OPERATOR)
    before = place.blob_names()
    report = collect(reg)
    assert report.blobs_deleted == 0
    assert set(report.tenant_bytes_freed) == {"acme"}
    assert place.blob_names() == before
    assert reg.usage("acme").used_bytes == 0
    reg.delete_adapter("globex/a", OPERATOR)
    assert collect(reg).blobs_deleted == len(before)
    assert place.blob_names() == []


@pytest.mark.sqlite_only
def test_an_upload_that_nobody_finished_goes_when_its_lease_is_over(
    reg: registry.Registry, publish: Publish, place: RegistryPlace, tmp_path: Path
) -> None:
    publish()
    with reg.blobs.receive() as writer:
        writer.write(b"never committed")
        blob = writer.finish()
    reg.quotas.reserve("acme", [(blob.sha256, blob.size)], principal=OPERATOR, lease=5 * DAY)
    reg.quotas.mark_stored("acme", [(blob.sha256, blob.size)])
    assert collect(reg, days=3).blobs_deleted == 0
    assert collect(reg, days=6).blobs == [blob.sha256]
    assert blob.sha256 not in place.blob_names()
    assert not reg.quotas.present("acme", [blob.sha256])


@pytest.mark.sqlite_only
def test_an_orphan_goes_after_the_grace_period(reg: registry.Registry, place: RegistryPlace) -> None:
    with reg.blobs.receive() as writer:
        writer.write(b"a publisher died before it reserved anything")
        blob = writer.finish()
    assert reg.collect_garbage().blobs_deleted == 0
    assert reg.collect_garbage(grace=timedelta(0), now=datetime.now(UTC) + timedelta(seconds=2)).blobs == [blob.sha256]
    assert place.blob_names() == []


def test_retention_keeps_what_is_needed(reg: registry.Registry, publish: Publish) -> None:
    for _ in range(9):
        publish()
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    reg.promote(f"{A}@2", "prod", principal=OPERATOR)
    reg.promote(f"{A}@3", "prod", principal=OPERATOR)
    reg.pin(f"{A}@5", reason="a customer's audit", principal=OPERATOR)
    assert collect(reg).versions_deleted == 0, "without a rule everything stays"
    assert reg.lease([f"{A}@6", f"{A}@99", "acme/absent@1"], holder="server-1", duration=DAY) == [f"{A}@6"]
    rule = RetentionRule(keep_last=2)
    assert reg.set_retention(A, rule, OPERATOR) == rule == reg.retention(A, OPERATOR)
    dry = reg.collect_garbage(dry_run=True)
    assert dry.versions == [f"{A}@1", f"{A}@4", f"{A}@7"]
    assert len(numbers(reg)) == 9
    assert reg.collect_garbage().versions == dry.versions
    assert numbers(reg) == [9, 8, 6, 5, 3, 2], "last two, leased, pinned, aliased, and what the alias pointed at before"
    reg.rollback(A, "prod", principal=OPERATOR)
    assert collect(reg, days=0.1).versions == [], "both sides of a rollback stay"
    assert numbers(reg) == [9, 8, 6, 5, 3, 2]
    assert collect(reg, days=2).versions == [f"{A}@6"], "its lease is over"
    reg.unpin(f"{A}@5", principal=OPERATOR)
    assert collect(reg, days=2).versions == [f"{A}@5"]
    assert publish().number == 10


@pytest.mark.sqlite_only
def test_retention_by_days(reg: registry.Registry, publish: Publish) -> None:
    for _ in range(3):
        publish()
    reg.set_retention(A, RetentionRule(keep_days=30), OPERATOR)
    assert collect(reg, days=29).versions_deleted == 0
    assert collect(reg, days=31).versions == [f"{A}@1", f"{A}@2"], "the newest version stays in any case"
    publish()
    reg.set_retention(A, RetentionRule(keep_days=30, keep_last=2), OPERATOR)
    assert collect(reg, days=60).versions_deleted == 0, "either keeps"
    reg.set_retention(A, None, OPERATOR)
    assert reg.retention(A, OPERATOR) is None


def test_leases(reg: registry.Registry, publish: Publish) -> None:
    publish()
    publish("acme/open", visibility="public")
    reg.create_tenant("globex")
    mine = reg.authenticate(reg.create_token("acme", "reader", scope=["text2sql"]).secret)
    stranger = reg.authenticate(reg.create_token("globex", "admin").secret)
    both = [f"{A}@1", "acme/open@1"]
    assert reg.lease(both, holder="s", duration=DAY, principal=mine) == [f"{A}@1"]
    assert reg.lease(both, holder="x", duration=DAY, principal=stranger) == [], "others' versions are not held up"
    assert [(lease.number, lease.holder) for lease in reg.leases(A, OPERATOR)] == [(1, "s")]
    until = reg.leases(A, OPERATOR)[0].expires_at
    reg.lease([f"{A}@1"], holder="s", duration=DAY)
    assert reg.leases(A, OPERATOR)[0].expires_at > until
    assert reg.release_leases("s", principal=stranger) == 0
    assert reg.release_leases("s", principal=mine) == 1
    assert reg.leases(A, OPERATOR) == []
    for refs, duration in (([f"{A}@1"], timedelta(0)), ([f"{A}@1"], 2 * DAY), ([f"{A}@1"] * 1_001, DAY)):
        with pytest.raises(InvalidValueError):
            reg.lease(refs, holder="s", duration=duration)
    for ref in (A, f"{A}@prod", "sha256:" + "0" * 64):
        with pytest.raises(InvalidNameError):
            reg.lease([ref], holder="s", duration=DAY)
    with pytest.raises(PermissionDeniedError):
        reg.leases("acme/open", stranger)


@pytest.mark.sqlite_only
def test_pins(reg: registry.Registry, publish: Publish) -> None:
    publish()
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    publisher = reg.authenticate(reg.create_token("acme", "publisher").secret)
    with pytest.raises(PermissionDeniedError, match="needs 'promoter'"):
        reg.pin(f"{A}@1", reason="", principal=publisher)
    pin = reg.pin(f"{A}@prod", reason="paper", principal=OPERATOR)
    assert (pin.number, pin.reason, pin.actor) == (1, "paper", "operator")
    assert reg.pins(A, publisher) == [pin]
    assert reg.pin(f"{A}@1", reason="thesis", principal=OPERATOR).reason == "thesis"
    assert reg.unpin(f"{A}@1", principal=OPERATOR).reason == "thesis"
    with pytest.raises(NotFoundError, match="There is no pin"):
        reg.unpin(f"{A}@1", principal=OPERATOR)
    for rule in (RetentionRule(), RetentionRule(keep_last=0), RetentionRule(keep_days=-1)):
        with pytest.raises(InvalidValueError):
            reg.set_retention(A, rule, OPERATOR)
    for call in (
        lambda: reg.set_retention(A, None, publisher),
        lambda: reg.collect_garbage(principal=publisher),
        lambda: reg.fsck(principal=publisher),
    ):
        with pytest.raises(PermissionDeniedError):
            call()


@pytest.mark.sqlite_only
@pytest.mark.parametrize("point", ["gc.before_forget", "gc.before_delete", "gc.after_delete"])
def test_a_collection_that_fails_is_finished_by_the_next(
    reg: registry.Registry, publish: Publish, place: RegistryPlace, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = [publish() for _ in range(4)]
    for number in (1, 2, 3):
        reg.delete_version(f"{A}@{number}", OPERATOR)
    arm(monkeypatch, f"{point}=error:EIO" + ("@2" if point != "gc.before_forget" else ""))
    with pytest.raises(StorageError):
        collect(reg)
    arm(monkeypatch, "")
    reg.check_integrity()
    collect(reg)
    assert place.blob_names() == sorted({file.sha256 for file in versions[3].files})


def test_publishers_and_collectors_at_once(
    reg: registry.Registry, place: RegistryPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files are published, deleted, collected and published again; every version keeps its bytes."""
    folders = [write_adapter(tmp_path / f"seed-{seed}", seed=seed) for seed in range(3)]
    arm(monkeypatch, "gc.before_forget=sleep:0.05,gc.before_delete=sleep:0.05")
    failed: list[str] = []
    done = threading.Event()

    def publish_again(worker: int) -> None:
        try:
            with place.open() as mine:
                for turn in range(4):
                    name = f"acme/a{worker}-{turn}"
                    folder = folders[(worker + turn) % 3]
                    version = mine.publish(folder, name, principal=OPERATOR)
                    mine.pull(version, tmp_path / f"pulled-{worker}-{turn}")
                    if turn % 2:
                        mine.delete_adapter(name, OPERATOR)
        except registry.RegistryError as error:
            failed.append(str(error))

    def collect_again() -> None:
        with place.open() as mine:
            while not done.is_set():
                mine.collect_garbage(grace=timedelta(0), now=datetime.now(UTC) + timedelta(seconds=2))

    collector = threading.Thread(target=collect_again)
    publishers = [threading.Thread(target=publish_again, args=(worker,)) for worker in range(3)]
    for thread in (collector, *publishers):
        thread.start()
    for thread in publishers:
        thread.join()
    done.set()
    collector.join()
    assert failed == []
    reg.check_integrity()
    assert len(reg.list_adapters(OPERATOR)) == 6
