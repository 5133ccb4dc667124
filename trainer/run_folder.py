"""The folder of a run: what lies where, and who may begin or resume in it.

    RUN/adapter/        the adapter or mixture, ready to publish      written whole at the end
    RUN/experts/        the experts of a mixture that trained in it, numbered from 1
    RUN/checkpoints/    the state to resume from, and the best adapter so far
    RUN/loss.png        the curve
    RUN/summary.json    the result; its presence means that the run is finished

It does: claim a folder, refuse one that is taken, give back one that stayed empty, and write files whole or not at all.
It does not: know what a checkpoint holds (`checkpoint`).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import RunFolderError
from trainer.job import Job


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def adapter(self) -> Path:
        """The finished adapter, or mixture."""
        return self.path / "adapter"

    @property
    def experts(self) -> Path:
        """The experts that trained in a mixture, each in a folder of its number."""
        return self.path / "experts"

    @property
    def checkpoints(self) -> Path:
        """States to resume from."""
        return self.path / "checkpoints"

    @property
    def plot(self) -> Path:
        """The picture of the losses."""
        return self.path / "loss.png"

    @property
    def summary(self) -> Path:
        """The result as JSON."""
        return self.path / "summary.json"


def find_run_folder(job: Job, home: Path, *, resume: bool, overwrite: bool) -> RunFolder:
    """The folder of `job`, as it is. Raises RunFolderError where it is taken or cannot be resumed."""
    folder = RunFolder(job.output.run or home / "runs" / job.run_name)
    if folder.path.exists() and not folder.path.is_dir():
        raise RunFolderError(folder.path, "is a file; a run needs a folder")
    is_run = folder.checkpoints.is_dir() or folder.summary.is_file()
    if resume:
        if folder.summary.is_file():
            raise RunFolderError(folder.path, "that run is finished; there is nothing to resume")
        if not is_run:
            raise RunFolderError(folder.path, "holds no run to resume; leave --resume out to begin one")
        return folder
    if is_run and not overwrite:
        raise RunFolderError(
            folder.path,
            "holds an earlier run: go on with it (--resume), replace it (--overwrite) or choose another (--run)",
        )
    if folder.path.is_dir() and not is_run and any(folder.path.iterdir()):
        raise RunFolderError(folder.path, "holds files that are no run of ours; choose an empty or a new folder")
    return folder


@contextmanager
def begun_run(folder: RunFolder, *, overwrite: bool) -> Iterator[None]:
    """A new run in `folder`, with `overwrite` in the place of what an earlier one left there. Raises RunFolderError
    where another has begun since the folder was found free.

    One that fails inside before it has kept anything leaves no folder that would hold up the next one.
    """
    if overwrite:
        for part in (folder.adapter, folder.experts, folder.checkpoints):
            shutil.rmtree(part, ignore_errors=True)
        for file in (folder.plot, folder.summary):
            file.unlink(missing_ok=True)
    try:
        folder.checkpoints.mkdir(parents=True)
    except FileExistsError as error:
        raise RunFolderError(folder.path, "holds a run that began meanwhile; choose another (--run)") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: there is something to resume
            folder.checkpoints.rmdir()
            folder.path.rmdir()
        raise


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which takes `target`'s place when the block ends well and is removed otherwise."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield fresh
        for path in [*fresh.rglob("*"), fresh]:
            sync(path)
        old = fresh.with_name(fresh.name + "-old")
        if target.exists():
            target.rename(old)
        fresh.chmod(0o755)
        fresh.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write `document` as JSON, whole or not at all."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    replace_file(fresh, path)


def replace_file(fresh: Path, target: Path) -> None:
    """Put a file that is written whole in `target`'s place, so that a crash leaves one or the other."""
    sync(fresh)
    fresh.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
