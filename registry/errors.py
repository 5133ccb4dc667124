"""Every error that the registry raises.

    RegistryError
    |-- InvalidNameError            a name, reference or digest outside the grammar
    |-- InvalidValueError           an argument out of its bounds
    |   `-- ForbiddenAddressError   ... a URL that this server will not connect to
    |-- NotFoundError               missing, or another tenant's private adapter: the two are told apart by nobody
    |-- AuthenticationError         a secret that opens nothing
    |   `-- MissingTokenError       ... because there was none
    |-- PermissionDeniedError       a role that is too low, or another tenant's adapter
    |   `-- ReadOnlyRevisionError   ... or a revision that takes no commits
    |-- RejectedAdapterError        an adapter folder that will not be accepted (`reason` is a stable code)
    |   `-- BaseMismatchError       ... because it stands on another base
    |-- InvalidBaseError            a base description that cannot be read
    |-- UploadMismatchError         uploaded bytes that are not what was announced
    |-- QuotaExceededError          a tenant that has as much as it may have
    |-- ConflictError               the state does not allow the change
    |   |-- AliasMovedError         ... because somebody else moved the alias first
    |   |-- ParentMovedError        ... or the branch
    |   |-- NeededVersionError      ... because an alias, a rollback or something else needs what is to be deleted
    |   `-- GateError               ... because the version does not pass the alias's policy
    |-- ArchiveError                a file to import that is damaged, or is no export
    |-- BusyError                   too many at once: later it will be possible
    |-- UpstreamError               another server did not answer, or not well
    `-- StorageError                the disk or the database failed
        |-- CatalogBusyError        ... to give this one its turn: nothing was changed, and later it will be possible
        |-- IntegrityError          stored bytes are not what their digest says
        |-- IncompatibleRegistryError   written by a newer release
        `-- UnreachableError        a registry on another machine that cannot be asked

A message says what happened, to which thing, and what to do next; the fields are there for programs. No message holds a
secret. Those of StorageError name local paths: they are for the operator, and a server does not pass them on, but for
those of CatalogBusyError and IntegrityError, which name none.
"""

from __future__ import annotations

from pathlib import Path

from registry.printable import printable
from registry.reasons import ADVICE, RejectReason


class RegistryError(Exception):
    """Root of everything that the registry raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
        self.message = printable(message)


class InvalidNameError(RegistryError):
    """A name, reference or digest that breaks a rule of the grammar."""

    def __init__(self, kind: str, text: str, rule: str) -> None:
        shown = text if len(text) <= 120 else text[:120] + "..."
        super().__init__(f"{shown!r} is not {kind}: {rule}.")
        self.kind = kind
        self.text = text
        self.rule = rule


class InvalidValueError(RegistryError):
    """An argument that is out of its bounds."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"`{field}` cannot be taken: {why}. Correct it and try again.")
        self.field = field
        self.why = why


