"""Publishing into a registry over HTTP."""

from __future__ import annotations

from pathlib import Path

from registry.adapter_files import list_files
from registry.errors import RejectedAdapterError
from registry.principal import Principal
from registry.publication import Publication
from registry.reasons import RejectReason
from registry.remote.paths import adapter_path
from registry.remote.transfer import HashingFile, Progress, check_uploaded
from registry.remote.transport import Transport
from registry.version import Version


class RemotePublishing:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport, progress: Progress | None) -> None:
        self._http = http
        self._progress = progress

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
                adapter_path(name) + "/versions",
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


def _open(path: Path, progress: Progress | None) -> HashingFile:
    try:
        return HashingFile(path, progress)
    except OSError as error:
        detail = f"it cannot be read ({error.strerror})"
        raise RejectedAdapterError(RejectReason.CHANGED_WHILE_READ, detail, file=path.name) from error
