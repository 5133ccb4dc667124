"""The catalog in a PostgreSQL database (12 or later), over psycopg 3.

Isolation. A write transaction first takes one advisory lock that belongs to all writers of the registry, and runs at
READ COMMITTED: every statement sees whatever was committed before the transaction got its turn, and nothing changes
underneath it. So writes are serial, as on SQLite, and a compare-and-set is linearizable without a retry: there are no
serialization failures to retry, and no two writers of this package can deadlock. It costs parallel commits, of which a
registry has few: a write holds the lock for milliseconds. A read is one snapshot (REPEATABLE READ, read only) and
waits for nobody.

A writer that is stopped or cut off gives the lock back when the server ends its session (`idle_in_transaction`), and
who waits for it gives up after BUSY_TIMEOUT_SECONDS, as with SQLite.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import psycopg
from sqlalchemy import URL, Connection, create_engine, make_url, text
from sqlalchemy.exc import ArgumentError

from registry.errors import CatalogBusyError, ConflictError, InvalidValueError, RegistryError, StorageError

BUSY_TIMEOUT_SECONDS = 30
IDLE_TIMEOUT_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 10
POOL_CONNECTIONS = 8
POOL_OVERFLOW = 24
WRITERS_LOCK = 0x4C50_0000
"""PostgreSQL's key of the lock of all writers; `locks.py` has the next ones."""
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
NO_ADDRESS = "it is not the address of a PostgreSQL database: postgresql://user@host/database"
_NOT_NOW = ("40001", "40P01")
_NO_LOCK = "55P03"
_BEGIN_WRITING = text(
    "SELECT set_config('synchronous_commit', "
    "coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), true), "
    "set_config('lock_timeout', :busy_timeout, true), "
    f"set_config('idle_in_transaction_session_timeout', '{IDLE_TIMEOUT_SECONDS}s', true), "
    f"pg_advisory_xact_lock({WRITERS_LOCK})"
)


class PostgresBackend:
    """One PostgreSQL database: a `Backend`."""

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.path: Path | None = None
        shown = parsed.difference_update_query(("password", "sslpassword"))
        self.place = shown.set(drivername="postgresql").render_as_string(hide_password=True)
        options = {"connect_timeout": str(CONNECT_TIMEOUT_SECONDS), "keepalives_idle": "15", "keepalives_interval": "5"}
        engine = create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=POOL_CONNECTIONS,
            max_overflow=POOL_OVERFLOW,
            pool_timeout=BUSY_TIMEOUT_SECONDS,
            connect_args={
                **{name: value for name, value in options.items() if name not in parsed.query},
                "application_name": "loraplex registry",
            },
        )
        self.reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.writing = engine.execution_options(isolation_level="READ COMMITTED")

    def prepared(self) -> AbstractContextManager[None]:
        """Nothing to do: migrating is a write transaction, and these follow one another."""
        return nullcontext()

    def begin_writing(self, connection: Connection) -> None:
        """Wait for the other writers. The settings hold for this transaction only: a pooler may share sessions."""
        connection.execute(_BEGIN_WRITING, {"busy_timeout": f"{BUSY_TIMEOUT_SECONDS}s"})

    def explain(self, cause: BaseException | None) -> RegistryError:
        """The registry's error for one of PostgreSQL or of the connection to it."""
        if isinstance(cause, psycopg.IntegrityError) or getattr(cause, "sqlstate", None) in _NOT_NOW:
            return ConflictError(
                f"Somebody else changed the same thing at the same moment ({_first_line(cause)}). "
                "Nothing was changed: try again."
            )
        if getattr(cause, "sqlstate", None) == _NO_LOCK:
            return CatalogBusyError(f"other writers kept it for {BUSY_TIMEOUT_SECONDS} s")
        if isinstance(cause, psycopg.OperationalError):
            hint = (
                f"{_first_line(cause)}. Check that the server runs and can be reached. "
                "If this was a change, look whether it was made before you repeat it"
            )
        else:
            hint = f"{_first_line(cause)}. Check that this is a registry's database and that its role may write"
        return StorageError(f"The catalog at {self.place} cannot be used: {hint}.")


def _parse(text_url: str) -> URL:
    try:
        url = make_url(text_url)
    except (ArgumentError, ValueError) as error:
        raise InvalidValueError("registry", NO_ADDRESS) from error
    if url.drivername not in SCHEMES or not url.database:
        raise InvalidValueError("registry", NO_ADDRESS)
    return url.set(drivername="postgresql+psycopg")


def _first_line(cause: BaseException | None) -> str:
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
