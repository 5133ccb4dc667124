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

from registry.adapter_files import list_files
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
from registry.publication import Publication
from registry.quotas import Quotas
from registry.tenant_policies import TenantPolicies
from registry.trees import git_oid, is_large
from registry.version import Visibility

MESSAGE_CHARACTERS = 2_000


@dataclass(frozen=True)
class Submission:
    """What a folder is published as, and by whom.

    `base_fingerprint` names the base of a folder without a manifest; `visibility` None keeps the adapter's.
    """

    name: AdapterName
    principal: Principal
    base_fingerprint: str | None = None
    visibility: Visibility | None = None
    message: str = ""

    def check(self) -> None:
        """What can be refused before a byte is read. Raises PermissionDeniedError, InvalidValueError."""
        self.principal.require(Role.PUBLISHER, self.name, action="publish to")
        check_text("message", self.message, limit_characters=MESSAGE_CHARACTERS)


class Publisher:
    """Publishes into one registry. Holds no state but its parts, so threads may share it."""

    def __init__(
        self, catalog: Catalog, bases: Bases, blobs: BlobStore, quotas: Quotas, policies: TenantPolicies
    ) -> None:
        self._catalog = catalog
        self._bases = bases
        self._blobs = blobs
        self._quotas = quotas
        self._policies = policies

    def publish(self, folder: Path, submission: Submission) -> Publication:
        """Judge the folder and make it the adapter's next version.

        Raises PermissionDeniedError, RejectedAdapterError, BaseMismatchError, QuotaExceededError, ConflictError,
        StorageError.
        """
        submission.check()
        with self._blobs.staged(folder, list_files(folder)) as staging:
            return self.publish_staged(staging, submission)

    def publish_staged(self, staging: Staging, submission: Submission) -> Publication:
        """As `publish`, of files that lie in a private folder on the store's own disk already, hashed."""
        submission.check()
        reach("publish.after_stage")
        name, principal = submission.name, submission.principal
        admission = admit(
            staging.folder,
            self._bases,
            named_base=submission.base_fingerprint,
            policy=self._policies.of(name.tenant),
            find_experts=lambda digests: self._catalog.experts(name.tenant, digests, principal),
        )
        git_oids = _git_oids(staging)
        draft = admission.draft(staging.files, message=submission.message)
        with _room_for(staging, self._quotas, name, principal) as sizes:
            reach("publish.after_judge")
            self._blobs.keep(staging)
            reach("publish.after_keep")
            self._quotas.mark_stored(name.tenant, sizes)
            version, is_new = self._catalog.add_version(
                name, draft, visibility=submission.visibility, principal=principal, git_oids=git_oids
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
