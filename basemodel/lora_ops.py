"""The grouped LoRA product on plain tensors: many adapters, one pass, no loop over adapters.

It does: decide once per step which rank rows each token uses (`plan_lora`), and add every token's adapters to a layer's
output (`add_lora`), tested against a slow obvious reference (`add_lora_reference`).
It does not: know models, files, names or slots. Source of the formula: LoRA (arXiv 2106.09685); of deciding once per
token for all layers: LoRA-Switch (arXiv 2405.17741).

Letters: T tokens, H input features, O output features, R rank rows of the arena, U uses of an adapter by a token, k
adapters that a router chose for each token.

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
from functools import cached_property, lru_cache
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# A run of this many tokens with one adapter is worth its own product; shorter runs share a dense one.
OWN_GROUP_TOKENS = 32
# A window of rows may be this many times wider than the rows in it that are used: a wider one is split in two.
MOST_WASTE = 4


@dataclass(frozen=True)
class RankRows:
    """The rank rows [start, start + rank) of one adapter, and the weight with which a token uses them.

    `slot` is there where the adapter changes more than linear layers (`basemodel.adapter_changes`); such an adapter is
    used alone, with weight 1.
    """

    start: int
    rank: int
    weight: float = 1.0
    slot: int | None = None


@dataclass(frozen=True)
class Choice:
    """Which of a list of adapters each token uses: `chosen` [T, k] are places in the list, each at most once a token;
    `weights` [T, k] multiply the list's own. The order within a token is that in which they are added.
    """

    chosen: Integers
    weights: NDArray[np.float32]

    def part(self, span: slice) -> Choice:
        """The same for some of the tokens."""
        return Choice(self.chosen[span], self.weights[span])


@dataclass(frozen=True)
class Segment:
    """The next `tokens` tokens of a batch and the adapters that they use: none, one, or a weighted list.

    Without a choice every token uses them all; with one (T is `tokens`), those that were chosen for it.
    """

    tokens: int
    adapters: tuple[RankRows, ...]
    choice: Choice | None = None


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
    """The same plan as the CPU kernel reads it (kernels/nf4_linear.h: Adapters, Use, Group).

    Seen from a token: `first_use` [T + 1] int64, token t has the uses first_use[t] to first_use[t + 1]; `uses` [U, 3]
    int64: first rank row, rank, and where x A begins in a scratch of `hidden_size` floats; `weights` [U] float32.
    Seen from an adapter: `groups` [G, 5] int64: first rank row, rank, first member, members, and where their x A
    begins; `members` [U] int64 are token numbers. So each adapter's rows are read once for all tokens that use it,
    wherever they stand, and a token's uses are added in its own order, whatever else is in the batch.
    """

    first_use: torch.Tensor
    uses: torch.Tensor
    weights: torch.Tensor
    groups: torch.Tensor
    members: torch.Tensor
    hidden_size: int


@dataclass(frozen=True)
class TileTable:
    """The same plan as the GPU kernels read it (cuda/lora_kernels.py), on their device: N tiles of at most 16 tokens.

    tiles [N, 4] int32: first token, tokens, first use, uses. uses [U, 4] int32: tile, first rank row, rank, and
    where the tile's hidden values begin in the scratch. weights [U, 16] float32: of each token of the tile.

    `hidden_size` floats of scratch are needed per split; `most_rank_blocks` blocks of ranks has the largest adapter.
    """

    tiles: torch.Tensor
    uses: torch.Tensor
    weights: torch.Tensor
    hidden_size: int
    most_rank_blocks: int


@dataclass(frozen=True)
class ChangedTokens:
    """The tokens of adapters that change more than linear layers: `spans` with their slots, in the order of tokens;
    `rows` [T] int32 is each token's slot, and -1 where it has none.
    """

    spans: tuple[tuple[slice, int], ...]
    slots: frozenset[int]
    rows: torch.Tensor


@dataclass(frozen=True)
class LoraPlan:
    """What every layer does in one step. `starts` names the adapters that take part by their first rank row.

    `segments` are there where the CPU kernel may be asked (float32 adapters on the CPU), `tiles` on a GPU, `changed`
    where a token's adapter changes more than linear layers.
    """

    groups: Sequence[LoraGroup]
    starts: frozenset[int]
    segments: Sequence[Segment] | None = None
    tiles: TileTable | None = None
    changed: ChangedTokens | None = None

    @cached_property
    def runs(self) -> LoraRuns | None:
        """The plan for the CPU kernel, made when the first layer asks for it."""
        if self.segments is None:
            return None
        if any(segment.choice is not None for segment in self.segments):
            return _runs(self.segments)
        return _remembered_runs(tuple(self.segments))  # rows that go on decoding: the same in every step


def plan_lora(segments: Sequence[Segment], *, device: torch.device, dtype: torch.dtype) -> LoraPlan:
    """Group the tokens of a step. Segments follow the order of the tokens in the batch."""
    starts = frozenset(use.start for segment in segments for use in segment.adapters)
    is_for_kernel = device.type == "cpu" and dtype == torch.float32
    own_segments = segments if is_for_kernel else None
    return LoraPlan(_Groups(segments, device, dtype), starts, own_segments, changed=changed_tokens(segments, device))


class _Groups(Sequence[LoraGroup]):
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
        for index in range(segment.tokens):
            for use in _uses_of(segment, index):
                rows = slice(use.start, use.start + use.rank)
                out[token] += use.weight * (b[rows].T @ (a[:, rows].T @ x[token]))
            token += 1


def _uses_of(segment: Segment, index: int) -> list[RankRows]:
    """What one token of a segment uses."""
    if segment.choice is None:
        return list(segment.adapters)
    pairs = zip(segment.choice.chosen[index].tolist(), segment.choice.weights[index].tolist(), strict=True)
    listed = [(segment.adapters[place], weight) for place, weight in pairs]
    return [RankRows(use.start, use.rank, use.weight * weight) for use, weight in listed]


@lru_cache(maxsize=4)
def _remembered_runs(segments: tuple[Segment, ...]) -> LoraRuns | None:
    """The runs of segments without choices. Nobody changes their tensors."""
    return _runs(segments)


def _runs(segments: Sequence[Segment]) -> LoraRuns | None:
    counts: list[int] = []  # uses of each token
    starts: list[int] = []  # of each use, in the order of tokens
    ranks: list[int] = []
    weights: list[float] = []
    for segment in segments:
        adapters, choice = segment.adapters, segment.choice
        if choice is None:
            counts += [len(adapters)] * segment.tokens
            starts += [use.start for use in adapters] * segment.tokens
            ranks += [use.rank for use in adapters] * segment.tokens
            weights += [use.weight for use in adapters] * segment.tokens
        else:
            chosen = [adapters[place] for place in choice.chosen.ravel().tolist()]
            counts += [choice.chosen.shape[1]] * segment.tokens
            starts += [use.start for use in chosen]
            ranks += [use.rank for use in chosen]
            factors = choice.weights.ravel().tolist()
            weights += [use.weight * factor for use, factor in zip(chosen, factors, strict=True)]
    return _grouped(np.array(counts), np.array(starts), np.array(ranks), weights) if starts else None


def _grouped(counts: Integers, starts: Integers, ranks: Integers, weights: list[float]) -> LoraRuns:
    """The runs of these uses, which are in the order of tokens: sorted by adapter, each adapter is one group."""
    order = np.argsort(starts, kind="stable")
    tokens = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(ranks[order])
    hidden = np.empty_like(ends)
    hidden[order] = ends - ranks[order]
    first = np.flatnonzero(np.diff(starts[order], prepend=-1))
    leaders = order[first]
    sizes = np.diff(first, append=len(order))
    groups = np.stack([starts[leaders], ranks[leaders], first, sizes, hidden[leaders]], axis=1)
    return LoraRuns(
        first_use=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
        uses=torch.from_numpy(np.stack([starts, ranks, hidden], axis=1)),
        weights=torch.tensor(weights, dtype=torch.float32),
        groups=torch.from_numpy(groups),
        members=torch.from_numpy(tokens[order]),
        hidden_size=int(ends[-1]),
    )


def changed_tokens(segments: Sequence[Segment], device: torch.device) -> ChangedTokens | None:
    """The tokens of a step whose adapters change more than linear layers; None where there are none."""
    spans: list[tuple[slice, int]] = []
    position = 0
    for segment in segments:
        slots = [use.slot for use in segment.adapters if use.slot is not None]
        if slots and segment.tokens:
            assert len(segment.adapters) == 1, "an adapter that changes more than linear layers is used alone"
            begin = position
            if spans and spans[-1][0].stop == position and spans[-1][1] == slots[0]:
                begin = spans.pop()[0].start
            spans.append((slice(begin, position + segment.tokens), slots[0]))
        position += segment.tokens
    if not spans:
        return None
    rows = torch.full((position,), -1, dtype=torch.int32)
    for span, slot in spans:
        rows[span] = slot
    return ChangedTokens(tuple(spans), frozenset(slot for _, slot in spans), rows.to(device))


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


def shares_of(segment: Segment) -> torch.Tensor:
    """The weight of each adapter of a segment's list for each of its tokens, or for all of them: [T or 1, adapters]."""
    listed = torch.tensor([[use.weight for use in segment.adapters]], dtype=torch.float32)
    if segment.choice is None:
        return listed
    shares = np.zeros((segment.tokens, len(segment.adapters)), dtype=np.float32)
    np.put_along_axis(shares, segment.choice.chosen, segment.choice.weights, axis=1)
    return torch.from_numpy(shares) * listed


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
