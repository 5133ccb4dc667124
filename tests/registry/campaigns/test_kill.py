"""kill -9 at every named point of publish, promote, delete and collection: only before or after, nothing lost.

A worker process performs one operation and is killed at the Nth visit of a point, for N = 1, 2, ... until it gets
through; so every moment between two points is met, for each transaction and each file. After each death another process
finds the registry sound, in the state before or after and in no other, and doing the operation again succeeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import registry
from registry import failpoints
from tests.registry.adapter_folders import write_adapter
from tests.registry.campaigns.effects import EFFECTS
from tests.registry.campaigns.fork_server import ForkServer
from tests.registry.campaigns.state import OPERATOR, State, check_sound, state_of

NAME = "acme/a"
VISITS_LIMIT = 40

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
PROMOTE_POINTS = {
    "catalog.before_commit": BEFORE,
    "catalog.after_commit": AFTER,
    "promote.before_commit": BEFORE,
    "promote.after_commit": AFTER,
}
GC_POINTS = {"gc.before_delete": None, "gc.after_delete": None, "gc.before_forget": None}
DELETE_POINTS = {
    "catalog.before_commit": BEFORE,
    "catalog.after_commit": AFTER,
    "delete.before_commit": BEFORE,
    "delete.after_commit": AFTER,
}
"""What the state must be after a death there; None where it depends on the visit."""


@pytest.fixture(scope="module")
def workers() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


class Campaign:
    """Kills one operation at one point, at each of its visits, on one registry that goes on all the time."""

    def __init__(self, workers: ForkServer, location: dict[str, Any], reg: registry.Registry, folder: Path) -> None:
        self._workers = workers
        self._location = location
        self._reg = reg
        self._folder = folder
        self._seeds = count(1)
        self.deaths = 0

    def new_folder(self) -> str:
        seed = next(self._seeds)
        return str(write_adapter(self._folder / f"adapter-{seed}", seed=seed))

    def run(self, point: str, operation: str, prepare: Callable[[], dict[str, Any]], expected: str | None) -> None:
        """Kill at visit 1, 2, ... until the operation gets through, and look at the registry each time."""
        for visit in range(1, VISITS_LIMIT):
            arguments = prepare()
            before = state_of(self._reg)
            outcome = self._workers.run(self._location, operation, arm=f"{point}=kill@{visit}", **arguments)
            found = state_of(self._reg)
            check_sound(self._reg)
            if not outcome.was_killed:
                assert outcome.acknowledged is not None, outcome.error
                assert visit > 1, f"{operation} never comes to {point}"
                self._check_after(before, found, operation, arguments)
                return
            self.deaths += 1
            assert outcome.acknowledged is None
            if found != before:
                assert expected != BEFORE, point
                self._check_after(before, found, operation, arguments)
            else:
                assert expected != AFTER, point
                again = self._workers.run(self._location, operation, **arguments)
                assert again.acknowledged is not None, again.error
                check_sound(self._reg)
                self._check_after(before, state_of(self._reg), operation, arguments)
        pytest.fail(f"{operation} comes to {point} more than {VISITS_LIMIT} times")

    def _check_after(self, before: State, after: State, operation: str, arguments: dict[str, Any]) -> None:
        """Everything that the operation does is there, and nothing else has changed."""
        assert EFFECTS[operation](before, after, arguments), (operation, before, after)


@pytest.fixture
def campaign(workers: ForkServer, location: dict[str, Any], reg: registry.Registry, tmp_path: Path) -> Campaign:
    return Campaign(workers, location, reg, tmp_path)


@pytest.fixture
def location(reg: registry.Registry) -> dict[str, Any]:
    return {"where": str(reg.folder)}


def test_every_point_is_tried() -> None:
    tried = {*PUBLISH_POINTS, *PROMOTE_POINTS, *DELETE_POINTS, *GC_POINTS}
    assert tried == failpoints.NAMES


@pytest.mark.parametrize("point", PUBLISH_POINTS)
def test_a_publish_that_is_killed(campaign: Campaign, point: str) -> None:
    kill_publish(campaign, point)


@pytest.mark.parametrize("point", PROMOTE_POINTS)
def test_a_promotion_that_is_killed(campaign: Campaign, reg: registry.Registry, point: str) -> None:
    kill_promote(campaign, reg, point)


@pytest.mark.parametrize("point", DELETE_POINTS)
def test_a_deletion_that_is_killed(campaign: Campaign, reg: registry.Registry, point: str) -> None:
    kill_delete(campaign, reg, point)


def kill_publish(campaign: Campaign, point: str) -> None:
    campaign.run(point, "publish", lambda: {"folder": campaign.new_folder(), "name": NAME}, PUBLISH_POINTS[point])


def kill_promote(campaign: Campaign, reg: registry.Registry, point: str) -> None:
    for _ in range(3):
        reg.publish(Path(campaign.new_folder()), NAME, principal=OPERATOR)
    numbers = (1 + turn % 3 for turn in count())
    campaign.run(point, "promote", lambda: {"ref": f"{NAME}@{next(numbers)}", "alias": "prod"}, PROMOTE_POINTS[point])


def kill_delete(campaign: Campaign, reg: registry.Registry, point: str) -> None:
    def publish_one() -> dict[str, Any]:
        version = reg.publish(Path(campaign.new_folder()), NAME, principal=OPERATOR)
        return {"ref": f"{NAME}@{version.number}"}

    adapters = count(1)

    def publish_adapter() -> dict[str, Any]:
        name = f"acme/gone-{next(adapters)}"
        reg.publish(Path(campaign.new_folder()), name, principal=OPERATOR)
        reg.promote(name, "prod", principal=OPERATOR)
        return {"name": name}

    reg.publish(Path(campaign.new_folder()), NAME, principal=OPERATOR)
    campaign.run(point, "delete_version", publish_one, DELETE_POINTS[point])
    campaign.run(point, "delete_adapter", publish_adapter, DELETE_POINTS[point])
