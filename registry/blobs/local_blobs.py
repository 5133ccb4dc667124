"""Blobs in a folder of the local disk.

    FOLDER/<first 2 hex>/<64 hex>    the blobs; never changed once they are there
    FOLDER/staging/<random>/<name>   files on their way in; removed after use

Keeping a file: copy and hash into the staging folder, fsync, rename to its digest, fsync of the folder. A crash leaves
at most a staging folder (removed when it is a day old) or a blob that nothing refers to. Several files are synced one
after the other, then renamed, then their folders are synced: most of these syncs find their work done by the first.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Self

from registry.blobs.blob_store import Staging, StoredBlob
from registry.blobs.staging_area import (
    CHUNK_BYTES,
    Receipt,
    StagingArea,
    check_expected,
    copy,
    explained,
    hash_file,
    sync_file,
    sync_folder,
)
from registry.blobs.verified_blobs import VerifiedBlobs
from registry.errors import IntegrityError, StorageError
from registry.failpoints import reach
from registry.file_entry import Blob, FileEntry

DIGEST_CHARACTERS = 64


class LocalBlobs:
    """The blobs below one folder: a `BlobStore`. It remembers what was verified and synced; threads share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._area = StagingArea(folder / "staging")
        self._verified = VerifiedBlobs()
        self._durable_folders: set[Path] = set()

    @property
    def scratch(self) -> Path:
        """The staging folder: on the same file system as the blobs."""
        return self._area.folder

    def staged(self, source: Path, names: Iterable[str]) -> AbstractContextManager[Staging]:
        """See `BlobStore`."""
        return self._area.staged(source, names)

    def keep(self, staging: Staging) -> None:
        """See `BlobStore`."""
        for file in staging.files:
            with explained(staging.folder / file.path):
                sync_file(staging.folder / file.path)
        for file in staging.files:
            self._rename(staging.folder / file.path, file.sha256)
        self._sync(file.sha256 for file in staging.files)

    def receive(self, *, limit_bytes: int | None = None) -> AbstractContextManager[Receipt]:
        """See `BlobStore`."""
        return self._area.receive(self._place, limit_bytes=limit_bytes)

    def put_file(self, path: Path, expected: Blob | None = None) -> Blob:
        """See `BlobStore`."""
        with explained(path):
            blob = Blob(hash_file(path), path.stat().st_size)
            check_expected(blob, expected)
            sync_file(path)
        self._place(path, blob)
        return blob

    def open(self, blob: Blob | FileEntry, *, start: int = 0, end: int | None = None) -> LocalReader:
        """See `BlobStore`."""
        end = blob.size if end is None else end
        assert 0 <= start <= end <= blob.size, (start, end, blob)
        stream = self._open_verified(blob)
        stream.seek(start)
        return LocalReader(stream, end - start, self.path_of(blob.sha256), blob.sha256)

    def read(self, blob: Blob | FileEntry) -> bytes:
        """See `BlobStore`."""
        self._verified.forget(blob.sha256)
        with self._open_verified(blob) as stream:
            return stream.read()

    def copy_to(self, blob: Blob | FileEntry, destination: Path) -> None:
        """See `BlobStore`."""
        path = self.path_of(blob.sha256)
        with self._opened(blob) as source, explained(destination), destination.open("xb", buffering=0) as target:
            found = copy(source, target)
            os.fsync(target.fileno())
        if found != Blob(blob.sha256, blob.size):
            destination.unlink()
            raise IntegrityError(path, expected=blob.sha256, found=found.sha256)

    @contextmanager
    def laid_out(self, files: Iterable[FileEntry]) -> Iterator[Path]:
        """See `BlobStore`. The files are hard links to the blobs, where the file system has them."""
        with self._area.private_folder() as folder:
            for file in files:
                target = folder / file.path
                with explained(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                self._open_verified(file).close()
                try:
                    os.link(self.path_of(file.sha256), target)
                except OSError:
                    self.copy_to(file, target)
            yield folder

    def verify(self, blob: Blob | FileEntry) -> None:
        """See `BlobStore`."""
        self._verified.forget(blob.sha256)
        self._open_verified(blob).close()

    def size_of(self, sha256: str) -> int | None:
        """See `BlobStore`."""
        path = self.path_of(sha256)
        with explained(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def all(self) -> Iterator[StoredBlob]:
        """See `BlobStore`."""
        with explained(self._folder):
            folders = sorted(folder for folder in self._folder.iterdir() if len(folder.name) == 2 and folder.is_dir())
        for folder in folders:
            with explained(folder):
                entries = [entry for entry in os.scandir(folder) if len(entry.name) == DIGEST_CHARACTERS]
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield StoredBlob(entry.name, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))

    def delete(self, sha256: str) -> bool:
        """See `BlobStore`."""
        path = self.path_of(sha256)
        self._verified.forget(sha256)
        with explained(path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            sync_folder(path.parent)
        return True

    def local_path(self, blob: Blob | FileEntry) -> Path:
        """See `BlobStore`."""
        self._open_verified(blob).close()
        return self.path_of(blob.sha256)

    def download_url(self, blob: Blob | FileEntry, *, seconds: int) -> None:
        """None: a folder has no addresses."""

    def upload_url(self, blob: Blob, *, scope: str, seconds: int) -> None:
        """None: a folder has no addresses."""

    def adopt(self, blob: Blob, *, scope: str) -> bool:
        """False: nothing was put to an address that does not exist."""
        return False

    def remove_stale(self, *, now: datetime) -> None:
        """See `BlobStore`."""
        self._area.remove_stale(now_seconds=now.timestamp())

    def close(self) -> None:
        """Nothing is open between calls."""

    def path_of(self, sha256: str) -> Path:
        """Where the blob of this digest lies, or would."""
        return self._folder / sha256[:2] / sha256

    def _place(self, staged: Path, blob: Blob) -> None:
        self._rename(staged, blob.sha256)
        self._sync((blob.sha256,))

    def _rename(self, staged: Path, sha256: str) -> None:
        """Put a synced file where its blob lies. It is verified: this process hashed it, or the bytes that it wrote."""
        path = self.path_of(sha256)
        with explained(self._folder):
            try:
                path.parent.mkdir()
                self._durable_folders.discard(path.parent)
            except FileExistsError:
                pass
            reach("blobs.before_rename")
            os.utime(staged)  # its age counts from now: garbage collection spares what is young
            staged.replace(path)
            reach("blobs.after_rename")
            status = path.stat()
        self._verified.add(sha256, _mark_of(status))

    def _sync(self, digests: Iterable[str]) -> None:
        """Make the places of these blobs durable; and those of their folders, where this process did not do it yet."""
        folders = {self.path_of(sha256).parent for sha256 in digests}
        with explained(self._folder):
            for folder in folders:
                sync_folder(folder)
            if not folders <= self._durable_folders:
                sync_folder(self._folder)
                self._durable_folders |= folders

    def _opened(self, blob: Blob | FileEntry) -> BinaryIO:
        path = self.path_of(blob.sha256)
        try:
            return path.open("rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise IntegrityError(path, expected=blob.sha256, found=None) from error
        except OSError as error:
            raise StorageError(f"{path} cannot be read ({error.strerror}). Check the disk.", path=path) from error

    def _open_verified(self, blob: Blob | FileEntry) -> BinaryIO:
        """The open file, at its beginning; its bytes are hashed where this process has not seen it so."""
        stream = self._opened(blob)
        try:
            status = os.fstat(stream.fileno())
            mark = _mark_of(status)
            if self._verified.mark_of(blob.sha256) != mark:
                found = _hash(stream, self.path_of(blob.sha256))
                if found != Blob(blob.sha256, blob.size):
                    raise IntegrityError(self.path_of(blob.sha256), expected=blob.sha256, found=found.sha256)
                self._verified.add(blob.sha256, mark)
                stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return stream


class LocalReader:
    """A range of an open file: a `BlobReader`. The file stays readable when its blob is deleted meanwhile."""

    def __init__(self, stream: BinaryIO, size: int, path: Path, sha256: str) -> None:
        self.size = size
        self._stream = stream
        self._path = path
        self._sha256 = sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks. Raises IntegrityError where the file ends too early, StorageError."""
        rest = self.size
        while rest:
            chunk = _read(self._stream, min(rest, CHUNK_BYTES), self._path)
            if not chunk:
                raise IntegrityError(self._path, expected=self._sha256, found=hash_file(self._path))
            rest -= len(chunk)
            yield chunk

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _mark_of(status: os.stat_result) -> tuple[int, int, int]:
    """What a file looks like; one that was written to or replaced looks otherwise."""
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(stream: BinaryIO, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}). Check the disk.", path=path) from error


def _hash(stream: BinaryIO, path: Path) -> Blob:
    digest = hashlib.sha256()
    size = 0
    while chunk := _read(stream, CHUNK_BYTES, path):
        digest.update(chunk)
        size += len(chunk)
    return Blob(digest.hexdigest(), size)
