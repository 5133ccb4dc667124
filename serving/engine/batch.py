"""Turns the rows of a step into tensors.

It does: lay the tokens of all rows side by side, and work out where each reads and writes the KV cache and which rank
rows it uses. It does not: choose the rows (`scheduler`) or run the model (`runner`).

The order of the tokens: first the rows that decode (one token each), then the chunks of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from basemodel.kernels.library import has_cpu_kernels
from basemodel.lora_ops import Choice, LoraPlan, Segment, plan_lora
from serving.engine.attention import AttentionStep, PromptSpan, TokenTable
from serving.engine.request import Request, Row


@dataclass(frozen=True)
class Batch:
    """One step's input. `rows` are in token order; `sampled` are those whose next token is chosen, in logits order.

    input_ids and positions [1, T]; `logits_index` [S] are the tokens whose logits are wanted.
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
    write: list[torch.Tensor] = []
    spans: list[PromptSpan] = []
    decode: list[torch.Tensor] = []
    last: list[int] = []
    seen: list[torch.Tensor] = []
    for row in ordered:
        request, begin, end = row.request, row.request.computed, row.request.computed + row.count
        slots = _slots(request, end, block_tokens)
        seen.append(slots)
        if row.count == 1:
            decode.append(slots)
        else:
            spans.append(PromptSpan(slice(len(ids), len(ids) + row.count), begin, slots.to(device)))
        ids += request.tokens[begin:end]
        positions += range(begin, end)
        write.append(slots[begin:])
        last.append(len(ids) - 1)
    sampled = [(row, index) for row, index in zip(ordered, last, strict=True) if row.samples]
    plan, head_plan = _plans(ordered, [row for row, _ in sampled], device, dtype)
    attention = AttentionStep(
        write_slots=torch.cat(write).to(device),
        decode_slots=torch.nn.utils.rnn.pad_sequence(decode, batch_first=True).to(device) if decode else None,
        decode_lengths=torch.tensor([len(slots) for slots in decode]).to(device) if decode else None,
        spans=tuple(spans),
        table=_table(ordered, seen) if device.type == "cpu" and has_cpu_kernels() else None,
    )
    return Batch(
        rows=ordered,
        sampled=tuple(row for row, _ in sampled),
        input_ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        logits_index=torch.tensor([index for _, index in sampled], dtype=torch.long, device=device),
        attention=attention,
        plan=plan,
        head_plan=head_plan,
    )


def probe_batch(request: Request, *, device: torch.device, dtype: torch.dtype) -> Batch:
    """A prompt alone that leaves nothing in the KV cache, for checking an adapter."""
    count = len(request.tokens)
    row = Row(request, count)
    span = PromptSpan(slice(0, count), 0, None)
    plan, head_plan = _plans([row], [row], device, dtype)
    return Batch(
        rows=(row,),
        sampled=(row,),
        input_ids=torch.tensor([request.tokens], device=device),
        positions=torch.arange(count, device=device)[None],
        logits_index=torch.tensor([count - 1], device=device),
        attention=AttentionStep(None, None, None, (span,)),
        plan=plan,
        head_plan=head_plan,
    )


def _slots(request: Request, end: int, block_tokens: int) -> torch.Tensor:
    """The cache slots of a request's positions [0, end)."""
    blocks = torch.tensor(request.blocks[: -(-end // block_tokens)])
    return (blocks[:, None] * block_tokens + torch.arange(block_tokens)).flatten()[:end]


def _table(rows: Sequence[Row], seen: Sequence[torch.Tensor]) -> TokenTable:
    """`seen` are the slots of each row's positions, up to its last token."""
    starts: list[int] = []
    lengths: list[int] = []
    begin = 0
    for row, slots in zip(rows, seen, strict=True):
        starts += [begin] * row.count
        lengths += range(len(slots) - row.count + 1, len(slots) + 1)
        begin += len(slots)
    return TokenTable(torch.cat(list(seen)), torch.tensor(starts), torch.tensor(lengths))


def _plans(
    rows: Sequence[Row], sampled: Sequence[Row], device: torch.device, dtype: torch.dtype
) -> tuple[LoraPlan | None, LoraPlan | None]:
    """The plan of all tokens, and that of the sampled ones, which the output head sees."""
    if not any(row.request.rank_rows for row in rows):
        return None, None
    choices = {row: _choice(row) for row in rows}
    every = [Segment(row.count, row.request.rank_rows or (), choices[row]) for row in rows]
    last = [Segment(1, row.request.rank_rows or (), _last(choices[row])) for row in sampled]
    return plan_lora(every, device=device, dtype=dtype), plan_lora(last, device=device, dtype=dtype)


def _choice(row: Row) -> Choice | None:
    """The experts of each of the row's tokens, where it is of a mixture."""
    request = row.request
    if request.router is None:
        return None
    return request.router.choose(request.tokens, request.computed, request.computed + row.count)


def _last(choice: Choice | None) -> Choice | None:
    return None if choice is None else choice.part(slice(-1, None))
