"""Publishing: an adapter folder becomes an immutable version, or is refused with the reason.

The order makes it atomic: files are copied aside and hashed, the copy is judged, room is reserved in the tenant's
quota, blobs are kept, and only then one transaction makes the version. A crash leaves the old state or the new one, and
at most blobs that nothing refers to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from registry.adapter import AdapterFolder, list_files
from registry.base import BaseRecord
from registry.bases import Bases
from registry.blobs import BlobStore, Staging
from registry.bounded_text import check_text
from registry.catalog import Catalog
from registry.errors import BaseMismatchError, NotFoundError, RegistryError, RejectedAdapterError
from registry.file_entry import digest_of_files
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.quotas import Quotas
from registry.reasons import RejectReason
from registry.version import Version, VersionDraft, Visibility

MESSAGE_CHARACTERS = 2_000
FINGERPRINTS_SHOWN = 8


@dataclass(frozen=True)
class Publication:
    """The outcome of a publish. `is_new` is False where the same files were a version already."""

    version: Version
    is_new: bool


def publish(
    catalog: Catalog,
    bases: Bases,
    blobs: BlobStore,
    quotas: Quotas,
    folder: Path,
    name: AdapterName,
    *,
    principal: Principal,
    base_fingerprint: str | None,
    visibility: Visibility | None,
    message: str,
) -> Publication:
    """Judge the folder and make it the adapter's next version.

    Raises PermissionDeniedError, RejectedAdapterError, BaseMismatchError, QuotaExceededError, ConflictError,
    StorageError.
    """
    principal.require(Role.PUBLISHER, name, action="publish to")
    check_text("message", message, limit_characters=MESSAGE_CHARACTERS)
    with blobs.staged(folder, list_files(folder)) as staging:
        adapter = AdapterFolder.open(staging.folder)
        base = _find_base(adapter, bases, base_fingerprint)
        verdict = adapter.judge(base)
        with _room_for(staging, quotas, name, principal):
            blobs.keep(staging)
    draft = VersionDraft(
        digest=str(digest_of_files(staging.files)),
        base_fingerprint=base.fingerprint,
        base_verified=verdict.base_verified,
        files=staging.files,
        adapter_bytes=verdict.adapter_bytes,
        rank=verdict.rank,
        target_modules=verdict.target_modules,
        manifest=adapter.manifest_document,
        message=message,
    )
    version, is_new = catalog.add_version(name, draft, visibility=visibility, principal=principal)
    return Publication(version, is_new)


@contextmanager
def _room_for(staging: Staging, quotas: Quotas, name: AdapterName, principal: Principal) -> Iterator[None]:
    """Room in the tenant's quota while its blobs are written; what could not be written is given back."""
    sizes = [(file.sha256, file.size) for file in staging.files]
    reservation = quotas.reserve(name.tenant, sizes, principal=principal)
    try:
        yield
    except RegistryError:
        quotas.release(reservation)
        raise
    quotas.mark_stored(name.tenant, sizes)


def _find_base(adapter: AdapterFolder, bases: Bases, named: str | None) -> BaseRecord:
    """The registered base to judge against: the manifest's, else the one that the caller named."""
    if adapter.manifest is None:
        if named is None:
            raise RejectedAdapterError(RejectReason.BASE_UNKNOWN, _known_bases(bases))
        return bases.find(named)
    found = adapter.manifest.base.fingerprint
    if named is not None:
        expected = bases.find(named)
        if expected.fingerprint != found:
            raise BaseMismatchError(found=found, expected=(expected.fingerprint,))
        return expected
    try:
        return bases.find(found)
    except NotFoundError as error:
        known = tuple(base.fingerprint for base in bases.all()[:FINGERPRINTS_SHOWN])
        raise BaseMismatchError(found=found, expected=known) from error


def _known_bases(bases: Bases) -> str:
    known = [f"{base.name} {base.fingerprint}" for base in bases.all()[:FINGERPRINTS_SHOWN]]
    listed = f"registered are: {', '.join(known)}" if known else "none is registered"
    return f"the folder has no loraplex.json that says which base it was trained on; {listed}"
