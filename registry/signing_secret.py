"""The registry's own secret, by which its processes sign addresses and short-lived tokens for each other."""

from __future__ import annotations

import secrets

from registry.database import Database
from registry.models import MetaRow

KEY = "signing_secret"
SECRET_BYTES = 32


class SigningSecret:
    """Made when it is first asked for, and the same for every process of the registry ever after."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._value: bytes | None = None

    def value(self) -> bytes:
        """256 random bits. Raises StorageError."""
        if self._value is None:
            self._value = self._read() or self._make()
        return self._value

    def _read(self) -> bytes | None:
        with self._database.reading() as session:
            row = session.get(MetaRow, KEY)
            return None if row is None else bytes.fromhex(row.value)

    def _make(self) -> bytes:
        with self._database.writing() as session:
            row = session.get(MetaRow, KEY, with_for_update=True)
            if row is None:
                row = MetaRow(key=KEY, value=secrets.token_hex(SECRET_BYTES))
                session.add(row)
            return bytes.fromhex(row.value)
