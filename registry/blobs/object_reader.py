"""Reads a range of a verified object: from the store, or from a local copy where it had to be verified first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from registry.blobs.object_client import RANGE_BYTES, ObjectClient, ObjectReplacedError, ObjectState
from registry.blobs.staging_area import CHUNK_BYTES, explained

Spool = Callable[[], Path]
"""Makes a verified local copy of the whole object."""


class ObjectReader:
    """A `BlobReader`. Where the object was replaced since it was verified, it goes on with a verified copy."""

    def __init__(self, client: ObjectClient, state: ObjectState | None, spool: Spool, start: int, end: int) -> None:
        """`state` None: the object is not verified yet. Raises IntegrityError, StorageError."""
        self.size = end - start
        self._client = client
        self._state = state
        self._spool = spool
        self._at = start
        self._end = end
        self._copy: BinaryIO | None = None
        if state is None:
            self._take_copy()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks. Raises IntegrityError, StorageError."""
        while self._at < self._end:
            chunk = self._next()
            self._at += len(chunk)
            yield chunk

    def close(self) -> None:
        """Give up the local copy."""
        if self._copy is not None:
            self._copy.close()

    def _next(self) -> bytes:
        if self._copy is None:
            assert self._state is not None
            try:
                return self._client.read(self._state, self._at, min(self._end, self._at + RANGE_BYTES))
            except (ObjectReplacedError, FileNotFoundError):
                self._take_copy()
        assert self._copy is not None
        return self._copy.read(min(CHUNK_BYTES, self._end - self._at))

    def _take_copy(self) -> None:
        path = self._spool()
        with explained(path):
            self._copy = path.open("rb")
            path.unlink()
            self._copy.seek(self._at)
