"""The grouped LoRA product on plain tensors: many adapters, one pass, no loop over adapters.

It does: decide once per step which rank rows each token uses (`plan_lora`), and add every token's adapters to a layer's
output (`add_lora`), tested against a slow obvious reference (`add_lora_reference`).
It does not: know models, files, names or slots. Source of the formula: LoRA (arXiv 2106.09685); of deciding once per
token for all layers: LoRA-Switch (arXiv 2405.17741).

Letters: T tokens, H input features, O output features, R rank rows of the arena.

Every layer has an arena of rank rows: A [H, R] and B [R, O], scale folded into B. An adapter of rank r owns r
consecutive rows, the same ones in every layer. A token's hidden value h = x A [T, R] is then kept on its own rows and
cleared elsewhere, and h B adds up its adapters. So a step with 8 adapters is two products and one mask, each adapter
is read once however many rows share it, and which rows belong to whom is computed once for all layers:

    rank rows      0 .... 15 | 16 ... 31 | 32 .. 39 |        tokens with few neighbours form one dense group;
    token 0 (a)    h    h    |  0     0  |  0    0  |        a long run of tokens with one adapter (a prefill)
    token 1 (b)    0    0    |  h     h  |  0    0  |        is a group of its own that reads its rows only
    token 2 (a+c)  h    h    |  0     0  |  h    h  |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# A run of this many tokens with one adapter is worth its own product; shorter runs share a dense one.
OWN_GROUP_TOKENS = 32
# A window of rows may be this many times wider than the rows in it that are used: a wider one is split in two.
MOST_WASTE = 4


@dataclass(frozen=True)
class RankRows:
    """The rank rows [start, start + rank) of one adapter, and the weight with which a token uses them."""

    start: int
    rank: int
    weight: float = 1.0


@dataclass(frozen=True)
class Segment:
    """The next `tokens` tokens of a batch, which all use the same adapters (none, one, or a weighted list)."""

    tokens: int
    adapters: tuple[RankRows, ...]


@dataclass(frozen=True)
class LoraGroup:
    """Consecutive tokens and a window of rank rows that are computed together.

    `off` [t, r] is True where a token must not use a row (None: all are used); `weight` [t, r] scales (None: by 1).
    """

    tokens: slice
    rows: slice
    off: torch.Tensor | None
    weight: torch.Tensor | None


@dataclass(frozen=True)
class LoraRuns:
    """The same plan as the CPU kernel reads it: runs of tokens that use the same adapters.

    uses [U, 2] int64: first rank row and rank; weights [U] float32; groups [G, 6] int64: first token, tokens, first
    use, uses, where the run's hidden values begin in a scratch of `hidden_size` floats, and hidden values per token.
    """

    uses: torch.Tensor
    weights: torch.Tensor
    groups: torch.Tensor
    hidden_size: int


@dataclass(frozen=True)
class LoraPlan:
    """What every layer does in one step. `starts` names the adapters that take part by their first rank row.

    `runs` is there where the CPU kernel may be asked (float32 adapters on the CPU).
    """

    groups: tuple[LoraGroup, ...]
    starts: frozenset[int]
    runs: LoraRuns | None = None


def plan_lora(segments: Sequence[Segment], *, device: torch.device, dtype: torch.dtype) -> LoraPlan:
    """Group the tokens of a step. Segments follow the order of the tokens in the batch."""
    groups = []
    shared: list[tuple[int, Segment]] = []
    position = 0
    for segment in segments:
        if segment.tokens >= OWN_GROUP_TOKENS:
            groups += _group(shared, device, dtype) + _group([(position, segment)], device, dtype)
            shared = []
        elif segment.tokens:
            shared.append((position, segment))
        position += segment.tokens
    groups += _group(shared, device, dtype)
    starts = frozenset(use.start for segment in segments for use in segment.adapters)
    runs = _runs(segments) if device.type == "cpu" and dtype == torch.float32 else None
    return LoraPlan(tuple(groups), starts, runs)


def add_lora(out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, plan: LoraPlan) -> None:
    """Add each token's adapters to `out` in place: out [T, O], x [T, H], a [H, R], b [R, O].

    The products are computed in the type of `a` and `b`, whatever that of `x` and `out`, as PEFT does.
    """
    x = x.to(a.dtype)
    for group in plan.groups:
        hidden = x[group.tokens] @ a[:, group.rows]
        if group.weight is not None:
            hidden *= group.weight
        if group.off is not None:  # a fill, not a product with 0: another adapter's infinity must not become NaN here
            hidden.masked_fill_(group.off, 0)
        out[group.tokens] += hidden @ b[group.rows]


def add_lora_reference(
    out: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, segments: Sequence[Segment]
) -> None:
    """The same as `add_lora`, token by token and adapter by adapter, as the paper writes it."""
    token = 0
    for segment in segments:
        for _ in range(segment.tokens):
            for use in segment.adapters:
                rows = slice(use.start, use.start + use.rank)
                out[token] += use.weight * (b[rows].T @ (a[:, rows].T @ x[token]))
            token += 1


def _runs(segments: Sequence[Segment]) -> LoraRuns | None:
    uses: list[RankRows] = []
    groups: list[tuple[int, ...]] = []
    token = hidden_size = 0
    for segment in segments:
        if segment.tokens and segment.adapters:
            width = sum(use.rank for use in segment.adapters)
            groups.append((token, segment.tokens, len(uses), len(segment.adapters), hidden_size, width))
            uses += segment.adapters
            hidden_size += segment.tokens * width
        token += segment.tokens
    if not groups:
        return None
    return LoraRuns(
        uses=torch.tensor([(use.start, use.rank) for use in uses]),
        weights=torch.tensor([use.weight for use in uses], dtype=torch.float32),
        groups=torch.tensor(groups),
        hidden_size=hidden_size,
    )


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
        for use in segment.adapters:
            if rows.start <= use.start < rows.stop:
                column = use.start - rows.start
                used[position - first : position - first + segment.tokens, column : column + use.rank] += use.weight
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
