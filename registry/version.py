"""What the registry hands out: versions, summaries and alias moves. All are immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from registry.errors import InvalidValueError
from registry.file_entry import FileEntry
from registry.policies import GateVerdict
from registry.verdict import ServingVerdict


class Visibility(StrEnum):
    """Who may read an adapter: its tenant, or everybody with a token."""

    PRIVATE = "private"
    PUBLIC = "public"

    @classmethod
    def parse(cls, text: str) -> Visibility:
        """The visibility of this name. Raises InvalidValueError."""
        try:
            return cls(text)
        except ValueError as error:
            raise InvalidValueError("visibility", f"it is one of {', '.join(cls)}") from error


class MoveKind(StrEnum):
    """How an alias came to point where it does, or not to be there any more."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    DELETE = "delete"


@dataclass(frozen=True)
class Version:
    """One immutable version of an adapter. `digest` is its identity; `number` is how people call it.

    `base_verified` is False where the base was named at publish or found by its shapes, not recorded by the trainer.
    `rank` is the largest of any module; `target_modules` are the last parts of the module names. Visibility is the
    adapter's, as it was when this value was read. `serving` says who can serve it, None where an older release made
    it. `experts` are the digests of a mixture's, in the order of its gate; an adapter has none. Times are UTC.
    """

    tenant: str
    adapter: str
    number: int
    digest: str
    base_fingerprint: str
    base_verified: bool
    files: tuple[FileEntry, ...]
    adapter_bytes: int
    rank: int
    target_modules: tuple[str, ...]
    visibility: Visibility
    created_at: datetime
    created_by: str
    manifest: dict[str, Any] | None
    message: str
    parent_digest: str | None = None
    data_digest: str | None = None
    serving: ServingVerdict | None = None
    experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class VersionDraft:
    """A version before the catalog has given it a number."""

    digest: str
    base_fingerprint: str
    base_verified: bool
    files: tuple[FileEntry, ...]
    adapter_bytes: int
    rank: int
    target_modules: tuple[str, ...]
    manifest: dict[str, Any] | None
    message: str
    parent_digest: str | None = None
    data_digest: str | None = None
    serving: ServingVerdict | None = None
    experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdapterSummary:
    """One line of a listing: an adapter, its newest version, and where its aliases point.

    `unverified` are those of these versions whose base is not verified.
    """

    tenant: str
    adapter: str
    visibility: Visibility
    newest_number: int
    newest_digest: str
    base_fingerprint: str
    rank: int
    adapter_bytes: int
    aliases: Mapping[str, int]
    created_at: datetime
    updated_at: datetime
    unverified: tuple[int, ...] = ()


@dataclass(frozen=True)
class AliasMove:
    """One entry of an alias's history. `from_number` is None where the alias was new, `to_number` where it was deleted.

    `gate` is how the alias's policy judged the version; None where there was no policy, and for rollbacks and
    deletions, which judge no version.
    """

    adapter: str
    alias: str
    sequence: int
    kind: MoveKind
    from_number: int | None
    to_number: int | None
    actor: str
    evidence: str
    moved_at: datetime
    gate: GateVerdict | None = None


@dataclass(frozen=True)
class Canary:
    """A second version that an alias gives to `permille` thousandths of its requests."""

    adapter: str
    alias: str
    number: int
    digest: str
    permille: int
    actor: str
    started_at: datetime


@dataclass(frozen=True)
class Split:
    """What a reference means now: one version, and, while a canary runs on its alias, another for some requests."""

    stable: Version
    canary: Canary | None = None
    candidate: Version | None = None
