"""What `Database` needs of SQLite or PostgreSQL; everything above is plain SQLAlchemy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine

from registry.errors import RegistryError


class Backend(Protocol):
    """A kind of database. `reading` and `writing` share one pool of connections."""

    @property
    def place(self) -> str:
        """Where the database is, for messages; without a secret."""

    @property
    def path(self) -> Path | None:
        """The database's file, where it is one."""

    @property
    def reading(self) -> Engine:
        """An engine whose transactions see one consistent state."""

    @property
    def writing(self) -> Engine:
        """An engine whose transactions follow one another, once `begin_writing` was called."""

    def prepared(self) -> AbstractContextManager[None]:
        """Held while the schema is looked at and migrated: one process after the other. Raises StorageError."""

    def begin_writing(self, connection: Connection) -> None:
        """The first step of a write transaction: wait for the other writers."""

    def explain(self, cause: BaseException | None) -> RegistryError:
        """The registry's error for one of the driver or of the file system."""
