"""Files on their way to and from a registry: hashed as they pass, with progress told to whoever wants to know."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import httpx

from registry.blobs.digest_behind import DigestBehind
from registry.errors import ConflictError, IntegrityError, StorageError, UploadMismatchError
from registry.file_entry import Blob, FileEntry
from registry.principal import Principal
from registry.remote.transport import TRIES, Transport, part
from registry.remote.write_behind import WriteBehind
from registry.version import Version

Progress = Callable[[str, int, int], None]
"""Told of a file's name, the bytes of it that have passed, and its size."""


class HashingFile:
    """A file that is read for an upload, hashed as it passes."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self._path = path
        self._stream: BinaryIO = path.open("rb")
        self._progress = progress
        self._digest = DigestBehind()
        self._size = os.fstat(self._stream.fileno()).st_size
        self._passed_bytes = 0

    def fileno(self) -> int:
        """For the size, which httpx asks of the file."""
        return self._stream.fileno()

    def read(self, count: int = -1) -> bytes:
        """The next bytes."""
        data = self._stream.read(count)
        self._digest.update(data)
        self._passed_bytes += len(data)
        if self._progress is not None and data:
            self._progress(self._path.name, self._passed_bytes, self._size)
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        self._digest.close()

    def entry(self) -> FileEntry:
        """What has passed."""
        return FileEntry(self._path.name, self._passed_bytes, self._digest.hexdigest())


def check_uploaded(version: Version, sent: Sequence[HashingFile]) -> None:
    """Raises UploadMismatchError where the registry holds other bytes than were sent."""
    if sorted(version.files) != sorted(file.entry() for file in sent):
        raise UploadMismatchError(f"{version.adapter}@{version.number} holds other bytes than were sent")


class RemoteBlobs:
    """The files of one version, as `registry.pull.pull` takes them."""

    def __init__(self, http: Transport, version: Version, principal: Principal, progress: Progress | None) -> None:
        self._http = http
        self._principal = principal
        self._progress = progress
        tenant, _, name = version.adapter.partition("/")
        self._path = f"/adapters/{part(tenant)}/{part(name)}/versions/{part(version.digest)}/files/"

    def copy_to(self, file: FileEntry, destination: Path) -> None:
        """Download a file to a new one, verified; a broken connection is taken up again where it broke.

        Raises IntegrityError, UnreachableError, StorageError.
        """
        try:
            with destination.open("xb", buffering=0) as target, WriteBehind(target) as writer:
                self._fetch(file, writer)
                found = writer.finish()
        except OSError as error:
            raise StorageError(f"{destination} cannot be written ({error.strerror}).", path=destination) from error
        if found != Blob(file.sha256, file.size):
            destination.unlink()
            raise IntegrityError(destination, expected=file.sha256, found=found.sha256)

    def _fetch(self, file: FileEntry, writer: WriteBehind) -> None:
        for tries_left in reversed(range(TRIES)):
            size = writer.size
            headers = {"range": f"bytes={size}-", "if-range": f'"{file.sha256}"'} if size else {}
            try:
                with self._http.stream(self._path + part(file.path), principal=self._principal, headers=headers) as got:
                    if size and got.status_code != httpx.codes.PARTIAL_CONTENT:
                        raise ConflictError(f"{file.path} changed while it was downloaded. Try again.")
                    for chunk in got.iter_raw():
                        writer.write(chunk)
                        if self._progress is not None:
                            self._progress(file.path, writer.size, file.size)
                        if writer.size > file.size:
                            return
                return
            except httpx.TransportError as error:
                if not tries_left:
                    raise self._http.unreachable(error) from error
        raise AssertionError("the last try returns or raises")
