"""The catalog's database: transactions, and the schema brought up to date when it is opened.

`reading()` is one consistent state, `writing()` is serial: the two kinds of database (`sqlite_backend.py`,
`postgres_backend.py`) give the same promises, so that a compare-and-set needs no more than reading, comparing and
writing in one transaction.

The schema. Opening migrates to this release's. A schema of a newer release is taken as it is, where that release wrote
down that ours can (`oldest_reader` in `registry_meta`); otherwise the registry is left alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from registry.backend import Backend
from registry.changes import Changes, Stamp
from registry.errors import CatalogBusyError, IncompatibleRegistryError, NotFoundError
from registry.failpoints import reach
from registry.migrations import OLDEST_READER
from registry.models import MetaRow
from registry.postgres_backend import PostgresBackend
from registry.sqlite_backend import DATABASE_FILE, SqliteBackend

__all__ = ["DATABASE_FILE", "Database"]

MIGRATIONS = "registry:migrations"
OLDEST_READER_KEY = "oldest_reader"


class Database:
    """One open database. Safe to share between threads; each transaction has a connection of its own."""

    def __init__(self, where: Path | str, *, create: bool = True) -> None:
        """Open the database in this folder or at this address, and bring its schema up to date.

        Raises StorageError, InvalidValueError, and NotFoundError where there is none and it is not to be made.
        """
        self._create = create
        self._backend: Backend = PostgresBackend(where) if isinstance(where, str) else SqliteBackend(where)
        self._changes = Changes(self._backend.reading)
        try:
            with self._explained(), self._backend.prepared():
                self._migrate()
        except BaseException:
            self.close()
            raise

    @property
    def place(self) -> str:
        """Where the database is: a path, or an address without its password."""
        return self._backend.place

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read transaction: one consistent state of the database."""
        with self._explained(), Session(self._backend.reading) as session:
            yield session

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """As `reading`, without the machinery of sessions: for the few queries that must be fast."""
        with self._explained(), self._backend.reading.connect() as connection:
            yield connection

    @property
    def is_in_this_process(self) -> bool:
        """Whether asking it is no round trip to a server."""
        return self._backend.reading.dialect.name == "sqlite"

    def stamp(self) -> Stamp:
        """What changes with every commit of whichever process, in microseconds. Raises StorageError."""
        with self._explained():
            return self._changes.stamp()

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A write transaction: committed when the block ends, undone when it raises. Writers follow one another."""
        with self._explained(), Session(self._backend.writing) as session:
            with session.begin():
                self._backend.begin_writing(session.connection())
                yield session
                session.flush()
                reach("catalog.before_commit")
            reach("catalog.after_commit")

    def close(self) -> None:
        """Close every connection."""
        self._changes.close()
        self._backend.reading.dispose()

    def _migrate(self) -> None:
        """Bring the schema to this release's, in one transaction; where it is there already, only read."""
        scripts = _scripts()
        with self._backend.reading.connect() as connection:
            if self._is_usable(connection, scripts):
                return
        with self._backend.writing.begin() as connection:
            self._backend.begin_writing(connection)
            if not self._is_usable(connection, scripts):  # asked again: somebody may have been faster
                config = _config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                _write_oldest_reader(connection, scripts.get_current_head())

    def _is_usable(self, connection: Connection, scripts: ScriptDirectory) -> bool:
        """Whether the schema is ours, or one that we may use. Raises IncompatibleRegistryError for other new ones."""
        present = MigrationContext.configure(connection).get_current_revision()
        if present == scripts.get_current_head():
            return True
        known = {script.revision for script in scripts.walk_revisions()}
        if present is None and not self._create:
            raise NotFoundError("registry", self._backend.place, "Open it once with the right to make it.")
        if present is None or present in known:
            return False
        note = connection.scalar(select(MetaRow.value).where(MetaRow.key == OLDEST_READER_KEY)) or ""
        schema, _, oldest_reader = note.partition(" ")
        if schema == present and oldest_reader in known:
            return True
        raise IncompatibleRegistryError(self._backend.place, present)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._backend.explain(error.orig) from error
        except PoolTimeoutError as error:
            raise CatalogBusyError("none of its connections became free in time") from error
        except (sqlite3.Error, psycopg.Error, OSError) as error:
            raise self._backend.explain(error) from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    config.set_main_option("path_separator", "os")
    return config


@cache
def _scripts() -> ScriptDirectory:
    """Every migration there is; reading them is most of what opening a registry costs."""
    return ScriptDirectory.from_config(_config())


def _write_oldest_reader(connection: Connection, head: str | None) -> None:
    """Note for older releases whether they may use this schema; it names the schema that it is about."""
    connection.execute(delete(MetaRow).where(MetaRow.key == OLDEST_READER_KEY))
    connection.execute(insert(MetaRow).values(key=OLDEST_READER_KEY, value=f"{head} {OLDEST_READER}"))
