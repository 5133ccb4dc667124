"""Quotas: what is reserved, what is counted, and that neither can be passed, however many ask at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import registry
from registry.catalog import Catalog
from registry.errors import ConflictError, NotFoundError, PermissionDeniedError, QuotaExceededError, StorageError
from registry.version import VersionDraft

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def acme(reg: registry.Registry) -> registry.Registry:
    reg.create_tenant("acme")
    return reg


def used(reg: registry.Registry, tenant: str = "acme") -> tuple[int, int]:
    reg.quotas.check_integrity()
    usage = reg.usage(tenant)
    return usage.used_bytes, usage.used_versions


def limit(reg: registry.Registry, quota_bytes: int | None = None, quota_versions: int | None = None) -> None:
    reg.set_quota("acme", quota_bytes=quota_bytes, quota_versions=quota_versions)


@pytest.mark.sqlite_only
def test_a_blob_counts_once_and_is_present_when_it_is_stored(acme: registry.Registry) -> None:
    quotas = acme.quotas
    reservation = quotas.reserve("acme", [(A, 10), (B, 5)], principal=OPERATOR)
    assert reservation.new == {A, B}
    assert used(acme) == (15, 0)
    assert quotas.reserve("acme", [(A, 10)], principal=OPERATOR).new == frozenset()
    assert not quotas.present("acme", [A])
    quotas.mark_stored("acme", [(A, 10)])
    assert quotas.present("acme", [A])
    assert quotas.present("acme", [A, B, C]) == {A}
    assert quotas.extend_lease("acme", [A, B, C]) == {A, B}
    assert used(acme) == (15, 0)


@pytest.mark.sqlite_only
def test_presence_is_the_tenants_own(acme: registry.Registry) -> None:
    acme.create_tenant("globex")
    acme.quotas.reserve("acme", [(A, 10)], principal=OPERATOR)
    acme.quotas.mark_stored("acme", [(A, 10)])
    assert not acme.quotas.present("globex", [A])
    assert not acme.quotas.present("nobody", [A])
    acme.quotas.reserve("globex", [(A, 10)], principal=OPERATOR)
    assert used(acme, "globex") == (10, 0), "its own bytes, though the blob is there"


def test_more_than_the_quota_is_refused_and_changes_nothing(acme: registry.Registry) -> None:
    limit(acme, quota_bytes=100)
    acme.quotas.reserve("acme", [(A, 60)], principal=OPERATOR)
    with pytest.raises(QuotaExceededError, match="may have 100 bytes, has 60, and 41 more") as caught:
        acme.quotas.reserve("acme", [(A, 60), (B, 40), (C, 1)], principal=OPERATOR)
    error = caught.value
    assert (error.tenant, error.limit, error.quota, error.used, error.asked) == ("acme", "bytes", 100, 60, 41)
    assert used(acme) == (60, 0)
    acme.quotas.reserve("acme", [(B, 40)], principal=OPERATOR)
    assert used(acme) == (100, 0)


@pytest.mark.sqlite_only
def test_a_true_size_beyond_the_reserved_one_is_charged(acme: registry.Registry) -> None:
    limit(acme, quota_bytes=100)
    acme.quotas.reserve("acme", [(A, 60)], principal=OPERATOR)
    acme.quotas.reserve("acme", [(A, 70)], principal=OPERATOR)
    assert used(acme) == (70, 0), "the later announcement counts"
    with pytest.raises(QuotaExceededError):
        acme.quotas.mark_stored("acme", [(A, 101)])
    assert not acme.quotas.present("acme", [A])
    acme.quotas.mark_stored("acme", [(A, 99)])
    acme.quotas.reserve("acme", [(A, 1)], principal=OPERATOR)
    assert used(acme) == (99, 0), "what is stored has its true size"


@pytest.mark.sqlite_only
def test_what_was_not_written_is_given_back(acme: registry.Registry) -> None:
    quotas = acme.quotas
    first = quotas.reserve("acme", [(A, 10), (B, 5)], principal=OPERATOR)
    quotas.reserve("acme", [(B, 5)], principal=OPERATOR)
    quotas.release(first)
    assert used(acme) == (5, 0), "somebody else has leased B since"
    with pytest.raises(ConflictError, match="Upload it again"):
        quotas.mark_stored("acme", [(A, 10)])


def test_reservations_that_ran_out_make_room(acme: registry.Registry) -> None:
    limit(acme, quota_bytes=100)
    acme.quotas.reserve("acme", [(A, 80)], principal=OPERATOR, lease=timedelta(seconds=-1))
    acme.quotas.reserve("acme", [(B, 10)], principal=OPERATOR)
    assert used(acme) == (90, 0)
    acme.quotas.reserve("acme", [(C, 50)], principal=OPERATOR)
    assert used(acme) == (60, 0)
    acme.quotas.reserve("acme", [(C, 90)], principal=OPERATOR, lease=timedelta(seconds=-1))
    assert used(acme) == (100, 0), "a reservation that is renewed is not its own room"


def test_many_at_once_do_not_pass_the_quota(acme: registry.Registry) -> None:
    limit(acme, quota_bytes=10)
    outcomes: list[bool] = []

    def reserve(number: int) -> None:
        try:
            acme.quotas.reserve("acme", [(f"{number:064d}", 1)], principal=OPERATOR)
        except QuotaExceededError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=reserve, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 14 + [True] * 10
    assert used(acme) == (10, 0)


def test_publishing_counts(reg: registry.Registry, publish: Publish, make_adapter: Callable[..., Path]) -> None:
    first = publish("acme/a")
    size = sum(file.size for file in first.files)
    assert used(reg) == (size, 1)
    second = publish("acme/b")
    shared = {file.sha256 for file in first.files} & {file.sha256 for file in second.files}
    size += sum(file.size for file in second.files if file.sha256 not in shared)
    assert shared
    assert used(reg) == (size, 2)
    folder = make_adapter(seed=500)
    limit(reg, quota_bytes=size)
    with pytest.raises(QuotaExceededError) as caught:
        reg.publish(folder, "acme/a", principal=OPERATOR)
    assert caught.value.limit == "bytes"
    limit(reg, quota_versions=2)
    with pytest.raises(QuotaExceededError, match="may have 2 versions, has 2, and 1 more") as caught:
        reg.publish(folder, "acme/a", principal=OPERATOR)
    assert caught.value.limit == "versions"
    assert used(reg) == (size, 2), "its bytes are given back, too"
    assert len(reg.list_versions("acme/a", OPERATOR)) == 1
    limit(reg)
    assert reg.publish(folder, "acme/a", principal=OPERATOR).number == 2
    assert reg.publish(folder, "acme/a", principal=OPERATOR).number == 2
    assert used(reg)[1] == 3


@pytest.mark.sqlite_only
def test_a_version_needs_its_blobs_to_be_reserved(reg: registry.Registry, publish: Publish) -> None:
    """The last check before a version is made: what garbage collection has forgotten is uploaded again."""
    version = publish("acme/a")
    reg.create_tenant("globex")
    draft = VersionDraft(
        digest=version.digest,
        base_fingerprint=version.base_fingerprint,
        base_verified=True,
        files=version.files,
        adapter_bytes=1,
        rank=1,
        target_modules=("q_proj",),
        manifest=None,
        message="",
    )
    with pytest.raises(ConflictError, match="Upload it again"):
        Catalog(reg._database).add_version(
            registry.AdapterName.parse("globex/a"), draft, visibility=None, principal=registry.Principal.operator()
        )


@pytest.mark.sqlite_only
def test_who_may_set_and_see_it(acme: registry.Registry) -> None:
    acme.create_tenant("globex")
    admin = acme.authenticate(acme.create_token("acme", "admin").secret)
    with pytest.raises(PermissionDeniedError, match="only the operator"):
        acme.set_quota("acme", quota_bytes=None, quota_versions=None, principal=admin)
    assert acme.usage("acme", principal=admin).used_bytes == 0
    with pytest.raises(PermissionDeniedError):
        acme.usage("globex", principal=admin)
    with pytest.raises(NotFoundError):
        acme.usage("nobody")
    with pytest.raises(registry.InvalidValueError):
        limit(acme, quota_bytes=-1)


@pytest.mark.sqlite_only
def test_a_wrong_counter_is_found_and_corrected(acme: registry.Registry) -> None:
    acme.quotas.reserve("acme", [(A, 10)], principal=OPERATOR)
    with acme._database.writing() as session:
        session.connection().exec_driver_sql("UPDATE tenants SET used_bytes = 11")
    with pytest.raises(StorageError, match="is said to have 11 bytes and 0 versions; counted are 10 and 0"):
        acme.quotas.check_integrity()
    assert acme.quotas.recount() == ["acme"]
    assert acme.quotas.recount() == []
    acme.quotas.check_integrity()
