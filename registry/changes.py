"""Tells in microseconds whether anything was committed since somebody last looked, by whichever process.

A `Stamp` is what the database says of its own state. Equal stamps mean: no commit became visible between them, so what
was read in between still holds. Different stamps mean nothing but "read again".

SQLite      `PRAGMA data_version` on a connection that never writes, and the identity of the file: one that was moved
            away is an error and one that was replaced is taken up, although the old connections would go on reading.
PostgreSQL  `pg_current_snapshot()`: each commit of the cluster changes it. One round trip.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

Stamp = tuple[object, ...]
"""The state of the database, to be compared and for nothing else."""

QUERIES = {"sqlite": "PRAGMA data_version", "postgresql": "SELECT pg_current_snapshot()::text"}


class Changes:
    """Watches one database over a connection of its own, which opens at the first question.

    Threads may share it. The lock owns the connection and `_opened`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._query = QUERIES[engine.dialect.name]
        is_file = engine.dialect.name == "sqlite"
        self._path = engine.url.database if is_file else None
        self._lock = threading.Lock()
        self._connection: Any = None
        self._execute: Callable[[str], Any] | None = None
        self._opened = 0
        self._file: tuple[int, int] | None = None

    def stamp(self) -> Stamp:
        """The present state. Raises what the driver raises, and OSError where the database's file is gone."""
        with self._lock:
            if self._path is not None:
                status = os.stat(self._path)  # noqa: PTH116 - each resolve pays for it, and Path.stat costs double
                if (status.st_dev, status.st_ino) != self._file:
                    self._take_up((status.st_dev, status.st_ino))
            known = self._execute
            try:
                return self._ask(known or self._open())
            except Exception:
                self._close()
                if known is None:
                    raise
            return self._ask(self._open())  # the connection was lost: the server was started again

    def close(self) -> None:
        """Close the connection. A later question opens another, whose stamps differ from all before."""
        with self._lock:
            self._close()

    def _ask(self, execute: Callable[[str], Any]) -> Stamp:
        return (self._opened, execute(self._query).fetchone()[0])

    def _take_up(self, file: tuple[int, int]) -> None:
        """Another file stands where the database was (it was restored): no connection may go on with the old one."""
        if self._file is not None:
            self._close()
            self._engine.dispose()
        self._file = file

    def _open(self) -> Callable[[str], Any]:
        pooled = self._engine.raw_connection()
        pooled.detach()
        self._connection = pooled.dbapi_connection
        if self._path is None:
            self._connection.autocommit = True
        self._opened += 1
        execute: Callable[[str], Any] = self._connection.execute
        self._execute = execute
        return execute

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._execute = None
