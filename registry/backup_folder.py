"""A backup on disk. It is as secret as the registry: it holds hashes of tokens, and the secrets of webhooks.

DEST/manifest.json           what is here, with digests; written last: without it there is no backup
DEST/catalog/<table>.jsonl   the rows of each table, one JSON array a line, by primary key
DEST/blobs/                  every blob that these rows refer to, as in a registry's folder
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Table

from registry.blobs import LocalBlobs
from registry.errors import StorageError
from registry.models import UtcDateTime

FORMAT = 1
MANIFEST = "manifest.json"
CATALOG = "catalog"
BLOBS = "blobs"


@dataclass(frozen=True)
class TableDump:
    """One table: its columns, how many rows there are, and the SHA-256 of its file."""

    columns: list[str]
    rows: int
    sha256: str


@dataclass(frozen=True)
class BackupManifest:
    """What a backup holds. `schema` is the number of the last migration; `blobs` and `blob_bytes` count its files."""

    made_at: str
    schema: str
    tables: dict[str, TableDump]
    blobs: int
    blob_bytes: int


class BackupFolder:
    """One backup. Its files are open to their owner only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Make the folder. Raises StorageError where it holds anything."""
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if any(self.folder.iterdir()):
                raise StorageError(f"{self.folder} is not empty. A backup needs a folder of its own.", path=self.folder)
            self.folder.chmod(0o700)
            (self.folder / CATALOG).mkdir()

    def blobs(self) -> LocalBlobs:
        """The store of the blobs."""
        return LocalBlobs(self.folder / BLOBS)

    def write_table(self, table: Table, rows: Iterable[Iterable[Any]]) -> TableDump:
        """Write the rows of a table, in place of those that were written before."""
        digest, count = hashlib.sha256(), 0
        with self._explained(), _private(self._table_file(table.name)) as stream:
            for row in rows:
                line = (json.dumps([_to_json(value) for value in row], ensure_ascii=True) + "\n").encode("ascii")
                digest.update(line)
                stream.write(line)
                count += 1
            stream.flush()
            os.fsync(stream.fileno())
        return TableDump([column.name for column in table.columns], count, digest.hexdigest())

    def finish(self, manifest: BackupManifest) -> None:
        """Write the manifest: from now on this is a backup."""
        content = asdict(manifest)
        document = {"format": FORMAT, "content": content, "sha256": _digest_of(content)}
        path = self.folder / MANIFEST
        with self._explained():
            partial = path.with_suffix(".partial")
            with _private(partial) as stream:
                stream.write(json.dumps(document, indent=1).encode("ascii"))
                stream.flush()
                os.fsync(stream.fileno())
            partial.rename(path)
            for folder in (self.folder / CATALOG, self.folder):
                descriptor = os.open(folder, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    def manifest(self) -> BackupManifest:
        """Read and check the manifest. Raises StorageError."""
        path = self.folder / MANIFEST
        try:
            document = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                raise self.damaged(f"its format is {document['format']!r}, and this release reads {FORMAT}")
            content = document["content"]
            if _digest_of(content) != document["sha256"]:
                raise self.damaged(f"{MANIFEST} is not what was written")
            tables = {name: TableDump(**dump) for name, dump in content.pop("tables").items()}
            return BackupManifest(tables=tables, **content)
        except FileNotFoundError as error:
            raise self.damaged(f"it has no {MANIFEST}: it is none, or was never finished") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(f"{MANIFEST} cannot be read ({error})") from error

    def check_tables(self, manifest: BackupManifest) -> None:
        """Read every table's file and compare. Raises StorageError."""
        for name, dump in manifest.tables.items():
            path = self._table_file(name)
            try:
                with path.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise self.damaged(f"{path.name} cannot be read ({error.strerror})") from error
            if found != dump.sha256:
                raise self.damaged(f"{path.name} is not what was written")

    def rows(self, table: Table, dump: TableDump) -> Iterator[dict[str, Any]]:
        """The rows of a table by column."""
        with self._table_file(table.name).open("rb") as stream:
            for line in stream:
                row = dict(zip(dump.columns, json.loads(line), strict=True))
                yield {name: _from_json(table, name, value) for name, value in row.items()}

    def damaged(self, why: str) -> StorageError:
        """The error for a backup that cannot be used."""
        return StorageError(f"The backup at {self.folder} cannot be used: {why}. Use another one.", path=self.folder)

    def _table_file(self, name: str) -> Path:
        return self.folder / CATALOG / f"{name}.jsonl"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.folder} cannot be written ({error.strerror}). Check that the disk has room.",
                path=self.folder,
            ) from error


def _private(path: Path) -> BinaryIO:
    """A new file, or an emptied one, that only its owner may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _digest_of(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _to_json(value: Any) -> Any:
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value


def _from_json(table: Table, column: str, value: Any) -> Any:
    is_time = isinstance(table.columns[column].type, UtcDateTime)
    return datetime.fromisoformat(value) if is_time and value is not None else value
