"""Turns the rows of a step into tensors.

It does: lay the tokens of all rows side by side, and work out where each reads and writes the KV cache. It does not:
choose the rows (`scheduler`), plan their adapters (`step_plans`) or run the model (`runner`). What GPU kernels read is
made by `step_tables`.

The order of the tokens: first the rows that decode (one token each), then the chunks of prompts and rows with drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from basemodel.kernels.library import has_cpu_kernels
from basemodel.lora_ops import LoraPlan
from serving.engine.attention_step import AttentionStep, StepRow, TokenTable
from serving.engine.request import Request, Row
from serving.engine.step_plans import StepPlans

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One step's input. `rows` are in token order; `sampled` are those whose next token is chosen, in logits order.

    input_ids and positions [1, T]; `logits_index` [S] are the tokens whose logits are wanted (None: all): the last one
    of each sampled row, and with a draft as many more.
    """

    rows: tuple[Row, ...]
    sampled: tuple[Row, ...]
    input_ids: torch.Tensor
    positions: torch.Tensor
    logits_index: torch.Tensor | None
    attention: AttentionStep
    plan: LoraPlan | None
    head_plan: LoraPlan | None

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return self.input_ids.shape[1]


def build_batch(rows: Sequence[Row], plans: StepPlans, block_tokens: int, *, device: torch.device) -> Batch:
    """The batch of a step. Every row's request owns the blocks for its tokens and has its adapters pinned."""
    ordered = (*(row for row in rows if row.count == 1), *(row for row in rows if row.count > 1))
    ids: list[int] = []
    wanted: list[int] = []
    blocks: list[int] = []
    seen: list[StepRow] = []
    chosen = [row.sampled_tokens for row in ordered]
    for row, last in zip(ordered, chosen, strict=True):
        past = row.request.computed
        seen.append(StepRow(row.count, past, len(blocks) * block_tokens))
        ids += row.tokens
        wanted += range(len(ids) - last, len(ids))
        blocks += row.request.blocks[: -(-(past + row.count) // block_tokens)]
    slots = (np.array(blocks)[:, None] * block_tokens + np.arange(block_tokens)).ravel()
    positions = _positions(seen)
    plan, head_plan = plans.of(ordered, chosen)
    return Batch(
        rows=ordered,
        sampled=tuple(row for row, last in zip(ordered, chosen, strict=True) if last),
        input_ids=torch.tensor([ids], device=device),
        positions=torch.from_numpy(positions[None]).to(device),
        logits_index=torch.tensor(wanted, dtype=torch.long, device=device),
        attention=_attention(tuple(seen), slots, positions, device),
        plan=plan,
        head_plan=head_plan,
    )


def probe_batch(request: Request, plans: StepPlans, *, device: torch.device) -> Batch:
    """A prompt alone that leaves nothing in the KV cache, for checking an adapter."""
    count = len(request.tokens)
    row = Row(request, count)
    plan, head_plan = plans.of([row], [1])
    return Batch(
        rows=(row,),
        sampled=(row,),
        input_ids=torch.tensor([request.tokens], device=device),
        positions=torch.arange(count, device=device)[None],
        logits_index=torch.tensor([count - 1], device=device),
        attention=AttentionStep((StepRow(count, 0, None),), device),
        plan=plan,
        head_plan=head_plan,
    )


def _positions(rows: Sequence[StepRow]) -> Integers:
    """The position of each token [T] in its request's text."""
    positions: list[int] = []
    for row in rows:
        positions += range(row.past, row.past + row.tokens)
    return np.array(positions)


def _attention(rows: tuple[StepRow, ...], slots: Integers, positions: Integers, device: torch.device) -> AttentionStep:
    starts = np.array([row.begin for row in rows]).repeat([row.tokens for row in rows])
    every = torch.from_numpy(slots)
    is_for_kernel = device.type == "cpu" and has_cpu_kernels()
    return AttentionStep(
        rows,
        device,
        slots=every,
        write_slots=torch.from_numpy(slots[starts + positions]).to(device),
        table=TokenTable(every, torch.from_numpy(starts), torch.from_numpy(positions + 1)) if is_for_kernel else None,
    )
