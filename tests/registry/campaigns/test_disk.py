"""Disks that fail: an error at the Nth operation for every N, a full disk at every amount of room, and recovery.

The operations are those of the process on the files of the registry, SQLite's as well as our own (`faults.c`). The full
disk is a real one: a small tmpfs, with a ballast file that leaves so much room and no more.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import registry
from registry.errors import StorageError
from tests.registry.adapter_folders import base_document, write_adapter
from tests.registry.backends import FolderPlace
from tests.registry.campaigns.effects import EFFECTS
from tests.registry.campaigns.faults import Fault, has_compiler, library
from tests.registry.campaigns.fork_server import ForkServer, Outcome
from tests.registry.campaigns.operations import OPERATIONS as PERFORMED
from tests.registry.campaigns.state import OPERATOR, check_sound, state_of

NAME = "acme/a"
DISK_BYTES = 64 << 20
PAGE_BYTES = 4096
STORAGE_ERRORS = ("StorageError", "IntegrityError")
FAULTS = {
    "an operation that writes fails once": {"kind": "writes", "error": "EIO", "is_lasting": False},
    "the disk stays full": {"kind": "writes", "error": "ENOSPC", "is_lasting": True},
    "an operation that reads fails once": {"kind": "reads", "error": "EIO", "is_lasting": False},
}
OPERATIONS = ["publish", "hub_commit", "promote", "delete_version", "delete_adapter", "collect_garbage"]
SAMPLED = 3
"""The normal suite tries about so many values of N for each operation and fault; the long one tries every N."""

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="faults.c needs a C compiler")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(preload=library(tmp_path_factory.mktemp("library"))) as server:
        yield server


class Supplies:
    """Makes what operations need on one registry: adapters to publish, versions to delete, garbage to collect."""

    def __init__(self, reg: registry.Registry, folder: Path) -> None:
        self._reg = reg
        self._folder = folder
        self._numbers = count(1)
        for _ in range(3):
            reg.publish(Path(self.new_folder()), NAME, principal=OPERATOR)

    def new_folder(self) -> str:
        number = next(self._numbers)
        return str(write_adapter(self._folder / f"adapter-{number}", seed=number))

    def arguments_of(self, operation: str) -> dict[str, Any]:
        """What the operation has not done yet, with what it needs."""
        if operation in ("publish", "hub_commit"):
            return {"folder": self.new_folder(), "name": NAME}
        if operation == "promote":
            return {"ref": f"{NAME}@{1 + next(self._numbers) % 3}", "alias": "prod"}
        if operation == "delete_adapter":
            name = f"acme/gone-{next(self._numbers)}"
            self._reg.publish(Path(self.new_folder()), name, principal=OPERATOR)
            return {"name": name}
        version = self._reg.publish(Path(self.new_folder()), NAME, principal=OPERATOR)
        if operation == "collect_garbage":
            self._reg.delete_version(f"{NAME}@{version.number}", OPERATOR)
            return {}
        return {"ref": f"{NAME}@{version.number}"}


class FaultyDisk:
    """Performs one operation with the Nth operation on its registry's files failing, on a registry that goes on."""

    def __init__(self, workers: ForkServer, place: FolderPlace, reg: registry.Registry, folder: Path) -> None:
        self._workers = workers
        self._reg = reg
        self._folder = folder
        self._numbers = count(1)
        self._place = place
        self._supplies = Supplies(reg, folder)

    def attempt(self, operation: str, nth: int, fault: dict[str, Any]) -> Outcome:
        """One attempt, with all that must hold after it."""
        arguments = self._supplies.arguments_of(operation)
        before = state_of(self._reg)
        served = (f"{NAME}@1", str(self._folder / f"served-{next(self._numbers)}"))
        outcome = self._workers.run(
            self._place.arguments(),
            operation,
            fault=Fault(prefix=str(self._place.where), nth=nth, **fault),
            served=served if fault["kind"] == "writes" else None,
            **arguments,
        )
        what = (operation, nth, fault, outcome)
        if outcome.acknowledged is None:
            assert outcome.error is not None, what
            assert outcome.error.startswith(STORAGE_ERRORS), what
        assert outcome.again is not None, what
        check_sound(self._reg)
        assert EFFECTS[operation](before, state_of(self._reg), arguments), what
        if operation == "collect_garbage":
            versions = self._reg.list_versions(NAME, OPERATOR)
            needed = {file.sha256 for version in versions for file in version.files}
            assert self._place.blob_names() == sorted(needed), what
        return outcome


@pytest.fixture
def disk(workers: ForkServer, sqlite_place: FolderPlace, reg_sqlite: registry.Registry, tmp_path: Path) -> FaultyDisk:
    return FaultyDisk(workers, sqlite_place, reg_sqlite, tmp_path)


def fail_each(disk: FaultyDisk, operation: str, fault: dict[str, Any], *, sampled: int | None) -> int:
    """Fail at N = 1, 2, ... until the operation has fewer; or at `sampled` of these, spread over all."""
    total = disk.attempt(operation, 1 << 40, fault).operations
    assert total > 10, "the faults meet nothing"
    step = 1 if sampled is None else max(1, total // sampled)
    failed = 0
    for nth in range(1, total + 1, step):
        outcome = disk.attempt(operation, nth, fault)
        failed += outcome.error is not None
    assert failed > 0
    return failed


@needs_compiler
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("what", FAULTS)
def test_an_operation_on_a_file_that_fails(disk: FaultyDisk, operation: str, what: str) -> None:
    print(operation, what, fail_each(disk, operation, FAULTS[what], sampled=SAMPLED))


@needs_compiler
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("what", FAULTS)
def test_every_operation_on_a_file_that_fails(disk: FaultyDisk, operation: str, what: str) -> None:
    print(operation, what, fail_each(disk, operation, FAULTS[what], sampled=None))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, *, room_bytes: int) -> Path:
    """Write a file that leaves so much room."""
    ballast = folder / "ballast"
    with ballast.open("wb") as stream:
        status = os.statvfs(folder)
        os.posix_fallocate(stream.fileno(), 0, status.f_bavail * status.f_frsize - room_bytes)
    return ballast


@pytest.mark.parametrize("operation", ["publish", "promote", "delete_version", "collect_garbage"])
def test_a_full_disk(small_disk: Path, tmp_path: Path, operation: str) -> None:
    """With no room, one page, two pages ...: an error and the old state, or the whole operation; then there is room."""
    with registry.open(small_disk / "registry") as reg:
        reg.register_base(base_document())
        supplies = Supplies(reg, tmp_path)
        first = reg.resolve(f"{NAME}@1", principal=OPERATOR)
        refused = 0
        for pages in count():
            arguments = supplies.arguments_of(operation)
            before = state_of(reg)
            ballast = fill(small_disk, room_bytes=pages * PAGE_BYTES)
            try:
                PERFORMED[operation](reg, **arguments)
            except StorageError as error:
                refused += "Check that the disk has room" in str(error)
                assert reg.resolve(f"{NAME}@1", principal=OPERATOR) == first
                reg.pull(first, tmp_path / f"served-{pages}")
                assert state_of(reg) == before
                ballast.unlink()
                PERFORMED[operation](reg, **arguments)
                assert EFFECTS[operation](before, state_of(reg), arguments)
            else:
                assert EFFECTS[operation](before, state_of(reg), arguments)
                ballast.unlink()
                if pages > refused + 3:
                    break
        check_sound(reg)
    assert refused > 0, "the disk was never full"
    print(f"{operation}: refused {refused} times")
