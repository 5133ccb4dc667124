"""Rank rows as a space: where a run of free rows is, and how to make one.

It does: arithmetic on who lies where. It does not: copy, evict or count uses (`adapter_pool`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from serving.engine.host_adapter import AdapterNature
from serving.messages import AdapterUse


@dataclass
class Resident:
    """An adapter on the device, in rows [start, start + rank). Only the pool changes it. `slot` is there where it
    changes more than linear layers.
    """

    use: AdapterUse
    start: int
    rank: int
    nature: AdapterNature
    slot: int | None = None
    pins: int = 0

    @property
    def stop(self) -> int:
        """The row behind it."""
        return self.start + self.rank


def first_gap(rank: int, rows: int, taken: Collection[Resident]) -> int | None:
    """The first run of `rank` rows between those of `taken`."""
    position = 0
    for resident in sorted(taken, key=lambda each: each.start):
        if resident.start - position >= rank:
            return position
        position = resident.stop
    return position if rows - position >= rank else None


def moves_to_gap(rank: int, taken: Collection[Resident]) -> list[tuple[Resident, int]]:
    """Who moves down to which row, in this order, until a gap of `rank` rows is behind them."""
    moves = []
    position = 0
    for resident in sorted(taken, key=lambda each: each.start):
        if resident.start - position >= rank:
            break
        if resident.start != position:
            moves.append((resident, position))
        position += resident.rank
    return moves
