"""The grouped LoRA product on plain tensors: many adapters, one pass, no loop over adapters.

It does: decide once per step which rank rows each token uses (`plan_lora`), and add every token's adapters to a layer's
output (`add_lora`), tested against a slow obvious reference (`add_lora_reference`).
It does not: know models, files, names or slots. Source of the formula: LoRA (arXiv 2106.09685); of deciding once per
token for all layers: LoRA-Switch (arXiv 2405.17741).

Letters: T tokens, H input features, O output features, R rank rows of the arena, U uses of an adapter by a token.

Every layer has an arena of rank rows: A [H, R] and B [R, O], scale folded into B. An adapter of rank r owns r
consecutive rows, the same ones in every layer. A token's hidden value h = x A [T, R] is then kept on its own rows and
cleared elsewhere, and h B adds up its adapters. So a step with 8 adapters is two products and one mask (`lora_groups`),
each adapter is read once however many rows share it, and which rows belong to whom is computed once for all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from basemodel.lora_groups import LoraGroup, LoraGroups
from basemodel.lora_runs import LoraRuns, runs_of
from basemodel.lora_segment import Segment


@dataclass(frozen=True)
class TileTable:
    """The same plan as the GPU kernels read it (cuda/lora_kernels.py), on their device: N tiles of at most 16 of the M
    tokens that use adapters, K parts of at most 16 rank rows of an adapter for a tile. All int32 but `weights`.

    members [M] are token numbers, those of one tile side by side. tiles [N, 4]: first member, tokens, first part,
    parts. parts [K, 4]: tile, first rank row, rank rows, nothing. weights [K, 16] float32: of each token of the tile.
    """

    members: torch.Tensor
    tiles: torch.Tensor
    parts: torch.Tensor
    weights: torch.Tensor


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
    where a token's adapter changes more than linear layers. `everywhere`: every layer that has rank rows takes part,
    whoever uses it (a captured step, which is used again for other adapters).
    """

    groups: Sequence[LoraGroup]
    starts: frozenset[int]
    segments: Sequence[Segment] | None = None
    tiles: TileTable | None = None
    changed: ChangedTokens | None = None
    everywhere: bool = False

    @cached_property
    def runs(self) -> LoraRuns | None:
        """The plan for the CPU kernel, made when the first layer asks for it."""
        return None if self.segments is None else runs_of(self.segments)


def plan_lora(segments: Sequence[Segment], *, device: torch.device, dtype: torch.dtype) -> LoraPlan:
    """Group the tokens of a step. Segments follow the order of the tokens in the batch."""
    starts = frozenset(use.start for segment in segments for use in segment.adapters)
    is_for_kernel = device.type == "cpu" and dtype == torch.float32
    own_segments = segments if is_for_kernel else None
    return LoraPlan(LoraGroups(segments, device, dtype), starts, own_segments, changed=changed_tokens(segments, device))


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
            for use in segment.uses_of(index):
                rows = slice(use.start, use.start + use.rank)
                out[token] += use.weight * (b[rows].T @ (a[:, rows].T @ x[token]))
            token += 1


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
