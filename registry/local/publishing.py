"""Publishing into a registry in process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from registry.bases import Bases
from registry.blobs import BlobStore, Staging
from registry.catalog import Catalog
from registry.errors import InvalidValueError
from registry.names import AdapterName
from registry.principal import Principal
from registry.publish import Publication, publish, publish_staged
from registry.quotas import Quotas
from registry.receiving import private_folder
from registry.tally import Tally
from registry.tenant_policy import TenantPolicies
from registry.version import Version, Visibility


class LocalPublishing:
    """A part of `Registry`: folders become versions, and are counted."""

    def __init__(
        self,
        catalog: Catalog,
        bases: Bases,
        blobs: BlobStore,
        quotas: Quotas,
        policies: TenantPolicies,
        tally: Tally,
    ) -> None:
        self._catalog = catalog
        self._bases = bases
        self._blobs = blobs
        self._quotas = quotas
        self._policies = policies
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
        parsed = AdapterName.parse(name)
        return self._tally.publication(
            lambda: publish(
                self._catalog,
                self._bases,
                self._blobs,
                self._quotas,
                folder,
                parsed,
                principal=principal,
                policy=self._policies.of(parsed.tenant),
                base_fingerprint=base_fingerprint,
                visibility=_parse_visibility(visibility),
                message=message,
            )
        )

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
        parsed = AdapterName.parse(name)
        return self._tally.publication(
            lambda: publish_staged(
                self._catalog,
                self._bases,
                self._blobs,
                self._quotas,
                staging,
                parsed,
                principal=principal,
                policy=self._policies.of(parsed.tenant),
                base_fingerprint=base_fingerprint,
                visibility=_parse_visibility(visibility),
                message=message,
            )
        )

    def receiving(self) -> AbstractContextManager[Path]:
        """A private folder of the registry's own disk for an adapter that arrives, removed at the end of the block."""
        return private_folder(self._blobs.scratch)


def _parse_visibility(text: str | None) -> Visibility | None:
    try:
        return None if text is None else Visibility(text)
    except ValueError as error:
        raise InvalidValueError("visibility", f"it is one of {', '.join(Visibility)}") from error
