"""Verified adapter folders on the server's disk, bounded in bytes, least recently used out first.

It does: keep account of the folders, verify one that an earlier server left, choose what to delete.
It does not: fetch (`serving.adapter_loader`), or keep adapters in memory (the engine).

Drawn: HOME/adapters/<digest hex>/   a verified folder, made whole by one rename
       HOME/adapters/.old-*          a folder on its way out, removed at once or at the next start
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from registry.version import Version

READ_BYTES = 1024 * 1024
OUT_PREFIX = ".old-"

logger = logging.getLogger(__name__)


@dataclass
class _Entry:
    folder_bytes: int
    users: int = 0


class AdapterCache:
    """The account of the folders. Changed by its `AdapterLoader` only, on the event loop; disk work is in threads."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """Bytes of all folders that this server has verified."""
        return sum(entry.folder_bytes for entry in self._entries.values())

    @property
    def count(self) -> int:
        """Number of verified folders."""
        return len(self._entries)

    def folder_of(self, version: Version) -> Path:
        """Where the version's folder is or will be."""
        return self._folder / version.digest.removeprefix("sha256:")

    def has(self, version: Version) -> bool:
        """Whether the version's folder is there and verified."""
        return version.digest in self._entries

    def add(self, version: Version) -> None:
        """Account for a folder that was just fetched or verified."""
        assert version.digest not in self._entries, "a folder is accounted for once"
        self._entries[version.digest] = _Entry(_folder_bytes(version))

    def pin(self, version: Version) -> None:
        """One more request uses the folder: it stays."""
        self._entries[version.digest].users += 1
        self._entries.move_to_end(version.digest)

    def unpin(self, version: Version) -> None:
        """The request has ended."""
        entry = self._entries[version.digest]
        assert entry.users > 0, "unpinned more often than pinned"
        entry.users -= 1

    def evict(self) -> list[Path]:
        """Drop unused folders, the longest unused first, until the rest fits; the caller deletes what is returned."""
        out: list[Path] = []
        excess = self.held_bytes - self._limit_bytes
        for digest in [digest for digest, entry in self._entries.items() if entry.users == 0]:
            if excess <= 0:
                break
            excess -= self._entries.pop(digest).folder_bytes
            out.append(self._set_aside(self._folder / digest.removeprefix("sha256:")))
        return out

    def prepare(self) -> None:
        """Make the folder and remove what an earlier server was about to delete (it blocks)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob(f"{OUT_PREFIX}*"):
            shutil.rmtree(path, ignore_errors=True)

    def is_whole(self, version: Version) -> bool:
        """Whether the folder holds exactly the version's files and bytes (it blocks); a damaged one is removed."""
        folder = self.folder_of(version)
        if not folder.is_dir():
            return False
        expected = {file.path: file.sha256 for file in version.files}
        found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
        if found.keys() == expected.keys() and all(_sha256(found[name]) == expected[name] for name in expected):
            return True
        logger.warning("adapter folder %s is damaged and will be fetched again", folder.name)
        shutil.rmtree(self._set_aside(folder), ignore_errors=True)
        return False

    def check_integrity(self) -> None:
        """What must always hold."""
        for digest, entry in self._entries.items():
            assert entry.users >= 0, digest
            assert entry.folder_bytes >= 0, digest
            assert (self._folder / digest.removeprefix("sha256:")).is_dir(), digest
        unused = [entry.folder_bytes for entry in self._entries.values() if entry.users == 0]
        assert self.held_bytes <= self._limit_bytes or not unused, "an unused folder is kept beyond the limit"

    def _set_aside(self, folder: Path) -> Path:
        """Rename first: a folder under its digest is always whole."""
        aside = Path(tempfile.mkdtemp(prefix=OUT_PREFIX, dir=self._folder))
        folder.rename(aside / folder.name)
        return aside


def _folder_bytes(version: Version) -> int:
    return sum(file.size for file in version.files)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
