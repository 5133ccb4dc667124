"""The plan of a step as torch computes it: groups of tokens and windows of rank rows, each two products and one mask.

It does: choose groups and windows, few of them, and none that reads mostly idle rows.
It does not: multiply (`lora_ops`).

    rank rows      0 .... 15 | 16 ... 31 | 32 .. 39 |        tokens with few neighbours form one dense group;
    token 0 (a)    h    h    |  0     0  |  0    0  |        a long run of tokens with one adapter (a prefill)
    token 1 (b)    0    0    |  h     h  |  0    0  |        is a group of its own that reads its rows only
    token 2 (a+c)  h    h    |  0     0  |  h    h  |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch

from basemodel.lora_segment import Segment, shares_of

# A run of this many tokens with one adapter is worth its own product; shorter runs share a dense one.
OWN_GROUP_TOKENS = 32
# A window of rows may be this many times wider than the rows in it that are used: a wider one is split in two.
MOST_WASTE = 4


@dataclass(frozen=True)
class LoraGroup:
    """Consecutive tokens and a window of rank rows that are computed together.

    `off` [t, r] is True where a token must not use a row (None: all are used); `weight` [t, r] scales (None: by 1).
    """

    tokens: slice
    rows: slice
    off: torch.Tensor | None
    weight: torch.Tensor | None


class LoraGroups(Sequence[LoraGroup]):
    """The groups of a plan, made when the first layer without a kernel asks for them."""

    def __init__(self, segments: Sequence[Segment], device: torch.device, dtype: torch.dtype) -> None:
        self._segments, self._device, self._dtype = segments, device, dtype

    @cached_property
    def _made(self) -> list[LoraGroup]:
        return _groups(self._segments, self._device, self._dtype)

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> LoraGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[LoraGroup]: ...
    def __getitem__(self, index: int | slice) -> LoraGroup | list[LoraGroup]:
        return self._made[index]


def _groups(segments: Sequence[Segment], device: torch.device, dtype: torch.dtype) -> list[LoraGroup]:
    groups: list[LoraGroup] = []
    shared: list[tuple[int, Segment]] = []
    position = 0
    for segment in segments:
        if segment.tokens >= OWN_GROUP_TOKENS:
            groups += _group(shared, device, dtype) + _group([(position, segment)], device, dtype)
            shared = []
        elif segment.tokens:
            shared.append((position, segment))
        position += segment.tokens
    return groups + _group(shared, device, dtype)


def _group(members: list[tuple[int, Segment]], device: torch.device, dtype: torch.dtype) -> list[LoraGroup]:
    """The groups of consecutive segments: one for each window of rank rows, none if no token uses an adapter."""
    ranks = {use.start: use.rank for _, segment in members for use in segment.adapters}
    return [_window_group(members, window, device, dtype) for window in _windows(ranks)]


def _window_group(
    members: list[tuple[int, Segment]], rows: slice, device: torch.device, dtype: torch.dtype
) -> LoraGroup:
    first = members[0][0]
    last = members[-1][0] + members[-1][1].tokens
    used = torch.zeros(last - first, rows.stop - rows.start, dtype=dtype)
    for position, segment in members:
        span = slice(position - first, position - first + segment.tokens)
        shares = shares_of(segment).to(dtype)
        for place, use in enumerate(segment.adapters):
            if rows.start <= use.start < rows.stop:
                column = use.start - rows.start
                used[span, column : column + use.rank] += shares[:, place : place + 1]
    off = used == 0
    weighted = bool(((used != 0) & (used != 1)).any())
    return LoraGroup(
        tokens=slice(first, last),
        rows=rows,
        off=off.to(device) if bool(off.any()) else None,
        weight=used.to(device) if weighted else None,
    )


def _windows(ranks: dict[int, int]) -> list[slice]:
    """Windows over the rank rows in use, given as rank by first row: few, and none that reads mostly idle rows."""
    windows: list[slice] = []
    used = 0
    for start, rank in sorted(ranks.items()):
        used += rank
        if windows and start + rank - windows[-1].start <= MOST_WASTE * used:
            windows[-1] = slice(windows[-1].start, start + rank)
        else:
            windows.append(slice(start, start + rank))
            used = rank
    return windows