class ForbiddenAddressError(InvalidValueError):
    """A URL or host that this server will not connect to on anybody's behalf."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__("url", f"{why} ({url[:200]!r})")
        self.url = url


class NotFoundError(RegistryError):
    """Something that does not exist, or that the caller may not know to exist."""

    def __init__(self, kind: str, name: str, next_step: str) -> None:
        super().__init__(f"There is no {kind} {name!r}. {next_step}")
        self.kind = kind
        self.name = name


class AuthenticationError(RegistryError):
    """A secret that is unknown, revoked or expired; which of these is not told."""

    def __init__(self) -> None:
        super().__init__(
            "The token is not valid: it is unknown, revoked or expired. "
            "Make a new one with `loraplex token create --tenant TENANT --role ROLE`."
        )


class MissingTokenError(AuthenticationError):
    """A request without a token, where one is needed."""

    def __init__(self) -> None:
        RegistryError.__init__(self, "No token was given. Send it as `Authorization: Bearer lpx_...`.")


class PermissionDeniedError(RegistryError):
    """A caller who is known and may not do this."""

    def __init__(self, action: str, subject: str, why: str) -> None:
        super().__init__(f"You may not {action} {subject!r}: {why}.")
        self.action = action
        self.subject = subject
        self.why = why


class ReadOnlyRevisionError(PermissionDeniedError):
    """A revision that is no branch: aliases move by promotion, and tags, versions and commits never do."""

    def __init__(self, adapter: str, revision: str) -> None:
        why = (
            "only branches are written to, and this is an alias, a tag, a version or a commit; commit to 'main', or "
            "change an alias with `loraplex promote` and `loraplex alias delete`"
        )
        super().__init__("write to", f"{adapter}@{revision}", why)
        self.adapter = adapter
        self.revision = revision


class RejectedAdapterError(RegistryError):
    """An adapter folder that is refused. `reason` is stable; the rest says where the fault lies."""

    def __init__(
        self,
        reason: RejectReason,
        detail: str,
        *,
        file: str | None = None,
        tensor: str | None = None,
        field: str | None = None,
    ) -> None:
        where = f"{file}: " if file else ""
        super().__init__(f"Adapter refused [{reason.value}]: {where}{detail}. {ADVICE[reason].next_step}")
        self.reason = reason
        self.detail = detail
        self.file = file
        self.tensor = tensor
        self.field = field


class BaseMismatchError(RejectedAdapterError):
    """An adapter whose base is not the one that it meets. `expected` are the fingerprints that would have fitted."""

    def __init__(self, *, found: str, expected: tuple[str, ...]) -> None:
        here = f"the base here is {', '.join(expected)}" if expected else "no base is registered here yet"
        super().__init__(RejectReason.BASE_MISMATCH, f"it was trained on the base with fingerprint {found}, and {here}")
        self.found = found
        self.expected = expected


class InvalidBaseError(RegistryError):
    """A base description (base.json) that is not one."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The base description is not valid: {detail}. "
            "Take base.json as `loraplex base prepare` wrote it beside the quantized snapshot."
        )
        self.detail = detail


class QuotaExceededError(RegistryError):
    """A tenant's quota that does not let something in. `limit` is "bytes" or "versions"; nothing was changed."""

    def __init__(self, tenant: str, limit: str, *, quota: int, used: int, asked: int) -> None:
        super().__init__(
            f"Tenant {tenant!r} may have {quota:,} {limit}, has {used:,}, and {asked:,} more were asked for: "
            "nothing was changed. Delete versions that are no longer needed and let `loraplex gc` free their bytes, or "
            f"ask the operator for more: `loraplex tenant quota {tenant} --{limit} N`."
        )
        self.tenant = tenant
        self.limit = limit
        self.quota = quota
        self.used = used
        self.asked = asked


