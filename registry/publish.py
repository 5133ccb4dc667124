"""Publishing: an adapter folder becomes an immutable version, or is refused with the reason.

The order makes it atomic: files are copied aside and hashed, the copy is judged, room is reserved in the tenant's
quota, blobs are kept, and only then one transaction makes the version. A crash leaves the old state or the new one, and
at most blobs that nothing refers to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from registry.adapter import list_files
from registry.admission import admit
from registry.bases import Bases
from registry.blobs import BlobStore, Staging
from registry.blobs.staging_area import explained
from registry.bounded_text import check_text
from registry.catalog import Catalog
from registry.errors import RegistryError, StorageError
from registry.failpoints import reach
from registry.names import AdapterName
from registry.principal import Principal, Role
from registry.quotas import Quotas
from registry.tenant_policy import TenantPolicy
from registry.trees import git_oid, is_large
from registry.version import Version, Visibility

MESSAGE_CHARACTERS = 2_000


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
    policy: TenantPolicy,
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
        return publish_staged(
            catalog,
            bases,
            blobs,
            quotas,
            staging,
            name,
            principal=principal,
            policy=policy,
            base_fingerprint=base_fingerprint,
            visibility=visibility,
            message=message,
        )


def publish_staged(
    catalog: Catalog,
    bases: Bases,
    blobs: BlobStore,
    quotas: Quotas,
    staging: Staging,
    name: AdapterName,
    *,
    principal: Principal,
    policy: TenantPolicy,
    base_fingerprint: str | None,
    visibility: Visibility | None,
    message: str,
) -> Publication:
    """As `publish`, of files that lie in a private folder on the store's own disk already, hashed.

    Raises as `publish`.
    """
    principal.require(Role.PUBLISHER, name, action="publish to")
    check_text("message", message, limit_characters=MESSAGE_CHARACTERS)
    reach("publish.after_stage")
    admission = admit(
        staging.folder,
        bases,
        named_base=base_fingerprint,
        policy=policy,
        find_experts=lambda digests: catalog.experts(name.tenant, digests, principal),
    )
    git_oids = _git_oids(staging)
    draft = admission.draft(staging.files, message=message)
    with _room_for(staging, quotas, name, principal) as sizes:
        reach("publish.after_judge")
        blobs.keep(staging)
        reach("publish.after_keep")
        quotas.mark_stored(name.tenant, sizes)
        version, is_new = catalog.add_version(
            name, draft, visibility=visibility, principal=principal, git_oids=git_oids
        )
    reach("publish.after_commit")
    return Publication(version, is_new)


def _git_oids(staging: Staging) -> dict[str, str]:
    """Git's names of the small files, by path."""
    small = (file for file in staging.files if not is_large(file.path, file.size))
    with explained(staging.folder, verb="read"):
        return {file.path: git_oid((staging.folder / file.path).read_bytes()) for file in small}


@contextmanager
def _room_for(
    staging: Staging, quotas: Quotas, name: AdapterName, principal: Principal
) -> Iterator[list[tuple[str, int]]]:
    """Room in the tenant's quota for these digests and sizes; where no version comes of it, it is given back."""
    sizes = [(file.sha256, file.size) for file in staging.files]
    reservation = quotas.reserve(name.tenant, sizes, principal=principal)
    try:
        yield sizes
    except RegistryError:
        with suppress(StorageError):  # it runs out by itself
            quotas.release(reservation)
        raise
