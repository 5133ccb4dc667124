"""Canaries: an alias gives a part of its requests to a second version. One method is one transaction.

A canary gathers experience; it decides nothing. Starting one passes no gate (it needs the role promoter), promoting its
candidate does. The alias's next move, a promotion or a rollback, ends it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.aliases import Aliases
from registry.canary import PERMILLE
from registry.canary_rows import end_canary, find_canaries, find_canary, record_canary
from registry.database import Database
from registry.errors import ConflictError, InvalidNameError, InvalidValueError, NotFoundError
from registry.event import EventKind
from registry.expected import Expected
from registry.fresh_cache import FreshCache
from registry.lookup import find_adapter, find_version, to_versions
from registry.models import AdapterRow, AliasRow, CanaryRow, VersionRow
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.principal import Principal, Role
from registry.version import AliasMove, Canary, Split

SPLITS_LIMIT = 16_384


class Canaries:
    """The canaries of aliases. Threads may share it."""

    def __init__(self, database: Database, aliases: Aliases) -> None:
        self._database = database
        self._aliases = aliases
        self._splits: FreshCache[tuple[Principal, str], Split] = FreshCache(database, SPLITS_LIMIT)

    def start(self, ref: AdapterRef, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give a part of the alias's requests to this version; where a canary runs already, it takes its place.

        Raises NotFoundError, PermissionDeniedError, InvalidValueError, and ConflictError where the alias points at this
        version or at one of another base.
        """
        name = _adapter_of(ref)
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.PROMOTER, name, action="start a canary of")
            candidate, _, _ = find_version(session, ref, principal)
            stable = _stable(session, name, adapter, parse_alias(alias))
            _check_weight(permille)
            _check_candidate(name, alias, stable, candidate)
            end_canary(session, name, adapter, alias, actor=principal.actor, why="replaced", at=now)
            session.add(
                CanaryRow(
                    adapter_id=adapter.id,
                    alias=alias,
                    version_id=candidate.id,
                    permille=permille,
                    actor=principal.actor,
                    started_at=now,
                )
            )
            session.flush()
            canary = _running(session, name, adapter, alias)
            record_canary(session, EventKind.CANARY_STARTED, adapter, canary, actor=principal.actor, at=now)
            return canary

    def change(self, name: AdapterName, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give the canary another weight; whoever it had keeps it where the weight grows. Raises NotFoundError."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.PROMOTER, name, action="change a canary of")
            before = _running(session, name, adapter, parse_alias(alias))
            _check_weight(permille)
            session.get_one(CanaryRow, (adapter.id, alias)).permille = permille
            session.flush()
            canary = _running(session, name, adapter, alias)
            actor = principal.actor
            record_canary(
                session, EventKind.CANARY_CHANGED, adapter, canary, actor=actor, at=now, before=before.permille
            )
            return canary

    def stop(self, name: AdapterName, alias: str, *, principal: Principal) -> Canary:
        """Give every request to the stable version again. Raises NotFoundError where no canary runs."""
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            principal.require(Role.PROMOTER, name, action="stop a canary of")
            canary = end_canary(
                session, name, adapter, parse_alias(alias), actor=principal.actor, why="stopped", at=now
            )
            if canary is None:
                raise _missing(name, alias)
            return canary

    def promote(
        self, name: AdapterName, alias: str, *, expected: Expected, evidence: str, principal: Principal
    ) -> AliasMove:
        """Point the alias at its canary's candidate, through the gate; that ends the canary. Rights are checked above.

        Raises NotFoundError, AliasMovedError, GateError.
        """
        with self._database.reading() as session:
            canary = _running(session, name, find_adapter(session, name, principal), alias)
        ref = AdapterRef(name, number=canary.number)
        return self._aliases.promote(ref, alias, expected=expected, evidence=evidence, principal=principal)

    def all(self, name: AdapterName, principal: Principal) -> list[Canary]:
        """The canaries that run on the adapter's aliases. Raises NotFoundError."""
        with self._database.reading() as session:
            return find_canaries(session, name, find_adapter(session, name, principal).id)

    def resolve_split(self, text: str, principal: Principal) -> Split:
        """What the reference means now, with the canary where it names an alias on which one runs.

        Raises InvalidNameError, NotFoundError. The answer holds until something is committed.
        """
        return self._splits.get((principal, text), lambda: self._look_up(AdapterRef.parse(text), principal))

    def _look_up(self, ref: AdapterRef, principal: Principal) -> Split:
        with self._database.reading() as session:
            stable = find_version(session, ref, principal)
            canary = None
            if ref.adapter is not None and ref.alias is not None:
                canary = find_canary(session, ref.adapter, stable[1].id, ref.alias)
            if canary is None or ref.adapter is None:
                return Split(to_versions(session, [stable])[0])
            candidate = find_version(session, AdapterRef(ref.adapter, number=canary.number), principal)
            versions = to_versions(session, [stable, candidate])
            return Split(versions[0], canary, versions[1])


def _adapter_of(ref: AdapterRef) -> AdapterName:
    if ref.adapter is None:
        raise InvalidNameError("a candidate", str(ref), "name the adapter too, such as acme/text2sql@3")
    return ref.adapter


def _stable(session: Session, name: AdapterName, adapter: AdapterRow, alias: str) -> VersionRow:
    query = select(VersionRow).join(AliasRow, AliasRow.version_id == VersionRow.id)
    row = session.scalar(query.where(AliasRow.adapter_id == adapter.id, AliasRow.name == alias))
    if row is None:
        raise NotFoundError("alias", f"{name}@{alias}", f"Promote a version first: `loraplex promote {name}@NUMBER`.")
    return row


def _running(session: Session, name: AdapterName, adapter: AdapterRow, alias: str) -> Canary:
    canary = find_canary(session, name, adapter.id, alias)
    if canary is None:
        raise _missing(name, alias)
    return canary


def _check_weight(permille: int) -> None:
    if isinstance(permille, bool) or not 1 <= permille <= PERMILLE:
        raise InvalidValueError("permille", f"it is 1 to {PERMILLE}, the thousandths of the requests")


def _check_candidate(name: AdapterName, alias: str, stable: VersionRow, candidate: VersionRow) -> None:
    if stable.id == candidate.id:
        raise ConflictError(f"{name}@{alias} points at version {stable.number} already. Name another version.")
    if stable.base_fingerprint != candidate.base_fingerprint:
        raise ConflictError(
            f"Version {candidate.number} of {str(name)!r} is for another base than version {stable.number}, which "
            f"{alias!r} points at: one server could not serve both. Promote it where its base is served."
        )


def _missing(name: AdapterName, alias: str) -> NotFoundError:
    return NotFoundError(
        "canary",
        f"{name}@{alias}",
        f"Start one with `loraplex canary start {name}@NUMBER --alias {alias} --percent 5`.",
    )