class UploadMismatchError(RegistryError):
    """Uploaded bytes that are not what was announced, in digest or size; nothing of them was kept."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"The upload was refused: {detail}. Nothing was kept: send the file again, unchanged.")
        self.detail = detail


class ConflictError(RegistryError):
    """A change that the present state does not allow."""


class AliasMovedError(ConflictError):
    """The alias was not where the caller expected it; nothing was changed. None stands for "no such alias"."""

    def __init__(self, adapter: str, alias: str, *, expected: int | None, actual: int | None) -> None:
        super().__init__(
            f"Alias {alias!r} of {adapter!r} {_points_at(actual)}, not at what you expected ({_version(expected)}). "
            f"Nothing was changed: look at it with `loraplex show {adapter}` and promote again."
        )
        self.adapter = adapter
        self.alias = alias
        self.expected = expected
        self.actual = actual


class ParentMovedError(ConflictError):
    """The branch was not at the commit that the caller built on; nothing was changed."""

    def __init__(self, adapter: str, branch: str, *, expected: str, actual: str | None) -> None:
        super().__init__(
            f"Branch {branch!r} of {adapter!r} is at {actual or 'no commit'}, not at {expected}, on which you built: "
            "somebody committed meanwhile. Nothing was changed: fetch the new head and commit again."
        )
        self.adapter = adapter
        self.branch = branch
        self.expected = expected
        self.actual = actual


class NeededVersionError(ConflictError):
    """A version that is not deleted because something needs it; nothing was changed.

    `needed_by` is `alias`, `canary`, `mixture`, `pin`, `tag`, `rollback` or `lease`, and `needer` the alias, mixture or
    tag that it is, or who pinned or leased the version. `can_force` says whether `force` overrules it.
    """

    def __init__(self, adapter: str, number: int, *, needed_by: str, needer: str, why: str, next_step: str) -> None:
        super().__init__(f"Version {number} of {adapter!r} cannot be deleted: {why}. {next_step}")
        self.adapter = adapter
        self.number = number
        self.needed_by = needed_by
        self.needer = needer
        self.can_force = needed_by in ("rollback", "lease")


class GateError(ConflictError):
    """A version that the alias's policy does not let through; nothing was changed.

    `checks` are the failing ones: dictionaries with `name`, `required`, `found` and `next_step`.
    """

    def __init__(self, adapter: str, alias: str, number: int, checks: tuple[dict[str, str], ...]) -> None:
        listed = " ".join(
            f"{check['name']}: required {check['required']}, found {check['found']}. {check['next_step']}".rstrip()
            for check in checks
        )
        super().__init__(
            f"Version {number} of {adapter!r} does not pass the policy of alias {alias!r}; nothing was changed. "
            f"{listed}"
        )
        self.adapter = adapter
        self.alias = alias
        self.number = number
        self.checks = checks


class ArchiveError(RegistryError):
    """A file or folder to import that is damaged, or that no export has written."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The archive cannot be imported: {why}. Export it again with `loraplex export`.")
        self.why = why


class BusyError(RegistryError):
    """The server has no room for another client of this kind now."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The server is busy: {why}. Try again in a few seconds.")
        self.why = why


class UpstreamError(RegistryError):
    """Another server (a webhook's, a mirror's upstream) did not answer, or not as it should."""

    def __init__(self, host: str, why: str) -> None:
        super().__init__(f"{host} could not be used: {why}.")
        self.host = host
        self.why = why


class StorageError(RegistryError):
    """The disk or the database failed, or what is there is no registry."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class CatalogBusyError(StorageError):
    """So many use the catalog, or so slowly, that one did not get its turn in time; nothing was changed."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The catalog is busy: {why}. Nothing was changed: try again in a few seconds.")
        self.why = why


class IntegrityError(StorageError):
    """Stored bytes that do not have their digest. They are never handed out."""

    def __init__(self, path: Path | None, *, expected: str, found: str | None) -> None:
        state = "is missing" if found is None else f"is damaged (its bytes hash to {found})"
        super().__init__(
            f"Blob {expected} {state}: nothing was delivered. "
            "Publish the same adapter again to heal it, or restore the blob from a backup.",
            path=path,
        )
        self.expected = expected
        self.found = found


class IncompatibleRegistryError(StorageError):
    """A registry of a schema that this release does not know."""

    def __init__(self, place: str, revision: str) -> None:
        super().__init__(
            f"The registry at {place} has schema {revision!r}, which this release does not know: a newer release wrote "
            "it. Upgrade Loraplex, or open another registry."
        )
        self.revision = revision


class UnreachableError(StorageError):
    """A registry on another machine that does not answer, or not as one."""

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"The registry at {url} cannot be used: {why.rstrip('.')}. Check the address and the network.")
        self.url = url


def _version(number: int | None) -> str:
    return "no version" if number is None else f"version {number}"


def _points_at(number: int | None) -> str:
    return "does not exist" if number is None else f"points at version {number}"
