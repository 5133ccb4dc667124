"""Adapters, versions and bases of a registry in process: resolve, pull, lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.base import BaseRecord
from registry.bases import Bases
from registry.blobs import BlobReader, BlobStore
from registry.catalog import Catalog
from registry.database import Database
from registry.listing import Listing
from registry.mirrors import Mirrors
from registry.names import AdapterName
from registry.page import PAGE_DEFAULT, Page
from registry.principal import OPERATOR, Principal
from registry.pull import find_file, pull
from registry.repositories import Repositories
from registry.resolution import Resolution
from registry.version import AdapterSummary, Version, Visibility


class LocalAdapters:
    """A part of `Registry`: what there is, what a reference means, and its files."""

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        bases: Bases,
        blobs: BlobStore,
        mirrors: Mirrors,
        repositories: Repositories,
    ) -> None:
        self._catalog = catalog
        self._bases = bases
        self._blobs = blobs
        self._mirrors = mirrors
        self._repositories = repositories
        self._listing = Listing(database)
        self._resolution = Resolution(database, catalog)

    def register_base(self, base_json: Mapping[str, Any], *, principal: Principal = OPERATOR) -> BaseRecord:
        """Keep a base so that adapters can be judged against it; doing it again changes nothing."""
        return self._bases.register(BaseRecord.from_json(base_json), principal=principal)

    def bases(self) -> list[BaseRecord]:
        """Every registered base, oldest first."""
        return self._bases.all()

    def base(self, fingerprint: str) -> BaseRecord:
        """The base with this fingerprint, or the only one that begins so. Raises NotFoundError."""
        return self._bases.find(fingerprint)

    def resolve(self, ref: str, *, principal: Principal) -> Version:
        """The version that the reference means now; a bare name is the newest."""
        return self._mirrors.pulling_through(lambda: self._resolution.resolve(ref, principal=principal), ref, principal)

    def remembered(self, ref: str, *, principal: Principal) -> Version | None:
        """What `resolve` would answer, if that takes microseconds; else None. For event loops."""
        return self._resolution.remembered(ref, principal=principal)

    def pull(self, version: Version, destination: Path, *, principal: Principal = OPERATOR) -> Path:
        """Put the version's files into a folder, verified, all at once. Right to read it: having resolved it.

        Over HTTP the files are asked for on behalf of the principal.
        """
        return pull(self._blobs, version, destination)

    def open_file(self, version: Version, path: str, *, start: int = 0, end: int | None = None) -> BlobReader:
        """The verified bytes of one of the version's files, or of a range. Right to read it: having resolved it."""
        return self._blobs.open(find_file(version, path), start=start, end=end)

    def adapter(self, name: str, principal: Principal) -> AdapterSummary:
        """One adapter that has a version."""
        return self._listing.adapter(AdapterName.parse(name), principal)

    def set_visibility(self, name: str, visibility: str, principal: Principal) -> Visibility:
        """Say who may read an adapter: `private` is its tenant, `public` is everybody with a token. For admins."""
        wanted = Visibility.parse(visibility)
        return self._repositories.set_visibility(AdapterName.parse(name), wanted, principal).visibility

    def list_adapters(self, principal: Principal) -> list[AdapterSummary]:
        """The adapters that the caller may read, by name."""
        return self._listing.all_adapters(principal)

    def page_adapters(
        self,
        principal: Principal,
        *,
        limit: int = PAGE_DEFAULT,
        cursor: str | None = None,
        tenant: str | None = None,
        search: str | None = None,
    ) -> Page[AdapterSummary]:
        """Some of the adapters that the caller may read, by name; the page's cursor asks for the next ones."""
        return self._listing.adapters(principal, limit=limit, cursor=cursor, tenant=tenant, search=search)

    def list_versions(self, name: str, principal: Principal) -> list[Version]:
        """An adapter's versions, newest first."""
        return self._catalog.versions(AdapterName.parse(name), principal)

    def page_versions(
        self, name: str, principal: Principal, *, limit: int = PAGE_DEFAULT, cursor: str | None = None
    ) -> Page[Version]:
        """Some of an adapter's versions, newest first; the page's cursor asks for the next ones."""
        return self._listing.versions(AdapterName.parse(name), principal, limit=limit, cursor=cursor)
