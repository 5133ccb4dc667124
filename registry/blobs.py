"""Content-addressed files: a blob's name is the SHA-256 of its bytes.

    FOLDER/<first 2 hex>/<64 hex>    the blobs; never changed once they are there
    FOLDER/staging/<random>/<name>   copies that are being judged; whole folders, removed after use

Keeping a file: copy and hash into the staging folder, fsync, rename to its digest, fsync of the folder. A crash leaves
at most a staging folder (removed when it is a day old) or a blob that nothing refers to. Reading always verifies.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from registry.errors import IntegrityError, RejectedAdapterError, StorageError
from registry.file_entry import FileEntry
from registry.reasons import RejectReason

CHUNK_BYTES = 1 << 20
STALE_STAGING_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Staging:
    """A private copy of some files, hashed as they were copied."""

    folder: Path
    files: tuple[FileEntry, ...]


class BlobStore:
    """The blobs below one folder. Holds no state but the folder, so threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staging = folder / "staging"
        with _explained(folder):
            self._staging.mkdir(parents=True, exist_ok=True)
            self._remove_stale_staging()

    @contextmanager
    def staged(self, source: Path, names: Iterable[str]) -> Iterator[Staging]:
        """Copy the named files of a folder into a private one, which is removed at the end of the block.

        What is judged and kept is this copy, so that a file which changes meanwhile cannot slip through.
        Raises RejectedAdapterError, StorageError.
        """
        folder = self._staging / secrets.token_hex(16)
        try:
            with _explained(folder):
                folder.mkdir(mode=0o700)
            yield Staging(folder, tuple(_stage_file(source / name, folder / name) for name in names))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def keep(self, staging: Staging) -> None:
        """Move the staged files to their digests, for good. A damaged blob of the same digest is healed by it.

        Raises StorageError.
        """
        with _explained(self._folder):
            for file in staging.files:
                path = self.path_of(file.sha256)
                path.parent.mkdir(exist_ok=True)
                (staging.folder / file.path).replace(path)
                _sync_folder(path.parent)
            _sync_folder(self._folder)

    def copy_to(self, file: FileEntry, destination: Path) -> None:
        """Copy a blob to a new file, verifying its bytes on the way. Raises IntegrityError, StorageError."""
        path = self.path_of(file.sha256)
        try:
            source = path.open("rb")
        except FileNotFoundError as error:
            raise IntegrityError(path, expected=file.sha256, found=None) from error
        with source, _explained(destination), destination.open("xb") as target:
            found = _copy(source, target)
            os.fsync(target.fileno())
        if found != (file.sha256, file.size):
            destination.unlink()
            raise IntegrityError(path, expected=file.sha256, found=found[0])

    def verify(self, file: FileEntry) -> None:
        """Read a blob and check it. Raises IntegrityError."""
        path = self.path_of(file.sha256)
        if not path.is_file():
            raise IntegrityError(path, expected=file.sha256, found=None)
        found = hash_file(path)
        if found != file.sha256:
            raise IntegrityError(path, expected=file.sha256, found=found)

    def path_of(self, sha256: str) -> Path:
        """Where the blob of this digest lies, or would."""
        return self._folder / sha256[:2] / sha256

    def _remove_stale_staging(self) -> None:
        oldest_kept = time.time() - STALE_STAGING_SECONDS
        for folder in self._staging.iterdir():
            with suppress(FileNotFoundError):  # its publisher may finish at this moment
                if folder.stat().st_mtime < oldest_kept:
                    shutil.rmtree(folder, ignore_errors=True)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stage_file(source: Path, destination: Path) -> FileEntry:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        detail = f"it cannot be read ({error.strerror})"
        raise RejectedAdapterError(RejectReason.CHANGED_WHILE_READ, detail, file=source.name) from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RejectedAdapterError(RejectReason.NOT_A_PLAIN_FILE, "it is not a plain file", file=source.name)
        with _explained(destination), destination.open("xb") as target:
            sha256, size = _copy(stream, target, limit_bytes=status.st_size)
            os.fsync(target.fileno())
    if size != status.st_size:
        raise RejectedAdapterError(RejectReason.CHANGED_WHILE_READ, "its size changed", file=source.name)
    return FileEntry(source.name, size, sha256)


def _copy(source: BinaryIO, target: BinaryIO, *, limit_bytes: int | None = None) -> tuple[str, int]:
    """Copy, and return the SHA-256 and the number of bytes; stops just past the limit."""
    digest = hashlib.sha256()
    size = 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        size += len(chunk)
        if limit_bytes is not None and size > limit_bytes:
            break
    target.flush()
    return digest.hexdigest(), size


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({error.strerror}). "
            "Check that the disk has room and that the folder may be written.",
            path=path,
        ) from error
