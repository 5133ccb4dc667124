"""An upload in parts: each part is written to its place in one file; when all are there, the file becomes the blob.

    SCRATCH/parts-<session>/content      the bytes, as far as they have come
    SCRATCH/parts-<session>/<number>     a part that is complete; the text is its ETag

An ETag says which of its uploads a part is; what the bytes are is checked once, when all are there. Parts may come
again and in any order. A session that is never completed is removed with what else is old in SCRATCH.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from registry.blobs import BlobStore
from registry.blobs.early_writeback import EarlyWriteback
from registry.blobs.staging_area import explained
from registry.errors import UploadMismatchError
from registry.file_entry import Blob

ELSEWHERE = " (where several servers share an address, each needs an --own-url)"


@dataclass(frozen=True)
class PartsPlan:
    """How a blob is cut: every part has `part_bytes`, but for the last one."""

    blob: Blob
    part_bytes: int

    @property
    def count(self) -> int:
        """The number of parts."""
        return max(1, -(-self.blob.size // self.part_bytes))

    def size_of(self, part: int) -> int:
        """The bytes of a part, counted from 1."""
        assert 1 <= part <= self.count, part
        return min(self.part_bytes, self.blob.size - (part - 1) * self.part_bytes)


class PartsSession:
    """One upload in parts. Threads and processes may share its folder."""

    def __init__(self, blobs: BlobStore, session: str, plan: PartsPlan) -> None:
        self._blobs = blobs
        self._plan = plan
        self._folder = blobs.scratch / f"parts-{session}"

    def open_part(self, part: int) -> PartWriter:
        """Begin to write a part."""
        content = self._folder / "content"
        with explained(content):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(content, os.O_WRONLY | os.O_CREAT, 0o600)
        start = (part - 1) * self._plan.part_bytes
        return PartWriter(descriptor, self._folder / str(part), start, self._plan.size_of(part))

    def complete(self, etags: dict[int, str]) -> None:
        """Make the blob of the parts. Raises UploadMismatchError, StorageError."""
        for part in range(1, self._plan.count + 1):
            mark = self._folder / str(part)
            if not mark.is_file():
                raise UploadMismatchError(f"part {part} of {self._plan.count} did not come to this server{ELSEWHERE}")
            with explained(mark, verb="read"):
                etag = mark.read_text("ascii")
            if etags.get(part) != etag:
                raise UploadMismatchError(f"part {part} of {self._plan.count} is not what was sent")
        self._blobs.put_file(self._folder / "content", self._plan.blob)
        shutil.rmtree(self._folder, ignore_errors=True)


class PartWriter:
    """A part on its way to its place. Used by one thread at a time."""

    def __init__(self, descriptor: int, mark: Path, start: int, size: int) -> None:
        self._descriptor = descriptor
        self._mark = mark
        self._writeback = EarlyWriteback(descriptor, start=start)
        self._at = start
        self._left = size

    def write(self, piece: bytes) -> None:
        """Append bytes. Raises UploadMismatchError beyond the part's size, StorageError."""
        if len(piece) > self._left:
            raise UploadMismatchError("the part has more bytes than it should have")
        with explained(self._mark):
            view = memoryview(piece)
            while view:
                written = os.pwrite(self._descriptor, view, self._at)
                self._at += written
                self._left -= written
                view = view[written:]
        self._writeback.wrote(len(piece))

    def finish(self) -> str:
        """Mark the part as complete and return its ETag. Raises UploadMismatchError, StorageError."""
        if self._left:
            raise UploadMismatchError(f"the part ended {self._left:,} bytes early")
        etag = f'"{secrets.token_hex(16)}"'
        with explained(self._mark):
            partial = self._mark.with_suffix(".partial")
            partial.write_text(etag, "ascii")
            partial.replace(self._mark)
        return etag

    def close(self) -> None:
        """Give up the file."""
        os.close(self._descriptor)
