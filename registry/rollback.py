"""Where a rollback takes an alias: to what was promoted before the present version, and is still there.

Rolling back undoes promotions one by one, as a stack: promote 1, promote 2, promote 3, roll back (to 2), roll back (to
1); what was rolled back is not returned to. A version that was deleted meanwhile is passed over: whoever has to leave a
version in a hurry leaves it with one call, whatever somebody tidied up before. Deleting the alias ends its stack: one
of the same name that is made afterwards is not rolled back to what was before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry.models import AliasMoveRow, VersionRow
from registry.version import MoveKind


class Move(Protocol):
    """A move of an alias, in whatever form it is kept."""

    @property
    def kind(self) -> str:
        """`promote` or `rollback`."""

    @property
    def to_number(self) -> int | None:
        """The version that the alias points at after it; None where it deleted the alias."""


M = TypeVar("M", bound=Move)


def promotions_in_force(moves: Iterable[M]) -> list[M]:
    """The promotions that were not undone, oldest first; the last one says where the alias points."""
    stack: list[M] = []
    for move in moves:
        if move.kind == MoveKind.PROMOTE.value:
            stack.append(move)
            continue
        if move.kind == MoveKind.DELETE.value:
            stack.clear()
            continue
        del stack[-1:]
        while stack and stack[-1].to_number != move.to_number:
            del stack[-1]
    return stack


def rollback_target(moves: Iterable[Move], present: Container[int]) -> int | None:
    """Where a rollback takes the alias of these moves, oldest first; `present` are the versions that are there."""
    numbers = [move.to_number for move in promotions_in_force(moves) if move.to_number is not None]
    before = (number for number in reversed(numbers[:-1]) if number in present and number != numbers[-1])
    return next(before, None)


def moves_by_alias(session: Session, adapter_id: int) -> dict[str, Sequence[AliasMoveRow]]:
    """The moves of an adapter's aliases, oldest first."""
    found: defaultdict[str, list[AliasMoveRow]] = defaultdict(list)
    query = select(AliasMoveRow).where(AliasMoveRow.adapter_id == adapter_id)
    for move in session.scalars(query.order_by(AliasMoveRow.alias, AliasMoveRow.sequence)):
        found[move.alias].append(move)
    return dict(found)


def numbers_moved_to(session: Session, adapter_id: int) -> frozenset[int]:
    """The versions that an alias of the adapter points at or ever did, as far as they are there."""
    moved_to = select(AliasMoveRow.to_number).where(AliasMoveRow.adapter_id == adapter_id)
    query = select(VersionRow.number).where(VersionRow.adapter_id == adapter_id, VersionRow.number.in_(moved_to))
    return frozenset(session.scalars(query))
