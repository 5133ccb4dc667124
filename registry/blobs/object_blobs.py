"""Blobs in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure.

    PREFIX/blobs/<first 2 hex>/<64 hex>   the blobs
    PREFIX/incoming/<random>              on their way in; removed after use, or when a day old
    PREFIX/uploads/<scope>/<64 hex>       what clients put through presigned addresses, until it is adopted

Keeping a file: hash it into the local staging folder, then make the key of its digest hold it, read back and compared.

- A sound blob that is there already stays.
- A small one that is not there is created: put under the condition that nothing is there, all at once, and read back.
- Otherwise it is put to an incoming key, read back there, and copied to its digest within the store.

So a key of a digest never shows a part of a blob, and a sound blob is never replaced by bytes that were changed on the
way. A crash leaves at most an incoming object, or a blob that nothing refers to. Stores copy COPY_BYTES at most: what
is larger is put to its digest directly, which they do all at once too, and read back there.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from registry.blobs.blob_store import Staging, StoredBlob
from registry.blobs.object_address import ObjectAddress
from registry.blobs.object_client import ObjectClient, ObjectReplacedError, ObjectState, Patience
from registry.blobs.object_reader import ObjectReader
from registry.blobs.staging_area import (
    STALE_STAGING_SECONDS,
    Receipt,
    StagingArea,
    check_expected,
    explained,
    hash_file,
    write_all,
)
from registry.blobs.verified_blobs import VerifiedBlobs
from registry.errors import IntegrityError, StorageError
from registry.failpoints import reach
from registry.file_entry import Blob, FileEntry

COPY_BYTES = 5 << 30
CREATE_BYTES = 8 << 20
PLACE_ATTEMPTS = 3
KEY = re.compile(r"blobs/[0-9a-f]{2}/([0-9a-f]{64})")
SCOPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class ObjectBlobs:
    """The blobs of one bucket and prefix: a `BlobStore`. Its only state is what was verified; threads may share it."""

    def __init__(self, address: str, scratch: Path, patience: Patience | None = None) -> None:
        """Open the store and remove what crashes left behind. Raises InvalidValueError, StorageError."""
        self._client = ObjectClient(ObjectAddress.parse(address), patience or Patience())
        self._area = StagingArea(scratch)
        self._verified = VerifiedBlobs()
        self.remove_stale(now=datetime.now(UTC))

    @property
    def scratch(self) -> Path:
        """The local staging folder."""
        return self._area.folder

    def staged(self, source: Path, names: Iterable[str]) -> AbstractContextManager[Staging]:
        """See `BlobStore`."""
        return self._area.staged(source, names)

    def keep(self, staging: Staging) -> None:
        """See `BlobStore`."""
        for file in staging.files:
            self._place(staging.folder / file.path, Blob(file.sha256, file.size))

    def receive(self, *, limit_bytes: int | None = None) -> AbstractContextManager[Receipt]:
        """See `BlobStore`."""
        return self._area.receive(self._place, limit_bytes=limit_bytes)

    def put_file(self, path: Path, expected: Blob | None = None) -> Blob:
        """See `BlobStore`."""
        with explained(path):
            blob = Blob(hash_file(path), path.stat().st_size)
        check_expected(blob, expected)
        self._place(path, blob)
        with explained(path):
            path.unlink()
        return blob

    def open(self, blob: Blob | FileEntry, *, start: int = 0, end: int | None = None) -> ObjectReader:
        """See `BlobStore`. The first time, the blob is copied to the scratch folder, and read from there."""
        end = blob.size if end is None else end
        assert 0 <= start <= end <= blob.size, (start, end, blob)
        state = self._state(blob)
        is_verified = self._verified.mark_of(blob.sha256) == state.mark
        return ObjectReader(self._client, state if is_verified else None, lambda: self.spooled(blob), start, end)

    def spooled(self, blob: Blob | FileEntry) -> Path:
        """A verified private copy in the scratch folder, which the caller removes. Raises IntegrityError."""
        path = self.scratch / f"{secrets.token_hex(16)}.spooled"
        self.copy_to(blob, path)
        return path

    def read(self, blob: Blob | FileEntry) -> bytes:
        """See `BlobStore`."""
        chunks: list[bytes] = []
        self._check(blob, chunks.append)
        return b"".join(chunks)

    def copy_to(self, blob: Blob | FileEntry, destination: Path) -> None:
        """See `BlobStore`."""
        with explained(destination), destination.open("xb", buffering=0) as target:
            try:
                self._check(blob, lambda chunk: write_all(target, chunk))
                os.fsync(target.fileno())
            except BaseException:
                destination.unlink()
                raise

    @contextmanager
    def laid_out(self, files: Iterable[FileEntry]) -> Iterator[Path]:
        """See `BlobStore`."""
        with self._area.private_folder() as folder:
            for file in files:
                target = folder / file.path
                with explained(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_to(file, target)
            yield folder

    def verify(self, blob: Blob | FileEntry) -> None:
        """See `BlobStore`."""
        self._check(blob, lambda chunk: None)

    def size_of(self, sha256: str) -> int | None:
        """See `BlobStore`."""
        state = self._client.head(key_of(sha256))
        return None if state is None else state.size

    def all(self) -> Iterator[StoredBlob]:
        """See `BlobStore`."""
        for state in self._client.all("blobs/"):
            match = KEY.fullmatch(state.key)
            if match:
                yield StoredBlob(match[1], state.size, state.modified_at)

    def delete(self, sha256: str) -> bool:
        """See `BlobStore`."""
        self._verified.forget(sha256)
        was_there = self._client.head(key_of(sha256)) is not None
        self._client.delete(key_of(sha256))
        return was_there

    def local_path(self, blob: Blob | FileEntry) -> None:
        """None: the bytes are elsewhere."""

    def download_url(self, blob: Blob | FileEntry, *, seconds: int) -> str | None:
        """See `BlobStore`."""
        if not self._client.address.direct:
            return None
        if self._verified.mark_of(blob.sha256) != self._state(blob).mark:
            self.verify(blob)
        return self._client.sign("GET", key_of(blob.sha256), seconds)

    def upload_url(self, blob: Blob, *, scope: str, seconds: int) -> str | None:
        """See `BlobStore`. None for Azure: it wants a header with each PUT, which clients do not send."""
        address = self._client.address
        if not address.direct or address.scheme == "az" or blob.size > COPY_BYTES:
            return None
        return self._client.sign("PUT", _upload_key(blob, scope), seconds)

    def adopt(self, blob: Blob, *, scope: str) -> bool:
        """See `BlobStore`. What is read back is a copy that the client cannot change any more."""
        upload, incoming = _upload_key(blob, scope), _incoming_key()
        try:
            self._client.copy(upload, incoming)
        except FileNotFoundError:
            return False
        try:
            state = self._client.head(incoming)
            if state is None:
                raise StorageError(f"The upload at {self._client.address} vanished while it was read. Upload it again.")
            found = self._hashed(state) if state.size == blob.size else Blob("", state.size)
            if found != blob:
                self._client.delete(upload)
                check_expected(found, blob)
            self._client.copy(incoming, key_of(blob.sha256))
        finally:
            self._client.delete(incoming)
        self._verified.forget(blob.sha256)
        self._client.delete(upload)
        return True

    def close(self) -> None:
        """Nothing is open between calls."""

    def _place(self, staged: Path, blob: Blob) -> None:
        """Make the key of the digest hold these bytes, and have read them back."""
        key = key_of(blob.sha256)
        state = self._client.head(key)
        if state is not None and self._verified.mark_of(blob.sha256) == state.mark:
            return
        reach("blobs.before_rename")
        if state is None and blob.size <= CREATE_BYTES:
            state = self._client.create(key, staged, blob.size) or self._client.head(key)
        if state is None or not self._is_sound(state, blob):
            state = self._replace(key, staged, blob)
        self._verified.add(blob.sha256, state.mark)
        reach("blobs.after_rename")

    def _replace(self, key: str, staged: Path, blob: Blob) -> ObjectState:
        """Put aside, read back, and copy to the key; what arrived otherwise than it was sent is sent again."""
        incoming = key if blob.size > COPY_BYTES else _incoming_key()
        for _ in range(PLACE_ATTEMPTS):
            state = self._client.put(incoming, staged, blob.size)
            if self._is_sound(state, blob):
                break
            self._client.delete(incoming)
        else:
            raise StorageError(
                f"The blobs at {self._client.address} cannot be used: what was written there came back otherwise, "
                f"{PLACE_ATTEMPTS} times. Nothing was kept. Check the store."
            )
        if incoming != key:
            self._client.copy(incoming, key)
            self._client.delete(incoming)
        return self._state(blob)

    def _is_sound(self, state: ObjectState, blob: Blob) -> bool:
        try:
            return self._hashed(state) == blob
        except (ObjectReplacedError, FileNotFoundError):
            return False

    def _state(self, blob: Blob | FileEntry) -> ObjectState:
        state = self._client.head(key_of(blob.sha256))
        if state is None:
            raise IntegrityError(None, expected=blob.sha256, found=None)
        return state

    def _check(self, blob: Blob | FileEntry, take: Callable[[bytes], object]) -> None:
        """Read the blob and hash it; its chunks go to `take`, which must not use them before this has returned."""
        state = self._state(blob)
        try:
            found = self._hashed(state, take)
        except (ObjectReplacedError, FileNotFoundError) as error:
            raise StorageError(
                f"Blob {blob.sha256} at {self._client.address} was replaced while it was read. Try again."
            ) from error
        if found != Blob(blob.sha256, blob.size):
            self._verified.forget(blob.sha256)
            raise IntegrityError(None, expected=blob.sha256, found=found.sha256)
        self._verified.add(blob.sha256, state.mark)

    def _hashed(self, state: ObjectState, take: Callable[[bytes], object] | None = None) -> Blob:
        digest = hashlib.sha256()
        for chunk in self._client.chunks(state, 0, state.size):
            digest.update(chunk)
            if take is not None:
                take(chunk)
        return Blob(digest.hexdigest(), state.size)

    def remove_stale(self, *, now: datetime) -> None:
        """See `BlobStore`."""
        self._area.remove_stale(now_seconds=now.timestamp())
        oldest_kept = now - timedelta(seconds=STALE_STAGING_SECONDS)
        for folder in ("incoming/", "uploads/"):
            for state in list(self._client.all(folder)):
                if state.modified_at < oldest_kept:
                    self._client.delete(state.key)


def key_of(sha256: str) -> str:
    """Where the blob of this digest lies, below the prefix."""
    return f"blobs/{sha256[:2]}/{sha256}"


def _incoming_key() -> str:
    return f"incoming/{secrets.token_hex(16)}"


def _upload_key(blob: Blob, scope: str) -> str:
    assert SCOPE.fullmatch(scope), scope
    return f"uploads/{scope}/{blob.sha256}"
