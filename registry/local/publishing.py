"""Publishing into a registry in process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from registry.blobs import BlobStore, Staging
from registry.names import AdapterName
from registry.principal import Principal
from registry.publication import Publication
from registry.publish import Publisher, Submission
from registry.receiving import private_folder
from registry.tally import Tally
from registry.version import Version, Visibility


class LocalPublishing:
    """A part of `Registry`: folders become versions, and are counted."""

    def __init__(self, publisher: Publisher, blobs: BlobStore, tally: Tally) -> None:
        self._publisher = publisher
        self._blobs = blobs
        self._tally = tally

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
        """Make the folder the adapter's next version; the same files again give the version that has them.

        `base_fingerprint` names the base of a folder without a manifest (the version is then not `base_verified`).
        `visibility` None keeps the adapter's, which begins private.
        """
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
        """As `publish`, and says whether the version is new."""
        submission = _submission(name, principal, base_fingerprint, visibility, message)
        return self._tally.publication(lambda: self._publisher.publish(folder, submission))

    def publish_staged(
        self,
        staging: Staging,
        name: str,
        *,
        principal: Principal,
        base_fingerprint: str | None = None,
        visibility: str | None = None,
        message: str = "",
    ) -> Publication:
        """As `publish_outcome`, of files that were received into a folder of `receiving`; they are not copied again."""
        submission = _submission(name, principal, base_fingerprint, visibility, message)
        return self._tally.publication(lambda: self._publisher.publish_staged(staging, submission))

    def receiving(self) -> AbstractContextManager[Path]:
        """A private folder of the registry's own disk for an adapter that arrives, removed at the end of the block."""
        return private_folder(self._blobs.scratch)


def _submission(
    name: str, principal: Principal, base_fingerprint: str | None, visibility: str | None, message: str
) -> Submission:
    parsed = AdapterName.parse(name)
    return Submission(
        parsed, principal, base_fingerprint, None if visibility is None else Visibility.parse(visibility), message
    )
