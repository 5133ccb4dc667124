"""Disks that fail: an error at the Nth operation for every N, a full disk at every amount of room, and recovery.

The operations are those of the process on the files of the registry, SQLite's as well as our own (`faults.c`). The full
disk is a real one: a small tmpfs, with a ballast file that leaves so much room and no more.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
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
SAMPLED = 6
"""The normal suite tries so many values of N for each operation and fault; the long one tries every N."""

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="faults.c needs a C compiler")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(preload=library(tmp_path_factory.mktemp("library"))) as server:
        yield server


class FaultyDisk:
    """Performs one operation with the Nth operation on its registry's files failing, on a registry that goes on."""

    def __init__(self, workers: ForkServer, place: FolderPlace, reg: registry.Registry, folder: Path) -> None:
        self._workers = workers
        self._reg = reg
        self._folder = folder
        self._numbers = count(1)
        self._place = place

    def new_folder(self) -> str:
        number = next(self._numbers)
        return str(write_adapter(self._folder / f"adapter-{number}", seed=number))

    def attempt(self, operation: str, arguments: dict[str, Any], nth: int, fault: dict[str, Any]) -> Outcome:
        """One attempt, with all that must hold after it."""
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
        return outcome


@pytest.fixture
def disk(workers: ForkServer, sqlite_place: FolderPlace, reg_sqlite: registry.Registry, tmp_path: Path) -> FaultyDisk:
    made = FaultyDisk(workers, sqlite_place, reg_sqlite, tmp_path)
    for _ in range(3):
        reg_sqlite.publish(Path(made.new_folder()), NAME, principal=OPERATOR)
    return made


def arguments_of(disk: FaultyDisk, operation: str) -> Callable[[], dict[str, Any]]:
    turns = count()
    if operation == "publish":
        return lambda: {"folder": disk.new_folder(), "name": NAME}
    return lambda: {"ref": f"{NAME}@{1 + next(turns) % 3}", "alias": "prod"}


def fail_each(disk: FaultyDisk, operation: str, fault: dict[str, Any], *, sampled: int | None) -> int:
    """Fail at N = 1, 2, ... until the operation has fewer; or at `sampled` of these, spread over all."""
    arguments = arguments_of(disk, operation)
    total = disk.attempt(operation, arguments(), 1 << 40, fault).operations
    assert total > 10, "the faults meet nothing"
    step = 1 if sampled is None else max(1, total // sampled)
    failed = 0
    for nth in range(1, total + 1, step):
        outcome = disk.attempt(operation, arguments(), nth, fault)
        failed += outcome.error is not None
    assert failed > 0
    return failed


@needs_compiler
@pytest.mark.parametrize("operation", ["publish", "promote"])
@pytest.mark.parametrize("what", FAULTS)
def test_an_operation_on_a_file_that_fails(disk: FaultyDisk, operation: str, what: str) -> None:
    print(operation, what, fail_each(disk, operation, FAULTS[what], sampled=SAMPLED))


@needs_compiler
@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("operation", ["publish", "promote"])
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


@pytest.mark.parametrize("operation", ["publish", "promote"])
def test_a_full_disk(small_disk: Path, tmp_path: Path, operation: str) -> None:
    """With no room, one page, two pages ...: an error and the old state, or the whole operation; then there is room."""
    with registry.open(small_disk / "registry") as reg:
        reg.register_base(base_document())
        for number in range(1, 4):
            reg.publish(write_adapter(tmp_path / f"first-{number}", seed=number), NAME, principal=OPERATOR)
        first = reg.resolve(f"{NAME}@1", principal=OPERATOR)
        refused = 0
        for pages in count():
            before = state_of(reg)
            arguments: dict[str, Any] = {"ref": f"{NAME}@{1 + pages % 3}", "alias": "prod"}
            if operation == "publish":
                folder = write_adapter(tmp_path / f"adapter-{pages}", seed=100 + pages)
                arguments = {"folder": folder, "name": NAME}
            ballast = fill(small_disk, room_bytes=pages * PAGE_BYTES)
            try:
                perform(reg, operation, arguments)
            except StorageError as error:
                refused += "Check that the disk has room" in str(error)
                assert reg.resolve(f"{NAME}@1", principal=OPERATOR) == first
                reg.pull(first, tmp_path / f"served-{pages}")
                assert state_of(reg) == before
                ballast.unlink()
                perform(reg, operation, arguments)
                assert EFFECTS[operation](before, state_of(reg), arguments)
            else:
                assert EFFECTS[operation](before, state_of(reg), arguments)
                ballast.unlink()
                if pages > refused + 3:
                    break
        check_sound(reg)
    assert refused > 0, "the disk was never full"
    print(f"{operation}: refused {refused} times")


def perform(reg: registry.Registry, operation: str, arguments: dict[str, Any]) -> None:
    if operation == "publish":
        reg.publish(arguments["folder"], arguments["name"], principal=OPERATOR)
    else:
        reg.promote(arguments["ref"], arguments["alias"], principal=OPERATOR)
