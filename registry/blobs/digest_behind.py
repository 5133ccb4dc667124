"""The SHA-256 of bytes that pass, computed on a thread of its own while their owner writes or sends the same bytes.

Hashing costs more than the disk's cache or a socket does, and releases the interpreter's lock. A small file is hashed
where it is: the thread begins with the first megabyte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

BATCH_BYTES = 1 << 20


class DigestBehind:
    """A digest of what has passed, used by one thread. Two batches are kept at most: one is hashed, one comes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._batch: list[bytes | bytearray] = []
        self._batch_bytes = 0
        self._thread: ThreadPoolExecutor | None = None
        self._hashing: Future[None] | None = None

    def update(self, piece: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes, which nobody may change any more; only what is a view is copied."""
        self._batch.append(bytes(piece) if isinstance(piece, memoryview) else piece)
        self._batch_bytes += len(piece)
        if self._batch_bytes < BATCH_BYTES:
            return
        self._wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loraplex-digest")
        self._hashing = self._thread.submit(self._hash, self._batch)
        self._batch, self._batch_bytes = [], 0

    def hexdigest(self) -> str:
        """The digest of all that has passed, in hexadecimal. More may come afterwards."""
        self._wait()
        self._hash(self._batch)
        self._batch, self._batch_bytes = [], 0
        return self._digest.hexdigest()

    def close(self) -> None:
        """End the thread; doing it again does nothing."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _wait(self) -> None:
        if self._hashing is not None:
            self._hashing.result()
            self._hashing = None

    def _hash(self, batch: Sequence[bytes | bytearray]) -> None:
        for piece in batch:
            self._digest.update(piece)
