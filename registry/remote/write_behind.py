"""Writes and hashes on threads of its own what the network brings, so that the next bytes do not wait for it."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, Self

from registry.blobs.digest_behind import DigestBehind
from registry.blobs.early_writeback import EarlyWriteback
from registry.blobs.staging_area import write_all
from registry.file_entry import Blob

BATCH_BYTES = 1 << 20


class WriteBehind:
    """An unbuffered file that is being written, and what of it has come. One thread uses it.

    Two batches are in memory at most: one that is written, one that arrives.
    """

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loraplex-download")
        self._writeback = EarlyWriteback(target.fileno())
        self._digest = DigestBehind()
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._writing: Future[None] | None = None
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._digest.close()

    def write(self, piece: bytes) -> None:
        """Append bytes. Raises the OSError of bytes before them."""
        self._batch.append(piece)
        self._batch_bytes += len(piece)
        self.size += len(piece)
        if self._batch_bytes >= BATCH_BYTES:
            self._pass_on()

    def finish(self) -> Blob:
        """Wait until all is written and on the disk, and say what it was. Raises OSError."""
        self._pass_on()
        self._wait()
        os.fsync(self._target.fileno())
        return Blob(self._digest.hexdigest(), self.size)

    def _pass_on(self) -> None:
        joined = b"".join(self._batch)  # few large calls: threads that wait for one another cost more than a copy
        self._batch, self._batch_bytes = [], 0
        self._digest.update(joined)
        self._wait()
        self._writing = self._thread.submit(self._write, joined)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, joined: bytes) -> None:
        write_all(self._target, joined)
        self._writeback.wrote(len(joined))
