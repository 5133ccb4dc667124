"""What the registry needs of a store of blobs. Every implementation passes tests/registry/test_blob_stores.py.

A blob is there whole or not at all, whatever crashes; writing hashes, and the first read of a process verifies before
it hands out a byte, unless this process wrote the blob and nothing has touched it since. Damaged or missing bytes are
an IntegrityError, a store that fails is a StorageError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self

from registry.file_entry import Blob, FileEntry


@dataclass(frozen=True)
class Staging:
    """A private copy of some files, hashed as they were copied; what keeps them makes them durable."""

    folder: Path
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class StoredBlob:
    """A blob as it lies in the store. `modified_at` is when it was put there last."""

    sha256: str
    size: int
    modified_at: datetime


class BlobWriter(Protocol):
    """A blob on its way in, hashed as it is written. Used by one thread at a time."""

    @property
    def size(self) -> int:
        """Bytes written so far."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes. Raises UploadMismatchError beyond the limit, StorageError."""

    def finish(self, expected: Blob | None = None) -> Blob:
        """Place what was written under its digest, for good, and return it.

        Raises UploadMismatchError where it is not what the caller expects: nothing is kept then. Raises StorageError.
        """


class BlobReader(Protocol):
    """The verified bytes of a blob, or of a range of it, in chunks. Close it, or use it as a context."""

    @property
    def size(self) -> int:
        """Bytes that it yields."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Give up what is open; doing it again does nothing."""


class BlobStore(Protocol):
    """Blobs by digest. Threads and processes may share a store."""

    @property
    def scratch(self) -> Path:
        """A local folder for files on their way. What is in it for more than a day may be removed."""

    def staged(self, source: Path, names: Iterable[str]) -> AbstractContextManager[Staging]:
        """Copy the named files of a folder into a private one, which is removed at the end of the block.

        What is judged and kept is this copy, so that a file which changes meanwhile cannot slip through.
        Raises RejectedAdapterError, StorageError.
        """

    def keep(self, staging: Staging) -> None:
        """Place the staged files under their digests, for good. A damaged blob of the same digest is healed by it.

        The staged files may be gone afterwards. Raises StorageError.
        """

    def receive(self, *, limit_bytes: int | None = None) -> AbstractContextManager[BlobWriter]:
        """A writer for bytes that arrive in chunks. What is not finished when the block ends is removed."""

    def put_file(self, path: Path, expected: Blob | None = None) -> Blob:
        """Place a local file of `scratch` under its digest, for good; it is gone from there afterwards.

        Raises UploadMismatchError, StorageError.
        """

    def open(self, blob: Blob | FileEntry, *, start: int = 0, end: int | None = None) -> BlobReader:
        """Read the bytes from `start` up to, not including, `end` (None: to the last one).

        The first time in a process that did not write it, the whole blob is verified before this returns.
        Raises IntegrityError, StorageError.
        """

    def read(self, blob: Blob | FileEntry) -> bytes:
        """All bytes of a small blob, verified at each call. Raises IntegrityError, StorageError."""

    def copy_to(self, blob: Blob | FileEntry, destination: Path) -> None:
        """Copy a blob to a new file, verifying its bytes on the way. Raises IntegrityError, StorageError."""

    def laid_out(self, files: Iterable[FileEntry]) -> AbstractContextManager[Path]:
        """A private folder with these files, verified, to be read only; it is removed at the end of the block.

        Raises IntegrityError, StorageError.
        """

    def verify(self, blob: Blob | FileEntry) -> None:
        """Read a blob and check it, each time. Raises IntegrityError, StorageError."""

    def size_of(self, sha256: str) -> int | None:
        """The size of the blob as it lies there, unverified; None where there is none. Raises StorageError."""

    def all(self) -> Iterator[StoredBlob]:
        """Every blob, in no order; one that comes or goes meanwhile may be missing. Raises StorageError."""

    def delete(self, sha256: str) -> bool:
        """Remove a blob; False where there was none. That nothing refers to it is the caller's care."""

    def local_path(self, blob: Blob | FileEntry) -> Path | None:
        """The file that is this blob, verified as by `open`, to be read only; None where the store is not local."""

    def download_url(self, blob: Blob | FileEntry, *, seconds: int) -> str | None:
        """A presigned address to read the verified blob from; None where direct transfers are off."""

    def upload_url(self, blob: Blob, *, scope: str, seconds: int) -> str | None:
        """A presigned address to PUT the blob to, in whole; None where direct transfers are off.

        `scope` separates callers who do not trust each other. The blob is not there before `adopt`.
        """

    def adopt(self, blob: Blob, *, scope: str) -> bool:
        """Place what was put to `upload_url`, read back and verified; False where nothing was put there.

        Raises UploadMismatchError, StorageError.
        """

    def remove_stale(self, *, now: datetime) -> None:
        """Remove what crashes and abandoned uploads left behind a day ago. Opening does it, too."""

    def close(self) -> None:
        """Give up what is open."""
