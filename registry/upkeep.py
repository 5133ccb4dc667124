"""Upkeep: what has to be done again and again for a registry to stay in order, whoever does it.

    garbage   retention rules, leases that ran out, bytes that nobody needs (`gc.py`)        every 6 hours
    history   events and audit rows that are no longer kept, names that have rested enough   every day
    mirrors   mirrors that follow their upstream (`mirror_schedule.py`)                      when one is due

Each task is done by one process at a time (`task_lease.py`), also where several servers share the registry. What is
kept for how long stands in the database (`upkeep_policies.py`). `caretaker.py` calls this on a schedule; the command
`loraplex registry upkeep --once` calls it for those who have a timer of their own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from registry import tombstones
from registry.audit_pruning import prune_audit
from registry.database import Database
from registry.errors import RegistryError
from registry.event_pruning import prune_events
from registry.gc import GarbageCollection
from registry.leases import forget_expired
from registry.mirror_schedule import MirrorSchedule
from registry.principal import Principal
from registry.task_lease import TaskLeases
from registry.task_run import Outcome, Task, TaskRun
from registry.task_state import TaskState
from registry.upkeep_policies import UpkeepPolicies
from registry.upkeep_policy import UpkeepPolicy

HISTORY_EVERY = timedelta(days=1)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(minutes=5), timedelta(hours=6)
UPKEEP = Principal(tenant=None, role=Principal.operator().role, token_id="upkeep")  # noqa: S106 (a name)
"""Under which name the audit log tells of it."""

logger = logging.getLogger(__name__)


class Upkeep:
    """The tasks of one registry. Holds no state but the database and the blobs; threads and processes may share it."""

    def __init__(self, database: Database, collection: GarbageCollection, schedule: MirrorSchedule) -> None:
        self._database = database
        self._collection = collection
        self._schedule = schedule
        self._leases = TaskLeases(database)
        self._policies = UpkeepPolicies(database)
        self._doing: Mapping[Task, Callable[[UpkeepPolicy, datetime], dict[str, int]]] = {
            Task.GARBAGE: self._collect,
            Task.HISTORY: self._prune,
            Task.MIRRORS: self._follow,
        }

    def policy(self) -> UpkeepPolicy:
        """What is kept, and how often it is looked after."""
        return self._policies.read()

    def change_policy(self, changes: Mapping[str, int | None], principal: Principal) -> UpkeepPolicy:
        """Change some fields of the policy. Raises PermissionDeniedError, InvalidValueError."""
        return self._policies.change(changes, principal)

    def states(self) -> list[TaskState]:
        """What is known of each task."""
        return [self._leases.state(task) for task in Task]

    def run_due(self, now: datetime | None = None) -> list[TaskRun]:
        """Do what is due and nobody else is at. A task that fails is told of, and tried again later."""
        moment = now or datetime.now(UTC)
        runs = [self._run(task, moment, only_due=True) for task in Task if self._is_due(task, moment)]
        return [run for run in runs if run.outcome is not Outcome.BUSY]

    def run_all(self, now: datetime | None = None) -> list[TaskRun]:
        """Do every task, due or not; mirrors only as they are due. Those that another process is at are left to it."""
        return [self._run(task, now or datetime.now(UTC), only_due=False) for task in Task]

    def _is_due(self, task: Task, now: datetime) -> bool:
        if not self._leases.state(task).is_due(now):
            return False
        if task is not Task.MIRRORS:
            return True
        due_at = self._schedule.next_due()
        return due_at is not None and due_at <= now

    def _run(self, task: Task, now: datetime, *, only_due: bool) -> TaskRun:
        holder = self._leases.claim(task, now, only_due=only_due)
        if holder is None:
            return TaskRun(task, Outcome.BUSY)
        began = time.monotonic()
        policy = self._policies.read()
        try:
            with self._leases.renewed(task, holder):
                report = self._doing[task](policy, now)
        except RegistryError as error:
            logger.error("upkeep: %s failed: %s", task, error)
            self._leases.failed(
                task, holder, failure=error.message, first_pause=FIRST_PAUSE, longest_pause=LONGEST_PAUSE
            )
            return TaskRun(task, Outcome.FAILED, time.monotonic() - began, None, error.message)
        seconds = time.monotonic() - began
        self._leases.succeeded(task, holder, report=report, seconds=seconds, due_at=now + _pause(task, policy))
        logger.info("upkeep: %s took %.1f s: %s", task, seconds, report)
        return TaskRun(task, Outcome.DONE, seconds, report)

    def _collect(self, policy: UpkeepPolicy, now: datetime) -> dict[str, int]:
        with self._database.writing() as session:
            forget_expired(session, now)
        done = self._collection.run(principal=UPKEEP, grace=timedelta(seconds=policy.grace_seconds), now=now)
        return {
            "versions_deleted": done.versions_deleted,
            "blobs_deleted": done.blobs_deleted,
            "blob_bytes_deleted": done.blob_bytes_deleted,
            "tenant_bytes_freed": sum(done.tenant_bytes_freed.values()),
        }

    def _prune(self, policy: UpkeepPolicy, now: datetime) -> dict[str, int]:
        events = audit_rows = 0
        if policy.events_seconds is not None:
            events = prune_events(self._database, before=now - timedelta(seconds=policy.events_seconds))
        if policy.audit_seconds is not None:
            before = now - timedelta(seconds=policy.audit_seconds)
            audit_rows = prune_audit(self._database, before=before, now=now, principal=UPKEEP)
        with self._database.writing() as session:
            names = tombstones.forget_rested(session, now)
        return {"events_pruned": events, "audit_rows_pruned": audit_rows, "names_freed": names}

    def _follow(self, policy: UpkeepPolicy, now: datetime) -> dict[str, int]:
        return asdict(self._schedule.run(now))


def _pause(task: Task, policy: UpkeepPolicy) -> timedelta:
    if task is Task.GARBAGE:
        return timedelta(seconds=policy.collect_every_seconds)
    return HISTORY_EVERY if task is Task.HISTORY else timedelta(0)
