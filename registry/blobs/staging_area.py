"""The local folder in which files are copied, received and hashed before they become blobs.

FOLDER/<random>/<name>   one publish, upload or laid-out tree each; removed after use, or when a day old
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from registry.blobs.blob_store import Staging
from registry.blobs.digest_behind import DigestBehind
from registry.blobs.early_writeback import EarlyWriteback
from registry.errors import RejectedAdapterError, StorageError, UploadMismatchError
from registry.failpoints import reach
from registry.file_entry import Blob, FileEntry
from registry.reasons import RejectReason

CHUNK_BYTES = 1 << 20
STALE_STAGING_SECONDS = 24 * 3600
Place = Callable[[Path, Blob], None]
"""Moves a synced local file to where the store keeps the blob."""


class StagingArea:
    """Private folders below one. Holds no state but the folder, so threads and processes may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.remove_stale(now_seconds=time.time())

    @contextmanager
    def private_folder(self) -> Iterator[Path]:
        """A new folder that is removed at the end of the block."""
        folder = self.folder / secrets.token_hex(16)
        try:
            with explained(folder):
                folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def staged(self, source: Path, names: Iterable[str]) -> Iterator[Staging]:
        """Copy the named files of a folder into a private one; see `BlobStore.staged`."""
        with self.private_folder() as folder:
            yield Staging(folder, tuple(_stage_file(source / name, folder / name) for name in names))

    @contextmanager
    def receive(self, place: Place, *, limit_bytes: int | None) -> Iterator[Receipt]:
        """A writer into a private file, which `place` gets when it is finished; see `BlobStore.receive`."""
        with self.private_folder() as folder:
            path = folder / "blob"
            with explained(path):
                target = path.open("xb", buffering=0)
            with target, closing(DigestBehind()) as digest:
                yield Receipt(target, path, digest, place, limit_bytes)

    def remove_stale(self, *, now_seconds: float) -> None:
        """Remove what crashes left behind a day ago. Raises StorageError."""
        oldest_kept = now_seconds - STALE_STAGING_SECONDS
        with explained(self.folder):
            entries = list(self.folder.iterdir())
        for entry in entries:
            with explained(entry), suppress(FileNotFoundError):  # its owner may finish at this moment
                if entry.stat().st_mtime >= oldest_kept:
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()


class Receipt:
    """A blob on its way in: bytes are hashed as they are written. One thread at a time writes; `finish` ends it."""

    def __init__(
        self, target: BinaryIO, path: Path, digest: DigestBehind, place: Place, limit_bytes: int | None
    ) -> None:
        self._target = target
        self._writeback = EarlyWriteback(target.fileno())
        self._path = path
        self._place = place
        self._limit_bytes = limit_bytes
        self._digest = digest
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. Raises UploadMismatchError beyond the limit, StorageError."""
        if self._limit_bytes is not None and self._size + len(chunk) > self._limit_bytes:
            raise UploadMismatchError(f"it has more than the {self._limit_bytes} bytes that were announced")
        self._digest.update(chunk)
        with explained(self._path):
            reach("blobs.write")
            write_all(self._target, chunk)
        self._writeback.wrote(len(chunk))
        self._size += len(chunk)

    def finish(self, expected: Blob | None = None) -> Blob:
        """Sync, compare and place the blob. Raises UploadMismatchError, StorageError."""
        blob = Blob(self._digest.hexdigest(), self._size)
        check_expected(blob, expected)
        with explained(self._path):
            os.fsync(self._target.fileno())
            self._target.close()
        self._place(self._path, blob)
        return blob


def check_expected(found: Blob, expected: Blob | None) -> None:
    """Refuse an upload that is not what was announced. Raises UploadMismatchError."""
    if expected is None or found == expected:
        return
    if found.size != expected.size:
        raise UploadMismatchError(f"it has {found.size} bytes, and {expected.size} were announced")
    raise UploadMismatchError(f"its SHA-256 is {found.sha256}, and {expected.sha256} was announced")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy(source: BinaryIO, target: BinaryIO, *, limit_bytes: int | None = None) -> Blob:
    """Copy to an unbuffered file, and say what was copied; stops just past the limit."""
    writeback = EarlyWriteback(target.fileno())
    size = 0
    with closing(DigestBehind()) as digest:
        while chunk := source.read(CHUNK_BYTES):
            reach("blobs.write")
            digest.update(chunk)
            write_all(target, chunk)
            writeback.wrote(len(chunk))
            size += len(chunk)
            if limit_bytes is not None and size > limit_bytes:
                break
        writeback.end()
        return Blob(digest.hexdigest(), size)


def write_all(target: BinaryIO, chunk: bytes | bytearray | memoryview) -> None:
    """Write to an unbuffered file until everything is written."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[target.write(rest) :]


@contextmanager
def explained(path: Path, *, verb: str = "written") -> Iterator[None]:
    """Turn errors of the file system into StorageError. `verb` says what could not be done."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be {verb} ({error.strerror}). "
            "Check that the disk has room and that the folder may be written.",
            path=path,
        ) from error


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
        with explained(destination), destination.open("xb", buffering=0) as target:
            blob = copy(stream, target, limit_bytes=status.st_size)
    if blob.size != status.st_size:
        raise RejectedAdapterError(RejectReason.CHANGED_WHILE_READ, "its size changed", file=source.name)
    return FileEntry(source.name, blob.size, blob.sha256)
