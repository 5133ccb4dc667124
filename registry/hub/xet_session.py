"""Xet uploads in progress: each session is a folder of xorbs, and its shards turn them into the tenant's blobs.

SCRATCH/xet-<tenant>-<session>/<xorb hash>    a xorb as it was sent; its chunk headers are sound
SCRATCH/xet-<tenant>-<session>/part-<random>  a body on its way in

Both parts of the folder's name are hashes; the second covers tenant, repository and the session's identifier, so that
a grant for another repository finds an empty session, whatever identifier it names. A session needs nothing but its
folder: another process can go on with it. It is removed some time after its last upload, and a client that comes too
late begins a new one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from registry.blobs import BlobStore
from registry.blobs.staging_area import explained, write_all
from registry.errors import InvalidValueError, QuotaExceededError, StorageError
from registry.file_entry import Blob
from registry.hub.parts import ELSEWHERE
from registry.hub.xet_format import (
    SHARD_BYTES_LIMIT,
    XORB_BYTES_LIMIT,
    ShardFile,
    Xorb,
    check_terms,
    parse_shard,
    parse_xorb,
    unpack_chunk,
)
from registry.hub.xet_grant import XetGrant
from registry.principal import Principal, Role
from registry.quotas import Quotas

SESSION_IDLE_SECONDS = 2 * 3600
FINISHED_SECONDS = 600
"""So long a session lives on after its files are stored: the client may send more that builds on the same chunks."""
SWEEP_SECONDS = 60
STAGED_BYTES_LIMIT = 64 << 30
STAGED_XORBS_LIMIT = 8192
PARSED_XORBS = 64


@dataclass(frozen=True)
class XetLimits:
    """What one tenant may have in its sessions, and how large one file may become."""

    staged_bytes: int = STAGED_BYTES_LIMIT
    staged_xorbs: int = STAGED_XORBS_LIMIT
    file_bytes: int = 8 << 30
    idle_seconds: float = SESSION_IDLE_SECONDS


class XetSessions:
    """The sessions of a registry. Its only state is when it swept last; threads may share it."""

    def __init__(self, blobs: BlobStore, quotas: Quotas, limits: XetLimits | None = None) -> None:
        self._blobs = blobs
        self._quotas = quotas
        self._limits = limits or XetLimits()
        self._swept_at = 0.0

    def begin(self) -> str:
        """A new session's identifier. Nothing is made before its first upload; what is stale is removed."""
        if time.monotonic() - self._swept_at > SWEEP_SECONDS:
            self._swept_at = time.monotonic()
            self.remove_stale()
        return secrets.token_hex(16)

    def find(self, session_id: str, grant: XetGrant) -> XetSession:
        """The session of this identifier that the grant opens; it may be empty."""
        return XetSession(self._blobs, self._quotas, self._limits, session_id, grant)

    def count(self, tenant: str) -> int:
        """How many sessions of this tenant there are."""
        return sum(1 for _ in self._blobs.scratch.glob(f"xet-{_short_hash(tenant)}-*"))

    def remove_stale(self) -> int:
        """Remove the sessions that nothing was sent to for some time; returns how many."""
        oldest_kept = time.time() - self._limits.idle_seconds
        removed = 0
        for folder in self._blobs.scratch.glob("xet-*"):
            with suppress(FileNotFoundError):  # another process may remove it at this moment
                if folder.stat().st_mtime < oldest_kept:
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
        return removed


