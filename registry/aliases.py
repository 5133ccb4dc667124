"""Aliases in the database: where each points, and every move there ever was. One method is one transaction.

A move reads the alias, compares it with what the caller expected, and writes, with no other writer in between.
Rolling back undoes promotions one by one, as a stack (`rollback.py`).

Where the alias has a policy, a promotion passes its gate in the same transaction (`gates.py`); a rollback is never held
up. A deletion takes the alias away and keeps its history and its policy; it needs the role admin where there is a
policy, because a new alias has no incumbent that a margin would be measured against. Each of them ends the alias's
canary.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit, events
from registry.alias_rows import current_number, find_moves, record_move, to_move
from registry.database import Database
from registry.errors import AliasMovedError, ConflictError, GateError, NotFoundError
from registry.event import EventKind
from registry.expected import AtSequence, Expectation, Expected
from registry.gates import Signers, judge, refuse
from registry.lookup import find_adapter, find_version
from registry.models import AdapterRow, AliasMoveRow, AliasPolicyRow, AliasRow, VersionRow
from registry.names import AdapterName, AdapterRef
from registry.policies import GateVerdict
from registry.principal import Principal, Role
from registry.rollback import numbers_moved_to, promotions_in_force, rollback_target
from registry.trees import kind_of_ref
from registry.version import AliasMove, MoveKind, Visibility


class Aliases:
    """Where aliases point. Holds no state but the database, so threads may share it."""

    def __init__(self, database: Database, signers: Signers) -> None:
        self._database = database
        self._signers = signers

    def current(self, name: AdapterName, principal: Principal) -> dict[str, int]:
        """Version numbers by alias. Raises NotFoundError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            query = select(AliasRow.name, VersionRow.number).join(VersionRow, VersionRow.id == AliasRow.version_id)
            found = session.execute(query.where(AliasRow.adapter_id == adapter.id).order_by(AliasRow.name))
            return {row.name: row.number for row in found}

    def history(self, name: AdapterName, alias: str, principal: Principal) -> list[AliasMove]:
        """Every move of an alias, newest first, also of one that was deleted. Raises NotFoundError."""
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            moves = find_moves(session, adapter, alias)
            if not moves:
                raise missing_alias(name, alias)
            return [to_move(name, move) for move in reversed(moves)]

    def promote(
        self, ref: AdapterRef, alias: str, *, expected: Expected, evidence: str, principal: Principal
    ) -> AliasMove:
        """Point the alias at the version that the reference means now; the reference must name an adapter.

        Where it points there already, nothing changes and the move that brought it there is returned.
        Raises NotFoundError, AliasMovedError, GateError.
        """
        name = ref.adapter
        assert name is not None, "checked by promote.py"
        try:
            with self._database.writing() as session:
                adapter = find_adapter(session, name, principal, lock=True)
                version, _, _ = find_version(session, ref, principal)
                moves = find_moves(session, adapter, alias)
                _compare(name, alias, moves, expected)
                if current_number(moves) == version.number:
                    return to_move(name, moves[-1])
                if current_number(moves) is None:
                    _refuse_taken(session, adapter, name, alias)
                gate = self._pass_gate(session, name, adapter, alias, moves, version)
                kind = MoveKind.PROMOTE
                return record_move(session, name, adapter, alias, kind, moves, version, evidence, principal, gate)
        except GateError as error:
            self._record_refusal(name, error, principal)
            raise

    def check_gate(self, ref: AdapterRef, alias: str, principal: Principal) -> GateVerdict | None:
        """How the alias's policy would judge this version now; None where there is no policy. Changes nothing."""
        name = ref.adapter
        assert name is not None, "checked by promote.py"
        with self._database.reading() as session:
            adapter = find_adapter(session, name, principal)
            version, _, _ = find_version(session, ref, principal)
            return self._judge(session, name, adapter, alias, find_moves(session, adapter, alias), version)

    def roll_back(
        self, name: AdapterName, alias: str, *, expected: Expected, evidence: str, principal: Principal
    ) -> AliasMove:
        """Point the alias back to where it was before its last promotion, or, past what was deleted, before that one.

        Raises NotFoundError, ConflictError.
        """
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            moves = find_moves(session, adapter, alias)
            if current_number(moves) is None:
                raise missing_alias(name, alias)
            _compare(name, alias, moves, expected)
            number = rollback_target(moves, numbers_moved_to(session, adapter.id))
            if number is None:
                raise _nothing_before(name, alias, moves)
            query = select(VersionRow).where(VersionRow.adapter_id == adapter.id, VersionRow.number == number)
            version = session.scalars(query).one()
            kind = MoveKind.ROLLBACK
            return record_move(session, name, adapter, alias, kind, moves, version, evidence, principal)

    def delete(
        self, name: AdapterName, alias: str, *, expected: Expected, evidence: str, principal: Principal
    ) -> AliasMove:
        """Take the alias away; what it pointed at and would be rolled back to is not kept for its sake any more.

        Raises NotFoundError, AliasMovedError, and PermissionDeniedError where it has a policy and the caller is no
        admin.
        """
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            moves = find_moves(session, adapter, alias)
            if current_number(moves) is None:
                raise missing_alias(name, alias)
            if session.get(AliasPolicyRow, (adapter.id, alias)) is not None:
                principal.require(Role.ADMIN, name, action="delete an alias with a policy of")
            _compare(name, alias, moves, expected)
            return record_move(session, name, adapter, alias, MoveKind.DELETE, moves, None, evidence, principal)

    def _pass_gate(
        self,
        session: Session,
        name: AdapterName,
        adapter: AdapterRow,
        alias: str,
        moves: list[AliasMoveRow],
        version: VersionRow,
    ) -> GateVerdict | None:
        gate = self._judge(session, name, adapter, alias, moves, version)
        if gate is not None and not gate.passed:
            raise refuse(name, alias, gate)
        return gate

    def _judge(
        self,
        session: Session,
        name: AdapterName,
        adapter: AdapterRow,
        alias: str,
        moves: list[AliasMoveRow],
        version: VersionRow,
    ) -> GateVerdict | None:
        incumbent = None
        if (number := current_number(moves)) is not None:
            query = select(VersionRow).where(VersionRow.adapter_id == adapter.id)
            incumbent = session.scalar(query.where(VersionRow.number == number))
        return judge(
            session,
            name,
            alias,
            adapter_id=adapter.id,
            candidate=version,
            incumbent=incumbent,
            signers=self._signers,
            at=datetime.now(UTC),
        )

    def _record_refusal(self, name: AdapterName, error: GateError, principal: Principal) -> None:
        """A refused promotion changes nothing, and is remembered: in a transaction of its own."""
        now = datetime.now(UTC)
        failing = [check["name"] for check in error.checks]
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal)
            audit.record(
                session,
                at=now,
                actor=principal.actor,
                action="promote_refused",
                subject=f"{name}@{error.alias}",
                number=error.number,
                failing=", ".join(failing),
            )
            events.record(
                session,
                at=now,
                kind=EventKind.ALIAS_REFUSED,
                tenant=name.tenant,
                adapter=str(name),
                is_public=adapter.visibility == Visibility.PUBLIC.value,
                document={
                    "actor": principal.actor,
                    "alias": error.alias,
                    "version": error.number,
                    "failing": failing,
                },
            )


