"""Resolves references fast, and never to what a committed change has replaced.

An answer is remembered for as long as the database says that nothing was committed since it was read (`changes.py`),
so a promotion that has returned, in whichever process, is seen by the next resolve. It is remembered for the caller
who asked, with all that bounds the caller, and for nobody else. What is missing is not remembered.

After a commit the reference is looked up again, which costs one narrow query: the version itself is immutable and is
kept, whatever changes around it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, select

from registry.catalog import Catalog
from registry.database import Database
from registry.file_entry import FileEntry
from registry.fresh_cache import FreshCache
from registry.lookup import digest_begins, is_readable, to_version
from registry.models import AdapterRow, AliasRow, TenantRow, VersionExpertRow, VersionFileRow, VersionRow
from registry.names import AdapterRef
from registry.principal import Principal
from registry.version import Version

ANSWERS_LIMIT = 16_384
VERSIONS_LIMIT = 4_096
STATEMENTS_LIMIT = 512


class Resolution:
    """Resolves for one open registry. Threads may share it."""

    def __init__(self, database: Database, catalog: Catalog) -> None:
        self._database = database
        self._catalog = catalog
        self._answers: FreshCache[tuple[Principal, str], Version] = FreshCache(database, ANSWERS_LIMIT)
        self._lock = threading.Lock()
        self._versions: OrderedDict[tuple[Any, ...], Version] = OrderedDict()

    def resolve(self, text: str, *, principal: Principal) -> Version:
        """The version that this reference means now. A bare name is the newest version.

        Raises InvalidNameError, and NotFoundError for what is missing or may not be read.
        """
        return self._answers.get((principal, text), lambda: self.look_up(AdapterRef.parse(text), principal))

    def remembered(self, text: str, *, principal: Principal) -> Version | None:
        """What `resolve` would answer, if that is known now and takes microseconds: it may be asked on an event loop.

        Always None where even to ask whether anything changed is a round trip (PostgreSQL). Raises StorageError.
        """
        return self._answers.peek((principal, text)) if self._database.is_in_this_process else None

    def look_up(self, ref: AdapterRef, principal: Principal) -> Version:
        """As `resolve`, from the database as it is now."""
        if ref.adapter is None:
            return self._catalog.version(ref, principal)
        kind = _kind(ref)
        with self._database.connected() as connection:
            parameters = {"tenant": ref.adapter.tenant, "name": ref.adapter.name, "selector": _selector(ref)}
            found = connection.execute(_statement(kind, principal), parameters).fetchall()
            if len(found) == 1 or (found and kind != "digest"):
                return self._version(connection, tuple(found[0]), ref.adapter.tenant)
        return self._catalog.version(ref, principal)  # which says what is wrong

    def _version(self, connection: Connection, identity: tuple[Any, ...], tenant: str) -> Version:
        """The version of this row; its identity holds everything of it that can change."""
        key = (tenant, *identity)
        with self._lock:
            if known := self._versions.get(key):
                self._versions.move_to_end(key)
                return known
        version = _read(connection, identity[0], tenant)
        with self._lock:
            self._versions[key] = version
            if len(self._versions) > VERSIONS_LIMIT:
                self._versions.popitem(last=False)
        return version


def _kind(ref: AdapterRef) -> str:
    if ref.number is not None:
        return "number"
    if ref.alias is not None:
        return "alias"
    return "newest" if ref.digest_hex is None else "digest"


def _selector(ref: AdapterRef) -> int | str | None:
    return ref.number or ref.alias or (None if ref.digest_hex is None else f"sha256:{ref.digest_hex}")


@lru_cache(STATEMENTS_LIMIT)
def _statement(kind: str, principal: Principal) -> Select[Any]:
    """The versions that a reference of this kind may mean to this caller, best first: what identifies each."""
    statement = (
        select(VersionRow.id, VersionRow.number, VersionRow.digest, VersionRow.created_at)
        .add_columns(AdapterRow.id, AdapterRow.name, AdapterRow.visibility)
        .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
        .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
        .where(TenantRow.name == bindparam("tenant"), AdapterRow.name == bindparam("name"), is_readable(principal))
    )
    selector: Any = bindparam("selector")
    if kind == "number":
        statement = statement.where(VersionRow.number == selector)
    elif kind == "alias":
        statement = statement.join(AliasRow, AliasRow.version_id == VersionRow.id)
        statement = statement.where(AliasRow.adapter_id == AdapterRow.id, AliasRow.name == selector)
    elif kind == "digest":
        statement = statement.where(digest_begins(selector))
    return statement.order_by(VersionRow.number.desc()).limit(2)


_FULL = (
    select(VersionRow.__table__, AdapterRow.name.label("adapter_name"), AdapterRow.visibility)
    .join(AdapterRow, AdapterRow.id == VersionRow.adapter_id)
    .where(VersionRow.id == bindparam("version_id"))
)
_FILES = (
    select(VersionFileRow.path, VersionFileRow.size, VersionFileRow.sha256)
    .where(VersionFileRow.version_id == bindparam("version_id"))
    .order_by(VersionFileRow.path)
)

_EXPERTS = (
    select(VersionExpertRow.digest)
    .where(VersionExpertRow.version_id == bindparam("version_id"))
    .order_by(VersionExpertRow.place)
)


def _read(connection: Connection, version_id: int, tenant: str) -> Version:
    row = connection.execute(_FULL, {"version_id": version_id}).one()
    files = connection.execute(_FILES, {"version_id": version_id})
    entries = tuple(FileEntry(path, size, sha256) for path, size, sha256 in files)
    experts = tuple(connection.scalars(_EXPERTS, {"version_id": version_id}))
    return to_version(row, row.adapter_name, row.visibility, tenant, entries, experts)
