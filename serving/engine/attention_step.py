"""Where the tokens of a step lie in the KV cache: made once by `batch`, and shared by all layers.

It does: hold what one way of attending needs, and make the rest of it when it is asked for.
It does not: hold keys and values, or attend (`attention`).

Letters: T tokens of the step, N decoding rows, L cached positions, S slots of all rows, M tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from msgspec import Struct


class StepRow(Struct, frozen=True):
    """One request's tokens of a step, after `past` others; its positions' slots begin at `begin` of the step's slots.

    `begin` None: nothing is kept in the cache, and past is 0.
    """

    tokens: int
    past: int
    begin: int | None


@dataclass(frozen=True)
class PromptSpan:
    """A chunk of one prompt. `slots` [past + t] are all its positions so far (None: nothing is kept, and past is 0)."""

    tokens: slice
    past: int
    slots: torch.Tensor | None


class TokenTable(NamedTuple):
    """What the CPU kernel reads, in its order: all int64. `slots` [S] as the step's; `starts` [T] is where each token's
    row begins there, `lengths` [T] how many positions the token sees.
    """

    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class AttentionTiles:
    """What the GPU kernel reads (basemodel/cuda/attention_kernel.py), int32, on its device: `blocks` are the block
    tables of all requests, one after the other, of blocks of `block_tokens` slots; `tiles` [M, 4] read them.
    """

    blocks: torch.Tensor
    tiles: torch.Tensor
    block_tokens: int


@dataclass
class AttentionStep:
    """One step's layout. `rows` are in the order of the tokens, those that decode first.

    `slots` [S] int64, on the CPU, are the cache slots of each row's blocks, one row after the other, and `write_slots`
    [T] is where each token's key and value go (both None: nothing is kept in the cache). `table` says the same to the
    CPU kernel and `tiles` to the GPU kernel (None: there is none, or nothing is kept in the cache).
    """

    rows: tuple[StepRow, ...]
    device: torch.device
    slots: torch.Tensor | None = None
    write_slots: torch.Tensor | None = None
    table: TokenTable | None = None
    tiles: AttentionTiles | None = None
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def decode_slots(self) -> torch.Tensor | None:
        """The cached positions [N, L] of each decoding row, of which the first `decode_lengths` count."""
        slots = [slots for row in self.rows if row.tokens == 1 and (slots := self._slots_of(row)) is not None]
        return torch.nn.utils.rnn.pad_sequence(slots, batch_first=True).to(self.device) if slots else None

    @cached_property
    def decode_lengths(self) -> torch.Tensor:
        """[N]."""
        lengths = [row.past + 1 for row in self.rows if row.tokens == 1 and row.begin is not None]
        return torch.tensor(lengths, device=self.device)

    @cached_property
    def spans(self) -> tuple[PromptSpan, ...]:
        """The chunks of prompts."""
        spans = []
        first = 0
        for row in self.rows:
            slots = self._slots_of(row)
            if row.tokens > 1 or slots is None:
                on_device = None if slots is None else slots.to(self.device)
                spans.append(PromptSpan(slice(first, first + row.tokens), row.past, on_device))
            first += row.tokens
        return tuple(spans)

    def _slots_of(self, row: StepRow) -> torch.Tensor | None:
        """The slots [past + tokens] of a row's positions."""
        if row.begin is None or self.slots is None:
            return None
        return self.slots[row.begin : row.begin + row.past + row.tokens]
