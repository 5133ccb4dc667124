"""One file of a version, and the digest over all of them that is the version's identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from registry.names import Digest


@dataclass(frozen=True, order=True)
class Blob:
    """Some bytes: their SHA-256 in hexadecimal, and how many there are."""

    sha256: str
    size: int


@dataclass(frozen=True, order=True)
class FileEntry:
    """A file: its name within the folder, its bytes, and their SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


def digest_of_files(files: Iterable[FileEntry]) -> Digest:
    """SHA-256 of the canonical JSON `[{"path","sha256","size"}, ...]`, sorted by path, without spaces."""
    listing = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in sorted(files)]
    canonical = json.dumps(listing, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Digest(hashlib.sha256(canonical.encode("ascii")).hexdigest())
