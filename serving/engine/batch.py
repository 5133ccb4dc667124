"""Turns the rows of a step into tensors.

It does: lay the tokens of all rows side by side, and work out where each reads and writes the KV cache and which rank
rows it uses. It does not: choose the rows (`scheduler`) or run the model (`runner`).

The order of the tokens: first the rows that decode (one token each), then the chunks of prompts and rows with drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from basemodel.cuda.library import has_gpu_kernels
from basemodel.cuda.tiles import TILE_TOKENS, plan_tiles
from basemodel.kernels.library import has_cpu_kernels
from basemodel.lora_ops import Choice, LoraPlan, Segment, plan_lora
from serving.engine.attention import AttentionStep, StepRow, TileTable, TokenTable
from serving.engine.request import Request, Row

Slots = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step's input. `rows` are in token order; `sampled` are those whose next token is chosen, in logits order.

    input_ids and positions [1, T]; `logits_index` [S] are the tokens whose logits are wanted: the last one of each
    sampled row, and with a draft as many more.
    """

    rows: tuple[Row, ...]
    sampled: tuple[Row, ...]
    input_ids: torch.Tensor
    positions: torch.Tensor
    logits_index: torch.Tensor
    attention: AttentionStep
    plan: LoraPlan | None
    head_plan: LoraPlan | None

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return self.input_ids.shape[1]


def build_batch(rows: Sequence[Row], block_tokens: int, *, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch of a step. Every row's request owns the blocks for its tokens and has its adapters pinned."""
    decoding = [row for row in rows if row.count == 1]
    reading = [row for row in rows if row.count > 1]
    ordered = (*decoding, *reading)
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    seen: list[Slots] = []
    for row in ordered:
        begin, end = row.request.computed, row.request.computed + row.count
        seen.append(_slots(row.request, end, block_tokens))
        ids += row.tokens
        positions += range(begin, end)
        wanted += range(len(ids) - row.sampled_tokens, len(ids))
    sampled = tuple(row for row in ordered if row.samples)
    plan, head_plan = _plans(ordered, sampled, device, dtype)
    write = np.concatenate([slots[row.request.computed :] for row, slots in zip(ordered, seen, strict=True)])
    attention = AttentionStep(
        write_slots=torch.from_numpy(write).to(device),
        rows=tuple(
            StepRow(row.count, row.request.computed, torch.from_numpy(slots))
            for row, slots in zip(ordered, seen, strict=True)
        ),
        device=device,
        table=_table(ordered, seen) if device.type == "cpu" and has_cpu_kernels() else None,
        tiles=_tiles(ordered, seen).to(device) if has_gpu_kernels(device) else None,
    )
    return Batch(
        rows=ordered,
        sampled=sampled,
        input_ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        logits_index=torch.tensor(wanted, dtype=torch.long, device=device),
        attention=attention,
        plan=plan,
        head_plan=head_plan,
    )


def probe_batch(request: Request, *, device: torch.device, dtype: torch.dtype) -> Batch:
    """A prompt alone that leaves nothing in the KV cache, for checking an adapter."""
    count = len(request.tokens)
    row = Row(request, count)
    plan, head_plan = _plans([row], [row], device, dtype)
    return Batch(
        rows=(row,),
        sampled=(row,),
        input_ids=torch.tensor([request.tokens], device=device),
        positions=torch.arange(count, device=device)[None],
        logits_index=torch.tensor([count - 1], device=device),
        attention=AttentionStep(None, (StepRow(count, 0, None),), device),
        plan=plan,
        head_plan=head_plan,
    )


def _slots(request: Request, end: int, block_tokens: int) -> Slots:
    """The cache slots of a request's positions [0, end)."""
    blocks = np.array(request.blocks[: -(-end // block_tokens)])
    slots: Slots = (blocks[:, None] * block_tokens + np.arange(block_tokens)).ravel()[:end]
    return slots


def _table(rows: Sequence[Row], seen: Sequence[Slots]) -> TokenTable:
    """`seen` are the slots of each row's positions, up to its last token."""
    starts: list[int] = []
    lengths: list[int] = []
    begin = 0
    for row, slots in zip(rows, seen, strict=True):
        starts += [begin] * row.count
        lengths += range(len(slots) - row.count + 1, len(slots) + 1)
        begin += len(slots)
    return TokenTable(torch.from_numpy(np.concatenate(seen)), torch.tensor(starts), torch.tensor(lengths))


def _tiles(rows: Sequence[Row], seen: Sequence[Slots]) -> TileTable:
    """The same for the GPU, whose tiles hold tokens of one row."""
    tiles: list[tuple[int, int, int, int]] = []
    token = begin = 0
    for row, slots in zip(rows, seen, strict=True):
        sees = len(slots) - row.count + 1
        tiles += [
            (token + first, min(TILE_TOKENS, row.count - first), begin, sees + first)
            for first in range(0, row.count, TILE_TOKENS)
        ]
        token += row.count
        begin += len(slots)
    slots32 = np.concatenate(seen).astype(np.int32)
    return TileTable(torch.from_numpy(slots32), torch.tensor(tiles, dtype=torch.int32))


def _plans(
    rows: Sequence[Row], sampled: Sequence[Row], device: torch.device, dtype: torch.dtype
) -> tuple[LoraPlan | None, LoraPlan | None]:
    """The plan of all tokens, and that of the sampled ones, which the output head sees."""
    if not any(row.request.rank_rows for row in rows):
        return None, None
    choices = {row: _choice(row) for row in rows}
    every = [Segment(row.count, row.request.rank_rows or (), choices[row]) for row in rows]
    last = [
        Segment(row.sampled_tokens, row.request.rank_rows or (), _last(choices[row], row.sampled_tokens))
        for row in sampled
    ]
    if has_gpu_kernels(device):
        return plan_tiles(every, device=device), plan_tiles(last, device=device)
    return plan_lora(every, device=device, dtype=dtype), plan_lora(last, device=device, dtype=dtype)


def _choice(row: Row) -> Choice | None:
    """The experts of each of the row's tokens, where it is of a mixture."""
    request = row.request
    if request.router is None:
        return None
    text = [*request.tokens, *row.draft] if row.draft else request.tokens
    return request.router.choose(text, request.computed, request.computed + row.count)


def _last(choice: Choice | None, tokens: int) -> Choice | None:
    return None if choice is None else choice.part(slice(-tokens, None))
