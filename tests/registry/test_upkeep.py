"""Upkeep: what old things go and what stays, one process at a time, mirrors that follow; on both backends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import registry
from registry.caretaker import CaretakerSettings
from registry.errors import InvalidValueError, PermissionDeniedError
from registry.lease import Lease
from registry.principal import Principal, Role
from registry.retention_rule import RetentionRule
from registry.task_lease import HOLD, TaskLeases
from registry.task_run import Outcome, Task, TaskRun
from registry.upkeep_policy import UpkeepPolicy
from tests.registry.backends import RegistryPlace
from tests.registry.test_mirror import FakeHub
from tests.registry.web_peer import WebPeer

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()
DAY = timedelta(days=1)
SOON = CaretakerSettings(first_seconds=0.0, poll_seconds=0.05)


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def by_task(runs: list[TaskRun]) -> dict[Task, TaskRun]:
    return {run.task: run for run in runs}


def test_what_is_due_is_done_once(reg: registry.Registry, publish: Publish) -> None:
    for _ in range(3):
        publish("acme/a")
    reg.set_retention("acme/a", RetentionRule(keep_last=1), OPERATOR)
    assert {run.task for run in reg.upkeep.run_due()} == {Task.GARBAGE, Task.HISTORY}
    assert [version.number for version in reg.list_versions("acme/a", OPERATOR)] == [3]
    assert reg.upkeep.run_due() == [], "nothing is due again so soon"
    states = {state.task: state for state in reg.upkeep.states()}
    assert (states["garbage"].report or {})["versions_deleted"] == 2
    assert states["garbage"].holder is None
    assert states["mirrors"].ended_at is None, "nobody follows"
    done = by_task(reg.upkeep.run_due(in_days(0.3)))
    assert done.keys() == {Task.GARBAGE}, "every six hours"
    deleted = by_task(reg.upkeep.run_due(in_days(2)))[Task.GARBAGE].report or {}
    assert deleted["blobs_deleted"] > 0, "after the grace"
    assert reg.fsck().faults == []


def test_the_policy_is_the_registrys(reg: registry.Registry, place: RegistryPlace) -> None:
    assert reg.upkeep.policy() == UpkeepPolicy()
    changes = {"collect_every_seconds": 120, "events_seconds": None}
    changed = reg.upkeep.change_policy(changes, OPERATOR)
    assert (changed.collect_every_seconds, changed.events_seconds) == (120, None)
    with place.open() as other:
        assert other.upkeep.policy() == changed
    assert reg.audit_entries()[0].action == "upkeep_policy"
    with pytest.raises(InvalidValueError, match="collect_every_seconds"):
        reg.upkeep.change_policy({"collect_every_seconds": None}, OPERATOR)
    with pytest.raises(InvalidValueError, match="events_seconds"):
        reg.upkeep.change_policy({"events_seconds": 60}, OPERATOR)
    with pytest.raises(PermissionDeniedError):
        reg.upkeep.change_policy(changes, Principal(tenant="acme", role=Role.ADMIN, token_id="tok_a"))


def test_old_events_go_and_who_asks_for_them_is_told(reg: registry.Registry, publish: Publish) -> None:
    for _ in range(3):
        publish("acme/a")
    newest = reg.newest_event()
    assert by_task(reg.upkeep.run_due(in_days(89)))[Task.HISTORY].report == {
        "events_pruned": 0,
        "audit_rows_pruned": 0,
        "names_freed": 0,
    }
    gone = (by_task(reg.upkeep.run_all(in_days(91)))[Task.HISTORY].report or {})["events_pruned"]
    assert gone == newest - 1, "all but the newest one"
    page = reg.events(OPERATOR, after=0)
    assert ([event.id for event in page.events], page.is_complete) == ([newest], False)
    assert reg.events(OPERATOR, after=newest - 1).is_complete
    publish("acme/a")
    assert reg.newest_event() > newest, "no number means two things"
    assert reg.fsck().faults == []


def test_an_event_that_a_webhook_waits_for_stays(reg: registry.Registry, publish: Publish) -> None:
    publish("acme/a")
    hook = reg.create_webhook("acme", "https://hooks.example.org/x", principal=OPERATOR)
    told = publish("acme/a")
    publish("acme/a")
    first = min(delivery.event_id for delivery in reg.webhook_deliveries(hook.webhook_id, OPERATOR))
    reg.upkeep.run_all(in_days(91))
    kept = reg.events(OPERATOR, after=0).events
    assert kept[0].id == first
    assert kept[0].document["version"] == told.number
    reg.delete_webhook(hook.webhook_id, OPERATOR)
    reg.upkeep.run_all(in_days(91))
    assert len(reg.events(OPERATOR, after=0).events) == 1


def test_a_pruned_audit_log_is_verified_from_its_checkpoint(reg: registry.Registry, publish: Publish) -> None:
    publish("acme/a")
    old = reg.verify_audit()
    publish("acme/a")
    assert (by_task(reg.upkeep.run_all(in_days(400)))[Task.HISTORY].report or {})["audit_rows_pruned"] == 0
    reg.upkeep.change_policy({"audit_seconds": 365 * 86_400}, OPERATOR)
    everything = reg.verify_audit()
    pruned = (by_task(reg.upkeep.run_all(in_days(400)))[Task.HISTORY].report or {})["audit_rows_pruned"]
    found = reg.verify_audit(expect=everything.row_hash)
    assert found.is_whole, found.faults
    assert (found.pruned_rows, pruned, found.rows) == (everything.rows - 1, everything.rows - 1, 2)
    assert [entry.action for entry in reg.audit_entries()] == ["prune_audit", "upkeep_policy"]
    assert "were pruned" in reg.verify_audit(expect=old.row_hash).faults[0]
    publish("acme/a")
    assert reg.verify_audit().is_whole
    reg.upkeep.run_all(in_days(800))
    again = reg.verify_audit()
    assert again.is_whole
    assert again.pruned_rows > found.pruned_rows
    assert reg.fsck().faults == []


@pytest.fixture
def pruned(reg: registry.Registry, publish: Publish) -> registry.Registry:
    for _ in range(3):
        publish("acme/a")
    reg.upkeep.change_policy({"audit_seconds": 365 * 86_400}, OPERATOR)
    reg.upkeep.run_all(in_days(400))
    publish("acme/a")
    return reg


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("DELETE FROM audit_events WHERE id = (SELECT min(id) FROM audit_events)", "does not follow"),
        ("DELETE FROM registry_meta WHERE key = 'audit_checkpoint'", "does not follow"),
        (
            "UPDATE registry_meta SET value = replace(value, '\"rows\": ', '\"rows\": 1') WHERE key LIKE '%checkpoint'",
            "",
        ),
        ("UPDATE audit_events SET detail = '{}' WHERE action = 'prune_audit'", "was changed"),
    ],
)
def test_rows_that_are_taken_out_past_the_registry_are_found(
    pruned: registry.Registry, place: RegistryPlace, statement: str, fault: str
) -> None:
    place.execute(statement, triggers=False)
    found = pruned.verify_audit()
    assert any(fault in text for text in found.faults), found.faults


def test_the_database_keeps_rows_that_no_checkpoint_covers(pruned: registry.Registry, place: RegistryPlace) -> None:
    with pytest.raises(Exception, match="not taken out before a checkpoint"):
        place.execute("DELETE FROM audit_events WHERE id = (SELECT max(id) FROM audit_events)")
    assert pruned.verify_audit().is_whole


def test_a_broken_log_is_not_pruned(reg: registry.Registry, place: RegistryPlace, publish: Publish) -> None:
    for _ in range(3):
        publish("acme/a")
    reg.upkeep.change_policy({"audit_seconds": 365 * 86_400}, OPERATOR)
    place.execute("UPDATE audit_events SET actor = 'nobody' WHERE id = 2", triggers=False)
    run = by_task(reg.upkeep.run_all(in_days(400)))[Task.HISTORY]
    assert run.outcome is Outcome.FAILED
    assert "row 2 was changed" in (run.failure or "")
    assert len(reg.audit_entries()) > 3
    state = next(state for state in reg.upkeep.states() if state.task == Task.HISTORY)
    assert (state.failures, state.failure) == (1, run.failure)
    assert state.due_at is not None
    assert state.due_at < in_days(1), "it is tried again before it would be due"


def test_a_pruned_registry_is_backed_up_and_restored(
    pruned: registry.Registry, fresh_place: RegistryPlace, tmp_path: Path
) -> None:
    pruned.backup(tmp_path / "backup")
    with fresh_place.open() as other:
        other.restore(tmp_path / "backup")
        found = other.verify_audit()
        assert found.is_whole
        assert found.pruned_rows == pruned.verify_audit().pruned_rows


def test_names_that_have_rested_are_free(reg: registry.Registry, publish: Publish) -> None:
    publish("acme/a")
    reg.move_adapter("acme/a", "acme/b", OPERATOR)
    assert reg.moved_to("acme/a", OPERATOR) == "acme/b"
    assert (by_task(reg.upkeep.run_all(in_days(364)))[Task.HISTORY].report or {})["names_freed"] == 0
    assert (by_task(reg.upkeep.run_all(in_days(366)))[Task.HISTORY].report or {})["names_freed"] == 1
    assert reg.moved_to("acme/a", OPERATOR) is None
    assert publish("acme/a").number == 1
    assert reg.fsck().faults == []


def test_leases_that_ran_out_go(reg: registry.Registry, publish: Publish, place: RegistryPlace) -> None:
    publish("acme/a")
    reg.lease(["acme/a@1"], holder="gone", duration=timedelta(minutes=5))
    reg.upkeep.run_all()
    assert [lease.holder for lease in reg.leases("acme/a", OPERATOR) if isinstance(lease, Lease)] == ["gone"]
    reg.upkeep.run_all(in_days(1))
    assert place.execute("SELECT count(*) FROM leases") == [(0,)]


def test_one_process_does_a_task_at_a_time(reg: registry.Registry, place: RegistryPlace) -> None:
    leases = TaskLeases(reg._database)
    now = datetime.now(UTC)
    holder = leases.claim("garbage", now, only_due=True)
    assert holder is not None
    with place.open() as other:
        assert {run.task for run in other.upkeep.run_due()} == {Task.HISTORY}
        assert by_task(other.upkeep.run_all())[Task.GARBAGE].outcome is Outcome.BUSY
        assert TaskLeases(other._database).claim("garbage", now + HOLD / 2, only_due=False) is None
        taken_over = TaskLeases(other._database).claim("garbage", now + HOLD * 2, only_due=False)
    assert taken_over is not None, "whoever holds it is dead"
    leases.succeeded("garbage", holder, report={}, seconds=1.0, due_at=now + DAY)
    state = leases.state("garbage")
    assert (state.holder, state.ended_at) == (taken_over, None), "who was too late changes nothing"


def test_of_several_caretakers_one_does_each_task(reg: registry.Registry, place: RegistryPlace) -> None:
    runs: list[TaskRun] = []
    done = threading.Event()

    def note(run: TaskRun) -> None:
        runs.append(run)
        if len(runs) == 2:
            done.set()

    with place.open() as second, place.open() as third:
        caretakers = [each.caretaker(note, SOON) for each in (reg, second, third)]
        for caretaker in caretakers:
            caretaker.start()
        assert done.wait(30)
        time.sleep(0.2)
        for caretaker in caretakers:
            caretaker.stop()
    assert sorted(run.task for run in runs) == [Task.GARBAGE, Task.HISTORY]
    assert {run.outcome for run in runs} == {Outcome.DONE}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with WebPeer().running() as running:
        yield FakeHub(running)


def test_a_mirror_follows_its_upstream(reg: registry.Registry, hub: FakeHub, make_adapter: Callable[..., Path]) -> None:
    hub.push("org/x", make_adapter(seed=1))
    reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=OPERATOR)
    assert reg.upkeep.run_due(in_days(1)) != []
    hub.push("org/x", make_adapter(seed=2))
    assert Task.MIRRORS not in by_task(reg.upkeep.run_due(in_days(9))), "nothing follows by itself before it is told to"
    followed = reg.follow_mirror("acme/x", timedelta(hours=1), principal=OPERATOR)
    assert (followed.every_seconds, followed.checked_at) == (3600, None)
    assert Task.MIRRORS not in by_task(reg.upkeep.run_due())
    report = by_task(reg.upkeep.run_due(in_days(0.1)))[Task.MIRRORS].report
    assert report == {"pulled": 1, "unchanged": 0, "failed": 0}
    assert reg.resolve("acme/x", principal=OPERATOR).number == 2
    assert reg.list_mirrors(OPERATOR)[0].failures == 0
    reg.follow_mirror("acme/x", None, principal=OPERATOR)
    assert Task.MIRRORS not in by_task(reg.upkeep.run_due(in_days(30)))


def test_a_mirror_that_fails_is_seen_and_asked_more_rarely(
    reg: registry.Registry, hub: FakeHub, make_adapter: Callable[..., Path]
) -> None:
    for name in ("x", "y"):
        hub.push(f"org/{name}", make_adapter(seed=1))
        reg.add_mirror(f"acme/{name}", f"{hub.peer.url}/org/{name}", principal=OPERATOR)
        reg.follow_mirror(f"acme/{name}", timedelta(hours=1), principal=OPERATOR)
    hub.push("org/y", make_adapter(seed=2))
    hub.push("org/x", make_adapter(seed=3, config={"peft_type": "LORA", "trust": "me"}))
    waits = []
    for turn in (1, 2, 3):
        report = by_task(reg.upkeep.run_due(in_days(turn)))[Task.MIRRORS].report or {}
        assert report["failed"] == 1
        mirror = reg.list_mirrors(OPERATOR)[0]
        assert (mirror.adapter, mirror.failures) == ("acme/x", turn)
        assert mirror.failure
        assert mirror.next_sync_at is not None
        assert mirror.checked_at is not None
        waits.append(mirror.next_sync_at - mirror.checked_at)
    assert waits == [timedelta(hours=2), timedelta(hours=4), timedelta(hours=8)]
    assert [mirror.adapter for mirror in reg.list_mirrors(OPERATOR) if mirror.failures] == ["acme/x"]
    assert reg.resolve("acme/x", principal=OPERATOR).number == 1, "judged again on entry"
    assert reg.resolve("acme/y", principal=OPERATOR).number == 2
    hub.push("org/x", make_adapter(seed=4))
    reg.upkeep.run_due(in_days(9))
    assert reg.list_mirrors(OPERATOR)[0].failures == 0
    with pytest.raises(InvalidValueError, match="every"):
        reg.follow_mirror("acme/x", timedelta(seconds=5), principal=OPERATOR)
    admin = Principal(tenant="acme", role=Role.ADMIN, token_id="tok_a")
    with pytest.raises(PermissionDeniedError):
        reg.follow_mirror("acme/x", DAY, principal=admin)
