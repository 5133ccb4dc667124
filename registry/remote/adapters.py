"""Adapters, versions and bases of a registry over HTTP: resolve, pull, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from registry.base import BaseRecord
from registry.names import AdapterRef
from registry.page import PAGE_DEFAULT, PAGE_LIMIT, Page, check_limit
from registry.principal import OPERATOR, Principal
from registry.pull import pull
from registry.remote.paths import adapter_path
from registry.remote.transfer import Progress, RemoteBlobs
from registry.remote.transport import Transport, part
from registry.version import AdapterSummary, Version, Visibility

Item = TypeVar("Item")


class RemoteAdapters:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport, progress: Progress | None) -> None:
        self._http = http
        self._progress = progress

    def register_base(self, base_json: Mapping[str, Any], *, principal: Principal = OPERATOR) -> BaseRecord:
        """Keep a base so that adapters can be judged against it; doing it again changes nothing."""
        BaseRecord.from_json(base_json)
        return self._http.ask("POST", "/bases", BaseRecord, principal=principal, body=base_json)

    def resolve(self, ref: str, *, principal: Principal) -> Version:
        """The version that the reference means now; a bare name is the newest."""
        AdapterRef.parse(ref)
        return self._http.get("/resolve", Version, principal=principal, params={"ref": ref})

    def pull(self, version: Version, destination: Path, *, principal: Principal = OPERATOR) -> Path:
        """Put the version's files into a folder, verified, all at once."""
        return pull(RemoteBlobs(self._http, version, principal, self._progress), version, destination)

    def adapter(self, name: str, principal: Principal) -> AdapterSummary:
        """One adapter that has a version."""
        return self._http.get(adapter_path(name), AdapterSummary, principal=principal)

    def set_visibility(self, name: str, visibility: str, principal: Principal) -> Visibility:
        """Say who may read an adapter: `private` is its tenant, `public` is everybody with a token. For admins."""
        body = {"visibility": Visibility.parse(visibility).value}
        path = f"{adapter_path(name)}/visibility"
        return self._http.ask("PUT", path, dict[str, Visibility], principal=principal, body=body)["visibility"]

    def list_adapters(self, principal: Principal) -> list[AdapterSummary]:
        """The adapters that the caller may read, by name."""
        return list(_walk(lambda cursor: self.page_adapters(principal, limit=PAGE_LIMIT, cursor=cursor)))

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
        params: dict[str, Any] = {"limit": check_limit(limit), "cursor": cursor, "tenant": tenant, "search": search}
        return self._http.get("/adapters", Page[AdapterSummary], principal=principal, params=params)

    def list_versions(self, name: str, principal: Principal) -> list[Version]:
        """An adapter's versions, newest first."""
        return list(_walk(lambda cursor: self.page_versions(name, principal, limit=PAGE_LIMIT, cursor=cursor)))

    def page_versions(
        self, name: str, principal: Principal, *, limit: int = PAGE_DEFAULT, cursor: str | None = None
    ) -> Page[Version]:
        """Some of an adapter's versions, newest first; the page's cursor asks for the next ones."""
        params: dict[str, Any] = {"limit": check_limit(limit), "cursor": cursor}
        return self._http.get(adapter_path(name) + "/versions", Page[Version], principal=principal, params=params)

    def bases(self) -> list[BaseRecord]:
        """Every registered base, oldest first."""
        return self._http.get("/bases", list[BaseRecord], principal=OPERATOR)

    def base(self, fingerprint: str) -> BaseRecord:
        """The base with this fingerprint, or the only one that begins so."""
        return self._http.get(f"/bases/{part(fingerprint)}", BaseRecord, principal=OPERATOR)


def _walk(page: Callable[[str | None], Page[Item]]) -> Iterator[Item]:
    cursor = None
    while True:
        shown = page(cursor)
        yield from shown.items
        cursor = shown.next_cursor
        if cursor is None:
            return