class Part:
    """A body on its way to the disk. One thread at a time writes; `discard` ends it, whatever became of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO = path.open("xb", buffering=0)

    def write(self, piece: bytes) -> None:
        """Append bytes. Raises StorageError."""
        with explained(self.path):
            write_all(self._stream, piece)

    def discard(self) -> None:
        """Close the file, and remove it where it was not kept."""
        self._stream.close()
        self.path.unlink(missing_ok=True)


class XetSession:
    """One session of one repository. Its only state is its folder; threads may share it."""

    def __init__(self, blobs: BlobStore, quotas: Quotas, limits: XetLimits, session_id: str, grant: XetGrant) -> None:
        self._blobs = blobs
        self._quotas = quotas
        self._limits = limits
        self._tenant = grant.tenant
        self._principal = Principal(tenant=grant.tenant, role=Role.PUBLISHER, token_id=grant.actor)
        self._prefix = f"xet-{_short_hash(grant.tenant)}-"
        self._folder = blobs.scratch / (self._prefix + _short_hash(grant.tenant, grant.name, session_id))

    def new_part(self, *, announced_bytes: int) -> Part:
        """A file for a body of so many bytes.

        Raises QuotaExceededError where the tenant has too much in its sessions already, StorageError.
        """
        self._require_room(announced_bytes)
        with explained(self._folder):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            return Part(self._folder / f"part-{secrets.token_hex(8)}")

    def keep_xorb(self, part: Part, xorb_hash: str) -> bool:
        """Keep a body as this xorb; False where it was there. Raises InvalidValueError, StorageError."""
        with _mapped(part.path, limit_bytes=XORB_BYTES_LIMIT) as data:
            parse_xorb(data)
        target = self._folder / xorb_hash
        with explained(target):
            is_new = not target.exists()
            part.path.replace(target)
        return is_new

    def register_shard(self, part: Part) -> tuple[Blob, ...]:
        """Turn every file of a shard into a blob that the tenant has: verified, stored, leased, within its quota.

        All terms are checked before one byte is unpacked. Raises InvalidValueError, UploadMismatchError,
        QuotaExceededError, StorageError.
        """
        with _mapped(part.path, limit_bytes=SHARD_BYTES_LIMIT) as data:
            files = {file.sha256: file for file in parse_shard(data)}
        xorbs = _OpenXorbs(self._folder)
        for file in files.values():
            self._check(file, xorbs)
        blobs = tuple(Blob(sha256, file.size) for sha256, file in files.items())
        sizes = [(blob.sha256, blob.size) for blob in blobs]
        reservation = self._quotas.reserve(self._tenant, sizes, principal=self._principal)
        try:
            for blob in blobs:
                self._assemble(files[blob.sha256], blob, xorbs)
            self._quotas.mark_stored(self._tenant, sizes)
        except BaseException:
            self._quotas.release(reservation)
            raise
        part.discard()
        self._grow_old()
        return blobs

    def _check(self, file: ShardFile, xorbs: _OpenXorbs) -> None:
        if file.size > self._limits.file_bytes:
            raise InvalidValueError("shard", f"a file in it has more than {self._limits.file_bytes:,} bytes")
        check_terms(file, [xorbs.parsed(term.xorb) for term in file.terms])

    def _assemble(self, file: ShardFile, blob: Blob, xorbs: _OpenXorbs) -> None:
        with self._blobs.receive(limit_bytes=blob.size) as writer:
            for term in file.terms:
                chunks = xorbs.parsed(term.xorb).chunks[term.first_chunk : term.end_chunk]
                with xorbs.data(term.xorb) as data:
                    for chunk in chunks:
                        writer.write(unpack_chunk(data, chunk))
            writer.finish(blob)

    def _grow_old(self) -> None:
        """Let the session go soon; whatever else is sent to it makes it young again."""
        moment = time.time() - self._limits.idle_seconds + FINISHED_SECONDS
        with explained(self._folder):
            os.utime(self._folder, (moment, moment))

    def _require_room(self, announced_bytes: int) -> None:
        sizes = list(self._staged_sizes())
        quota_bytes = self._quotas.usage(self._tenant, principal=self._principal).quota_bytes
        limit_bytes = self._limits.staged_bytes
        if quota_bytes is not None:  # a little more than the quota: shards and chunk headers are staged too
            limit_bytes = min(limit_bytes, quota_bytes + SHARD_BYTES_LIMIT)
        if sum(sizes) + announced_bytes > limit_bytes:
            raise QuotaExceededError(self._tenant, "bytes", quota=limit_bytes, used=sum(sizes), asked=announced_bytes)
        if len(sizes) >= self._limits.staged_xorbs:
            raise InvalidValueError("xorb", f"{len(sizes)} of them wait already. Finish an upload first")

    def _staged_sizes(self) -> Iterator[int]:
        for folder in self._blobs.scratch.glob(self._prefix + "*"):
            with suppress(FileNotFoundError):
                for file in folder.iterdir():
                    yield file.stat().st_size


class _OpenXorbs:
    """The xorbs of a session, parsed when they are first needed; a bounded number of them is remembered."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.parsed = lru_cache(maxsize=PARSED_XORBS)(self._parse)

    def data(self, xorb_hash: str) -> AbstractContextManager[memoryview]:
        """The bytes of a xorb. Raises InvalidValueError where the session does not have it."""
        return _mapped(self._folder / xorb_hash, limit_bytes=XORB_BYTES_LIMIT)

    def _parse(self, xorb_hash: str) -> Xorb:
        with self.data(xorb_hash) as data:
            return parse_xorb(data)


@contextmanager
def _mapped(path: Path, *, limit_bytes: int) -> Iterator[memoryview]:
    """A file's bytes without reading them all. Raises InvalidValueError."""
    try:
        stream = path.open("rb")
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise StorageError(f"{path} cannot be read ({error.strerror}). Check the disk.", path=path) from error
        detail = f"it names a xorb that did not come to this server{ELSEWHERE}, or was removed since. Upload again"
        raise InvalidValueError("shard", detail) from error
    with stream:
        size = stream.seek(0, 2)
        if not 0 < size <= limit_bytes:
            raise InvalidValueError("body", f"its {size} bytes are not from 1 to {limit_bytes}")
        yield memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _short_hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
