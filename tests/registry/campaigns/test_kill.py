"""kill -9 at every named point of publish, Hub commit, promote, deletions and collection: only before or after.

A worker process performs one operation and is killed at the Nth visit of a point, for N = 1, 2, ... until it gets
through; so every moment between two points is met, for each transaction and each file. After each death another process
finds the registry sound, in the state before or after and in no other, and doing the operation again succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest

import registry
from registry import failpoints
from registry.names import AdapterName
from registry.snapshots import LOG_PAGE_LIMIT
from registry.trees import TreeFile
from tests.registry.adapter_folders import write_adapter
from tests.registry.backends import RegistryPlace
from tests.registry.campaigns.effects import EFFECTS
from tests.registry.campaigns.fork_server import ForkServer
from tests.registry.campaigns.operations import OPERATIONS as PERFORMED
from tests.registry.campaigns.operations import collect_garbage
from tests.registry.campaigns.state import OPERATOR, check_sound, state_of

NAME = "acme/a"
VISITS_LIMIT = 40
REPEATS = 20
KEPT_VERSIONS = 4

BEFORE = "before"
AFTER = "after"

PUBLISH_POINTS = {
    "blobs.write": BEFORE,
    "blobs.before_rename": BEFORE,
    "blobs.after_rename": BEFORE,
    "catalog.before_commit": BEFORE,
    "catalog.after_commit": None,
    "publish.after_stage": BEFORE,
    "publish.after_judge": BEFORE,
    "publish.after_keep": BEFORE,
    "publish.before_commit": BEFORE,
    "publish.after_commit": AFTER,
}
COMMIT_POINTS = {
    "upload.after_store": BEFORE,
    "upload.after_mark": BEFORE,
    "blobs.write": BEFORE,
    "blobs.before_rename": BEFORE,
    "blobs.after_rename": BEFORE,
    "catalog.before_commit": BEFORE,
    "catalog.after_commit": None,
    "commit.after_reserve": BEFORE,
    "commit.after_store": BEFORE,
    "commit.after_judge": BEFORE,
    "commit.before_commit": BEFORE,
    "commit.after_commit": AFTER,
}
PROMOTE_POINTS = {
    "catalog.before_commit": BEFORE,
    "catalog.after_commit": AFTER,
    "promote.before_commit": BEFORE,
    "promote.after_commit": AFTER,
}
DELETE_POINTS = {
    "delete.before_commit": BEFORE,
    "delete.after_commit": AFTER,
}
GC_POINTS = {"gc.before_delete": BEFORE, "gc.after_delete": BEFORE, "gc.before_forget": BEFORE}
"""What the state must be after a death there; None where it depends on the visit."""


@pytest.fixture(scope="module")
def workers() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@dataclass(frozen=True)
class Target:
    """One operation that dies at one point: how it is prepared, and what the state must be after its death."""

    point: str
    operation: str
    prepare: Callable[[], dict[str, Any]]
    expected: str | None


class Campaign:
    """Kills operations at points, on one registry that goes on all the time; each target `at_least` so many times."""

    def __init__(
        self, workers: ForkServer, place: RegistryPlace, reg: registry.Registry, folder: Path, at_least: int
    ) -> None:
        self.reg = reg
        self.deaths = 0
        self._workers = workers
        self._place = place
        self._folder = folder
        self._at_least = at_least
        self._seeds = count(1)

    def new_folder(self) -> str:
        seed = next(self._seeds)
        return str(write_adapter(self._folder / f"adapter-{seed}", seed=seed))

    def publish(self, name: str = NAME) -> registry.Version:
        return self.reg.publish(Path(self.new_folder()), name, principal=OPERATOR)

    def kill(self, point: str, operation: str, prepare: Callable[[], dict[str, Any]], expected: str | None) -> None:
        """Kill at visit 1, 2, ... until the operation gets through, and at each of them again until it is enough."""
        target = Target(point, operation, prepare, expected)
        visits = 0
        while self._dies(target, visits + 1):
            visits += 1
            assert visits < VISITS_LIMIT, f"{operation} comes to {point} again and again"
        assert visits > 0, f"{operation} never comes to {point}"
        for visit in islice(cycle(range(1, visits + 1)), max(0, self._at_least - visits)):
            assert self._dies(target, visit), (operation, point, visit)
        self._check_garbage()

    def _dies(self, target: Target, visit: int) -> bool:
        """Perform it with that visit armed, and look at the registry; False where it gets through."""
        arguments = target.prepare()
        before = state_of(self.reg)
        arm = f"{target.point}=kill@{visit}"
        outcome = self._workers.run(self._place.arguments(), target.operation, arm=arm, **arguments)
        found = state_of(self.reg)
        check_sound(self.reg)
        if not outcome.was_killed:
            assert outcome.acknowledged is not None, outcome.error
        else:
            self.deaths += 1
            assert outcome.acknowledged is None
            if target.expected is not None:
                assert (found != before) == (target.expected == AFTER), target
            if found == before:
                PERFORMED[target.operation](self.reg, **arguments)  # in this process, which did not die
                found = state_of(self.reg)
        assert EFFECTS[target.operation](before, found, arguments), (before, found)
        self._thin()
        return outcome.was_killed

    def _thin(self) -> None:
        """Delete what was published long ago: each look reads all there is, and finds out no more by reading more."""
        for version in self.reg.list_versions(NAME, OPERATOR)[KEPT_VERSIONS:]:
            if version.number not in self.reg.aliases(NAME, OPERATOR).values():
                self.reg.delete_version(f"{NAME}@{version.number}", OPERATOR, force=True)

    def _check_garbage(self) -> None:
        """What the dead have left is collected, and nothing else."""
        collect_garbage(self.reg)
        versions = [
            version
            for summary in self.reg.list_adapters(OPERATOR)
            for version in self.reg.list_versions(summary.adapter, OPERATOR)
        ]
        needed = {file.sha256 for version in versions for file in version.files}
        needed |= {file.sha256 for name in {version.adapter for version in versions} for file in self._committed(name)}
        assert self._place.blob_names() == sorted(needed)
        check_sound(self.reg)

    def _committed(self, name: str) -> Iterator[TreeFile]:
        """The files of every commit on main."""
        parsed = AdapterName.parse(name)
        for commit in self.reg.snapshots.log(parsed, "main", OPERATOR, limit=LOG_PAGE_LIMIT):
            yield from self.reg.snapshots.at(parsed, commit.id, OPERATOR).files.values()


def kill_publish(campaign: Campaign, point: str) -> None:
    campaign.kill(point, "publish", lambda: {"folder": campaign.new_folder(), "name": NAME}, PUBLISH_POINTS[point])


def kill_commit(campaign: Campaign, point: str) -> None:
    campaign.publish()
    prepare = lambda: {"folder": campaign.new_folder(), "name": NAME}  # noqa: E731
    campaign.kill(point, "hub_commit", prepare, COMMIT_POINTS[point])


def kill_promote(campaign: Campaign, point: str) -> None:
    for _ in range(3):
        campaign.publish()
    numbers = (1 + turn % 3 for turn in count())
    campaign.kill(point, "promote", lambda: {"ref": f"{NAME}@{next(numbers)}", "alias": "prod"}, PROMOTE_POINTS[point])


def kill_alias_deletion(campaign: Campaign, point: str) -> None:
    def make_alias() -> dict[str, Any]:
        campaign.reg.promote(f"{NAME}@1", "prod", principal=OPERATOR)
        return {"name": NAME, "alias": "prod"}

    campaign.publish()
    campaign.kill(point, "delete_alias", make_alias, PROMOTE_POINTS[point])


def kill_delete(campaign: Campaign, point: str) -> None:
    def publish_adapter() -> dict[str, Any]:
        name = f"acme/gone-{next(adapters)}"
        campaign.publish(name)
        campaign.reg.promote(name, "prod", principal=OPERATOR)
        return {"name": name}

    adapters = count(1)
    campaign.publish()
    version = lambda: {"ref": f"{NAME}@{campaign.publish().number}"}  # noqa: E731
    campaign.kill(point, "delete_version", version, DELETE_POINTS[point])
    campaign.kill(point, "delete_adapter", publish_adapter, DELETE_POINTS[point])


def kill_collection(campaign: Campaign, point: str) -> None:
    def leave_garbage() -> dict[str, Any]:
        version = campaign.publish()
        campaign.reg.delete_version(f"{NAME}@{version.number}", OPERATOR)
        return {}

    campaign.publish()
    for _ in range(2):
        leave_garbage()
    campaign.kill(point, "collect_garbage", leave_garbage, GC_POINTS[point])


CAMPAIGNS: dict[str, tuple[Callable[[Campaign, str], None], Collection[str]]] = {
    "publish": (kill_publish, PUBLISH_POINTS),
    "commit": (kill_commit, COMMIT_POINTS),
    "promote": (kill_promote, PROMOTE_POINTS),
    "delete alias": (kill_alias_deletion, PROMOTE_POINTS),
    "delete": (kill_delete, DELETE_POINTS),
    "collect": (kill_collection, GC_POINTS),
}

CASES = [(operation, point) for operation, (_, points) in CAMPAIGNS.items() for point in points]


OWN = [
    (operation, point)
    for operation, point in CASES
    if operation not in ("commit", "delete alias") or point.startswith(("commit.", "upload.", "promote."))
]
"""Those of the normal suite: what commits share with publishes, and all with all, is met there once."""


def test_every_point_is_tried() -> None:
    assert {point for _, point in CASES} == failpoints.NAMES


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("operation", "point"), OWN)
def test_whoever_is_killed_there(
    workers: ForkServer, place: RegistryPlace, reg: registry.Registry, tmp_path: Path, operation: str, point: str
) -> None:
    """Once at each visit."""
    campaign = Campaign(workers, place, reg, tmp_path, at_least=1)
    CAMPAIGNS[operation][0](campaign, point)
    print(f"{operation} at {point}: {campaign.deaths} deaths")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("operation", "point"), CASES)
def test_whoever_is_killed_there_twenty_times(
    workers: ForkServer, place: RegistryPlace, reg: registry.Registry, tmp_path: Path, operation: str, point: str
) -> None:
    campaign = Campaign(workers, place, reg, tmp_path, at_least=REPEATS)
    CAMPAIGNS[operation][0](campaign, point)
    assert campaign.deaths >= REPEATS
    print(f"{operation} at {point}: {campaign.deaths} deaths")
