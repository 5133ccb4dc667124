"""Pulling: a version's files, each verified while it is copied, appear in a folder all at once or not at all."""

from __future__ import annotations

import secrets
import shutil
import stat
from pathlib import Path
from typing import Protocol

from registry.blobs import hash_file
from registry.errors import ConflictError, NotFoundError, StorageError
from registry.file_entry import FileEntry
from registry.version import Version


class FileSource(Protocol):
    """Where the files come from: a blob store, or another machine's registry."""

    def copy_to(self, file: FileEntry, destination: Path, /) -> None:
        """Copy a file to a new one, verifying its bytes on the way. Raises IntegrityError, StorageError."""


def pull(blobs: FileSource, version: Version, destination: Path) -> Path:
    """Put the version's files into `destination` and return it.

    The folder must not exist, be empty, or hold exactly this version already (which is verified, and left).
    Raises ConflictError, IntegrityError, StorageError.
    """
    if _holds(destination, version):
        return destination
    if destination.exists() and destination.samefile(Path.cwd()):
        raise ConflictError(f"{destination} is the working directory, which cannot be replaced. Name a folder in it.")
    partial = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.partial")
    try:
        partial.mkdir(parents=True)
        for file in version.files:
            blobs.copy_to(file, partial / file.path)
        partial.rename(destination)
    except OSError as error:
        if _holds(destination, version):
            return destination
        raise StorageError(
            f"{destination} cannot be written ({error.strerror}). "
            "Check that the disk has room and that the folder may be written.",
            path=destination,
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def find_file(version: Version, path: str) -> FileEntry:
    """The version's file of this name. Raises NotFoundError."""
    for file in version.files:
        if file.path == path:
            return file
    ref = f"{version.adapter}@{version.number}"
    raise NotFoundError("file", path, f"See the files of a version with `loraplex show {ref}`.")


def _holds(destination: Path, version: Version) -> bool:
    """Whether the folder is this version, to the byte. Raises ConflictError where it holds something else."""
    try:
        mode = destination.stat().st_mode  # asked once: another process may make the folder at any moment
    except (FileNotFoundError, NotADirectoryError):
        if not destination.is_symlink():
            return False
        mode = 0
    if not stat.S_ISDIR(mode):
        raise ConflictError(f"{destination} is there already and is not a folder. Choose another destination.")
    present = sorted(entry.name for entry in destination.iterdir())
    if not present:
        return False
    is_same = present == sorted(file.path for file in version.files) and all(
        not (destination / file.path).is_symlink() and hash_file(destination / file.path) == file.sha256
        for file in version.files
    )
    if not is_same:
        raise ConflictError(
            f"{destination} holds other files than {version.adapter}@{version.number}. "
            "Choose another destination, or empty this one first."
        )
    return True
