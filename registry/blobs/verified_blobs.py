"""Which blobs this process has verified, and what they looked like then: a blob that changed is verified again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

REMEMBERED_BLOBS = 100_000


class VerifiedBlobs:
    """The last verified digests with a mark of the stored thing (inode and times, or an ETag). Thread-safe."""

    def __init__(self) -> None:
        self._marks: OrderedDict[str, Hashable] = OrderedDict()
        self._lock = threading.Lock()

    def mark_of(self, sha256: str) -> Hashable | None:
        """What the blob looked like when it was verified; None where it was not."""
        with self._lock:
            mark = self._marks.get(sha256)
            if mark is not None:
                self._marks.move_to_end(sha256)
            return mark

    def add(self, sha256: str, mark: Hashable) -> None:
        """Remember that the blob was sound when it looked so."""
        with self._lock:
            self._marks[sha256] = mark
            self._marks.move_to_end(sha256)
            if len(self._marks) > REMEMBERED_BLOBS:
                self._marks.popitem(last=False)

    def forget(self, sha256: str) -> None:
        """The blob was replaced, removed or found damaged."""
        with self._lock:
            self._marks.pop(sha256, None)
