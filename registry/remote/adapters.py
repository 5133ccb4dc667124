"""Adapters and versions of a registry over HTTP: publish, resolve, pull, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from registry.adapter import list_files
from registry.base import BaseRecord
from registry.errors import RejectedAdapterError
from registry.names import AdapterName, AdapterRef
from registry.page import PAGE_DEFAULT, PAGE_LIMIT, Page, check_limit
from registry.principal import OPERATOR, Principal
from registry.publish import Publication
from registry.pull import pull
from registry.reasons import RejectReason
from registry.remote.transfer import HashingFile, Progress, RemoteBlobs, check_uploaded
from registry.remote.transport import Transport, part
from registry.version import AdapterSummary, Version

Item = TypeVar("Item")


class RemoteAdapters:
    """A part of `RemoteRegistry`; the contracts are those of `registry.registry.Registry`."""

    _http: Transport
    _progress: Progress | None

    def publish(
        self,
        folder: Path,
        name: str,
        *,
        principal: Principal,
        base_fingerprint: str | None = None,
        visibility: str | None = None,
        message: str = "",
    ) -> Version:
        """Make the folder the adapter's next version; the same files again give the version that has them."""
        return self.publish_outcome(
            folder,
            name,
            principal=principal,
            base_fingerprint=base_fingerprint,
            visibility=visibility,
            message=message,
        ).version

    def publish_outcome(
        self,
        folder: Path,
        name: str,
        *,
        principal: Principal,
        base_fingerprint: str | None = None,
        visibility: str | None = None,
        message: str = "",
    ) -> Publication:
        """As `publish`, and says whether the version is new. The folder is streamed, and what arrived is compared."""
        options = {"base_fingerprint": base_fingerprint, "visibility": visibility, "message": message or None}
        sent: list[HashingFile] = []
        try:
            sent.extend(_open(folder / file_name, self._progress) for file_name in list_files(folder))
            outcome = self._http.upload(
                _path_of(name) + "/versions",
                Publication,
                principal=principal,
                data={option: value for option, value in options.items() if value is not None},
                files=[("file", (file.entry().path, file, "application/octet-stream")) for file in sent],
            )
        finally:
            for file in sent:
                file.close()
        check_uploaded(outcome.version, sent)
        return outcome

    def resolve(self, ref: str, *, principal: Principal) -> Version:
        """The version that the reference means now; a bare name is the newest."""
        AdapterRef.parse(ref)
        return self._http.get("/resolve", Version, principal=principal, params={"ref": ref})

    def pull(self, version: Version, destination: Path, *, principal: Principal = OPERATOR) -> Path:
        """Put the version's files into a folder, verified, all at once."""
        return pull(RemoteBlobs(self._http, version, principal, self._progress), version, destination)

    def adapter(self, name: str, principal: Principal) -> AdapterSummary:
        """One adapter that has a version."""
        return self._http.get(_path_of(name), AdapterSummary, principal=principal)

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
        return self._http.get(_path_of(name) + "/versions", Page[Version], principal=principal, params=params)

    def bases(self) -> list[BaseRecord]:
        """Every registered base, oldest first."""
        return self._http.get("/bases", list[BaseRecord], principal=OPERATOR)

    def base(self, fingerprint: str) -> BaseRecord:
        """The base with this fingerprint, or the only one that begins so."""
        return self._http.get(f"/bases/{part(fingerprint)}", BaseRecord, principal=OPERATOR)


def _path_of(name: str) -> str:
    parsed = AdapterName.parse(name)
    return f"/adapters/{part(parsed.tenant)}/{part(parsed.name)}"


def _open(path: Path, progress: Progress | None) -> HashingFile:
    try:
        return HashingFile(path, progress)
    except OSError as error:
        detail = f"it cannot be read ({error.strerror})"
        raise RejectedAdapterError(RejectReason.CHANGED_WHILE_READ, detail, file=path.name) from error


def _walk(page: Callable[[str | None], Page[Item]]) -> Iterator[Item]:
    cursor = None
    while True:
        shown = page(cursor)
        yield from shown.items
        cursor = shown.next_cursor
        if cursor is None:
            return
