"""Backup and restore. A backup is made while the registry is in use, and restored to either kind of database and store.

Backup: the rows of one consistent state, and then every blob that they refer to, each verified while it is copied. A
blob that garbage collection takes meanwhile belongs to a state that is past: then the rows are read again.

Restore: everything in the backup is verified before anything is written. Blobs are placed first, and then one
transaction writes all rows, so that a crash leaves an empty registry into which the backup can be restored again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Table, func, insert, select, text
from sqlalchemy.orm import Session

from registry.backup_folder import BackupFolder, BackupManifest, TableDump
from registry.blobs import BlobStore
from registry.database import OLDEST_READER_KEY, Database
from registry.errors import ConflictError, IntegrityError
from registry.file_entry import Blob
from registry.models import MetaRow, Row
from registry.principal import Principal

ROWS_AT_ONCE = 1000
STATES_TRIED = 5
BLOB_TABLES = ("version_files", "commit_files", "tenant_blobs")
OnBlob = Callable[[int, int], None]
"""Told after each blob: how many are done, of how many."""


class Backups:
    """Backs up and restores one registry. Holds no state but the database and the blobs."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs

    def write(self, destination: Path, *, principal: Principal, on_blob: OnBlob | None = None) -> BackupManifest:
        """Write a backup into a new folder. Raises PermissionDeniedError, IntegrityError, StorageError."""
        principal.require_operator(action="back up", subject="the registry")
        backup = BackupFolder(destination)
        backup.begin()
        kept = backup.blobs()
        done: set[Blob] = set()
        for attempt in range(1, STATES_TRIED + 1):
            schema, tables, wanted = self._dump(backup)
            try:
                for blob in sorted(wanted - done):
                    self._copy(blob, kept)
                    done.add(blob)
                    _tell(on_blob, len(done & wanted), len(wanted))
                break
            except IntegrityError as error:
                if error.found is not None or attempt == STATES_TRIED or error.expected in self._referred():
                    raise
        for blob in done - wanted:
            kept.delete(blob.sha256)
        manifest = BackupManifest(
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            schema=schema,
            tables=tables,
            blobs=len(wanted),
            blob_bytes=sum(blob.size for blob in wanted),
        )
        backup.finish(manifest)
        return manifest

    def restore(self, source: Path, *, principal: Principal, on_blob: OnBlob | None = None) -> BackupManifest:
        """Fill this registry, which must be empty, from a backup.

        Raises PermissionDeniedError, ConflictError, IntegrityError, StorageError.
        """
        principal.require_operator(action="restore", subject="the registry")
        backup = BackupFolder(source)
        manifest = self._checked(backup)
        wanted = {blob for name in BLOB_TABLES for blob in _blobs_in(backup, name, manifest)}
        kept = backup.blobs()
        for blob in sorted(wanted):
            kept.verify(blob)
        with self._database.reading() as session:
            _require_empty(session, self._database.place)
        for number, blob in enumerate(sorted(wanted), 1):
            with kept.open(blob) as reader, self._blobs.receive(limit_bytes=blob.size) as writer:
                for chunk in reader:
                    writer.write(chunk)
                writer.finish(blob)
            _tell(on_blob, number, len(wanted))
        with self._database.writing() as session:
            _require_empty(session, self._database.place)
            for table in Row.metadata.sorted_tables:
                _fill(session, table, backup, manifest.tables[table.name])
            _count_on(session)
        return manifest

    def _dump(self, backup: BackupFolder) -> tuple[str, dict[str, TableDump], set[Blob]]:
        """Write all rows of one consistent state; which schema they have, and which blobs they refer to."""
        with self._database.reading() as session:
            schema = _schema(session)
            tables = {
                table.name: backup.write_table(table, _rows(session, table)) for table in Row.metadata.sorted_tables
            }
        wanted: set[Blob] = set()
        for name in BLOB_TABLES:
            wanted.update(_blobs_of(backup.rows(Row.metadata.tables[name], tables[name])))
        return schema, tables, wanted

    def _copy(self, blob: Blob, kept: BlobStore) -> None:
        with kept.receive(limit_bytes=blob.size) as writer:
            with self._blobs.open(blob) as reader:
                for chunk in reader:
                    writer.write(chunk)
            found = writer.finish()
        if found != blob:
            kept.delete(found.sha256)
            raise IntegrityError(None, expected=blob.sha256, found=found.sha256)

    def _referred(self) -> set[str]:
        """The digests of all blobs that something refers to now."""
        with self._database.reading() as session:
            tables = [Row.metadata.tables[name] for name in BLOB_TABLES]
            rows = (row._asdict() for table in tables for row in session.execute(select(table)))
            return {blob.sha256 for blob in _blobs_of(rows)}

    def _checked(self, backup: BackupFolder) -> BackupManifest:
        manifest = backup.manifest()
        with self._database.reading() as session:
            schema = _schema(session)
        expected = {table.name: [column.name for column in table.columns] for table in Row.metadata.sorted_tables}
        if manifest.schema != schema or {name: dump.columns for name, dump in manifest.tables.items()} != expected:
            raise backup.damaged(
                f"its schema is {manifest.schema}, and this release has {schema}: restore it with the release that "
                "made it, and open the restored registry with this one"
            )
        backup.check_tables(manifest)
        return manifest


def _rows(session: Session, table: Table) -> Iterator[Any]:
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=ROWS_AT_ONCE)
    yield from session.execute(query)


def _schema(session: Session) -> str:
    return str(session.scalar(text("SELECT version_num FROM alembic_version")))


def _blobs_in(backup: BackupFolder, name: str, manifest: BackupManifest) -> Iterator[Blob]:
    yield from _blobs_of(backup.rows(Row.metadata.tables[name], manifest.tables[name]))


def _blobs_of(rows: Iterator[dict[str, Any]]) -> Iterator[Blob]:
    """The blobs that rows of BLOB_TABLES refer to; what is only reserved is not there yet."""
    for row in rows:
        if row.get("is_stored", True):
            yield Blob(row["sha256"], row["size"])


def _require_empty(session: Session, place: str) -> None:
    for table in Row.metadata.sorted_tables:
        if table.name != MetaRow.__tablename__ and session.scalar(select(func.count()).select_from(table)):
            raise ConflictError(
                f"The registry at {place} is not empty: table {table.name} has rows. Restore into a new one."
            )


def _fill(session: Session, table: Table, backup: BackupFolder, dump: TableDump) -> None:
    """Insert the rows. What the registry knows of itself is taken from the backup, but for what is of this schema."""
    rows = backup.rows(table, dump)
    if table.name == MetaRow.__tablename__:
        session.execute(table.delete().where(table.columns.key != OLDEST_READER_KEY))
        rows = (row for row in rows if row["key"] != OLDEST_READER_KEY)
    count = 0
    while part := list(islice(rows, ROWS_AT_ONCE)):
        session.execute(insert(table), part)
        count += len(part)
    if table.name != MetaRow.__tablename__ and count != dump.rows:
        raise backup.damaged(f"table {table.name} has {count} rows and not {dump.rows}")


def _count_on(session: Session) -> None:
    """On PostgreSQL, make each counter go on after the highest number that was restored."""
    if session.get_bind().dialect.name != "postgresql":
        return
    for table in Row.metadata.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            highest = session.scalar(select(func.max(column)))
            if highest is not None:
                sequence = select(func.setval(func.pg_get_serial_sequence(table.name, column.name), highest))
                session.execute(sequence)


def _tell(on_blob: OnBlob | None, done: int, count: int) -> None:
    if on_blob is not None:
        on_blob(done, count)
