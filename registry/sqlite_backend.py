"""The catalog in a SQLite file of the registry's folder.

WAL, synchronous FULL (a commit that returned survives power loss), foreign keys on, and writers that queue instead of
failing. A network file system is refused: SQLite's locks and its shared memory do not work there.
"""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from registry.errors import CatalogBusyError, ConflictError, RegistryError, StorageError
from registry.file_system import network_file_system

DATABASE_FILE = "catalog.sqlite"
LOCK_FILE = "open.lock"
BUSY_TIMEOUT_SECONDS = 30
WRITER_PAUSE_SECONDS = 0.005
PRIMARY_CODE = 0xFF
"""What of an error's code says its kind; the rest is a detail (https://sqlite.org/rescode.html)."""
_WRITES_OPTION = "loraplex_writes"
_READS_ONLY = "loraplex_reads_only"


class SqliteBackend:
    """One SQLite file: a `Backend`."""

    def __init__(self, folder: Path) -> None:
        self.path: Path | None = folder / DATABASE_FILE
        self.place = str(self.path)
        self._file = folder / DATABASE_FILE
        self._lock_file = folder / LOCK_FILE
        self.reading = _create_engine(self._file)
        self.writing = self.reading.execution_options(**{_WRITES_OPTION: True})

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Held while the database is opened: two processes must not create or migrate it at once."""
        found = network_file_system(self._file.parent)
        if found is not None:
            raise StorageError(
                f"{self._file.parent} lies on a network file system ({found}), where SQLite loses data. "
                "Put the registry on a local disk, or use PostgreSQL: --registry postgresql://...",
                path=self._file.parent,
            )
        with self._lock_file.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            connection = self.reading.raw_connection()
            try:
                connection.cursor().execute("PRAGMA journal_mode=WAL")
            finally:
                connection.close()
            yield

    def begin_writing(self, connection: Connection) -> None:
        """Nothing to do: BEGIN IMMEDIATE has waited for the other writers."""

    def explain(self, cause: BaseException | None) -> RegistryError:
        """The registry's error for one of SQLite or of the file system."""
        if isinstance(cause, sqlite3.IntegrityError):
            return ConflictError(
                f"Somebody else changed the same thing at the same moment ({cause}). Nothing was changed: try again."
            )
        if isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause):
            return CatalogBusyError(f"other writers kept it for {BUSY_TIMEOUT_SECONDS} s")
        if isinstance(cause, (sqlite3.OperationalError, OSError)):
            hint = f"{cause}. Check that the disk has room and that the folder may be written"
        else:
            hint = f"it is damaged or no registry ({cause}). Restore it from a backup"
        return StorageError(f"The catalog at {self.place} cannot be used: {hint}.", path=self.path)


def _create_engine(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        record.info[_READS_ONLY] = not _is_writable(connection)

    @event.listens_for(engine, "checkin")
    def forget(connection: sqlite3.Connection | None, record: ConnectionPoolEntry) -> None:
        """A connection that was made while the disk failed may be read from; it is not kept for later writes."""
        if connection is not None and record.info.get(_READS_ONLY):
            record.invalidate()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(_WRITES_OPTION):
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            _begin_writing(raw)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _begin_writing(connection: sqlite3.Connection) -> None:
    """Take the write lock. SQLite's own wait asks ever less often, so that beside many writers newcomers pass and
    somebody starves; here who has waited long asks as often as who has just come.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(WRITER_PAUSE_SECONDS)
            else:
                return
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_SECONDS * 1000)}")


def _is_writable(connection: sqlite3.Connection) -> bool:
    """Whether SQLite has opened the database and its log for writing; where that fails, it opens them to be read."""
    connection.execute("PRAGMA busy_timeout=0")
    try:
        connection.execute("BEGIN IMMEDIATE")  # fails where the log is read only
        connection.execute("PRAGMA incremental_vacuum(1)")  # fails where the database is; otherwise it does nothing
    except sqlite3.OperationalError as error:
        return _is_busy(error)  # somebody else is writing, and we could
    else:
        return True
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_SECONDS * 1000)}")


def _is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another connection is in the way, for whichever of SQLite's reasons."""
    return error.sqlite_errorcode & PRIMARY_CODE == sqlite3.SQLITE_BUSY