def _refuse_taken(session: Session, adapter: AdapterRow, name: AdapterName, alias: str) -> None:
    """To Hub clients, an alias is a branch: one name means one thing."""
    kind = kind_of_ref(session, adapter, alias)
    if kind is not None:
        raise ConflictError(f"{alias!r} of {str(name)!r} is the name of a {kind} already. Choose another alias.")


def _compare(name: AdapterName, alias: str, moves: list[AliasMoveRow], expected: Expected) -> None:
    actual = current_number(moves)
    if isinstance(expected, AtSequence):
        if expected.sequence != len(moves) or actual is None:
            seen = moves[: expected.sequence]
            raise AliasMovedError(str(name), alias, expected=seen[-1].to_number if seen else None, actual=actual)
    elif not isinstance(expected, Expectation) and expected != actual:
        raise AliasMovedError(str(name), alias, expected=expected, actual=actual)


def missing_alias(name: AdapterName, alias: str) -> NotFoundError:
    """The error for an alias that was never there, or was deleted."""
    return NotFoundError("alias", f"{name}@{alias}", f"See its versions and aliases with `loraplex show {name}`.")


def _nothing_before(name: AdapterName, alias: str, moves: list[AliasMoveRow]) -> ConflictError:
    is_deleted = len(promotions_in_force(moves)) > 1
    before = "and what it pointed at before was deleted" if is_deleted else "with none before it"
    return ConflictError(
        f"Alias {alias!r} of {str(name)!r} points at version {moves[-1].to_number}, {before}. "
        f"Promote the version that you want: `loraplex promote {name}@NUMBER --alias {alias}`."
    )
