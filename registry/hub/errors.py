"""What the Hub face raises itself, and what each error of the registry looks like to a Hub client.

    RegistryError
    |-- BodyTooLargeError       a body over its limit
    |-- ClientGoneError         the client left before its body was read
    |-- NotFoundError
    |   `-- EntryNotFoundError  ... of a file, with the commit that does not have it
    `-- HubError                anything else, with its status

Clients map errors by the header X-Error-Code, which follows from the `kind` of a NotFoundError: `adapter`, `revision`
or `entry`. A foreign private repository and a missing one are answered by the same bytes: the message of RepoNotFound
names nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from registry.errors import (
    AuthenticationError,
    CatalogBusyError,
    ConflictError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    ParentMovedError,
    PermissionDeniedError,
    QuotaExceededError,
    RegistryError,
    RejectedAdapterError,
    StorageError,
    UploadMismatchError,
)

REPOSITORY_KINDS = frozenset({"adapter", "repository", "tenant"})
REPO_NOT_FOUND = "Repository not found, or your token may not read it."
STORAGE_FAILED = "The registry's storage failed. Try again later; if this was a change, look first whether it was made."


class BodyTooLargeError(RegistryError):
    """A body over the limit of its route."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body has more than {limit_bytes:,} bytes, which is the limit here. Send less at once.")
        self.limit_bytes = limit_bytes


class ClientGoneError(RegistryError):
    """The client closed the connection in the middle of its request; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__("The client closed the connection before its request was read.")


class EntryNotFoundError(NotFoundError):
    """A commit without this file; clients remember it by the commit."""

    def __init__(self, path: str, *, commit_id: str) -> None:
        super().__init__("entry", path[:200], "List the repository's files to see those it has.")
        self.commit_id = commit_id


class HubError(RegistryError):
    """An answer that is decided by the Hub face itself."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Failure:
    """How an error is answered."""

    status: int
    message: str
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


def failure_of(error: RegistryError) -> Failure:
    """The answer for this error. Nothing of it names paths, digests of others, or internals."""
    if isinstance(error, HubError):
        return Failure(error.status, error.message, error.code)
    if isinstance(error, BodyTooLargeError):
        return Failure(413, error.message)
    if isinstance(error, NotFoundError):
        return _not_found(error)
    if isinstance(error, AuthenticationError):
        return Failure(401, error.message, headers={"www-authenticate": "Bearer"})
    if isinstance(error, (PermissionDeniedError, QuotaExceededError)):
        return Failure(403, error.message)
    if isinstance(error, ParentMovedError):
        return Failure(412, error.message)
    if isinstance(error, ConflictError):
        return Failure(409, error.message)
    if isinstance(error, (InvalidNameError, InvalidValueError, RejectedAdapterError, UploadMismatchError)):
        return Failure(400, error.message)
    if isinstance(error, CatalogBusyError):
        return Failure(503, error.message)
    if isinstance(error, StorageError):
        return Failure(503, STORAGE_FAILED)
    return Failure(500, "Internal error.")


def _not_found(error: NotFoundError) -> Failure:
    if error.kind in REPOSITORY_KINDS:
        return Failure(404, REPO_NOT_FOUND, "RepoNotFound")
    if error.kind == "revision":
        return Failure(404, error.message, "RevisionNotFound")
    if error.kind == "entry":
        known = {"x-repo-commit": error.commit_id} if isinstance(error, EntryNotFoundError) else {}
        return Failure(404, error.message, "EntryNotFound", known)
    return Failure(404, error.message)
