"""The catalog's database: connections, transactions, and the schema brought up to date when it is opened.

SQLite: WAL, synchronous FULL (a commit that returned survives power loss), foreign keys on, and writers that queue
instead of failing. Statements are plain SQLAlchemy, and rows that a writer depends on are read FOR UPDATE, so that
PostgreSQL needs nothing here but its URL.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from registry.changes import Changes, Stamp
from registry.errors import ConflictError, IncompatibleRegistryError, RegistryError, StorageError

DATABASE_FILE = "catalog.sqlite"
LOCK_FILE = "open.lock"
BUSY_TIMEOUT_SECONDS = 30
MIGRATIONS = "registry:migrations"
_BEGIN_OPTION = "loraplex_begin"


class Database:
    """One open database. Safe to share between threads; each transaction has a connection of its own."""

    def __init__(self, folder: Path) -> None:
        """Open the database in this folder and bring its schema up to date. Raises StorageError."""
        self._path = folder / DATABASE_FILE
        self._engine = _create_engine(self._path)
        self._changes = Changes(self._engine)
        self._writing = self._engine.execution_options(**{_BEGIN_OPTION: "BEGIN IMMEDIATE"})
        try:
            with self._explained(), _file_lock(folder / LOCK_FILE):
                _prepare_sqlite(self._engine)
                self._migrate()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction: one consistent state of the database."""
        with self._explained(), Session(self._engine) as session:
            yield session

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """As `reading`, without the machinery of sessions: for the few queries that must be fast."""
        with self._explained(), self._engine.connect() as connection:
            yield connection

    def stamp(self) -> Stamp:
        """What changes with every commit of whichever process, in microseconds. Raises StorageError."""
        with self._explained():
            return self._changes.stamp()

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A write transaction: committed when the block ends, undone when it raises. Writers follow one another."""
        with self._explained(), Session(self._writing) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self._changes.close()
        self._engine.dispose()

    def _migrate(self) -> None:
        """Bring the schema to this release's, in one transaction; where it is there already, only read."""
        config = Config()
        config.set_main_option("script_location", MIGRATIONS)
        config.set_main_option("path_separator", "os")
        scripts = ScriptDirectory.from_config(config)
        with self._engine.connect() as connection:
            present = MigrationContext.configure(connection).get_current_revision()
        if present == scripts.get_current_head():
            return
        if present is not None and present not in {script.revision for script in scripts.walk_revisions()}:
            raise IncompatibleRegistryError(self._path.parent, present)
        with self._writing.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise self._explain(error.orig) from error
        except (sqlite3.Error, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, cause: BaseException | None) -> RegistryError:
        if isinstance(cause, sqlite3.IntegrityError):
            return ConflictError(
                f"Somebody else changed the same thing at the same moment ({cause}). Nothing was changed: try again."
            )
        if isinstance(cause, sqlite3.OperationalError) and "locked" in str(cause):
            hint = f"another process kept it locked for {BUSY_TIMEOUT_SECONDS} s. Try again"
        elif isinstance(cause, (sqlite3.OperationalError, OSError)):
            hint = f"{cause}. Check that the disk has room and that the folder may be written"
        else:
            hint = f"it is damaged or no registry ({cause}). Restore it from a backup"
        return StorageError(f"The catalog at {self._path} cannot be used: {hint}.", path=self._path)


def _create_engine(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": BUSY_TIMEOUT_SECONDS})

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN_OPTION, "BEGIN"))

    return engine


def _prepare_sqlite(engine: Engine) -> None:
    connection = engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Held while the database is opened: two processes must not create or migrate it at once."""
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
