"""A step for a GPU: what its kernels read, as tables of numbers in host memory that go to the device in one copy.

It does: work out where each token reads and writes the KV cache and which rank rows it uses, pad that to a given size,
and lay all of it in one buffer, so that a step costs one asynchronous copy from page-locked memory.
It does not: choose rows (`scheduler`), launch kernels, or serve CPUs (`batch`).

Letters: T tokens, S sampled ones, M tiles of attention, P entries of all block tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from basemodel.cuda.tiles import TILE_TOKENS, HostTiles, host_tiles, starts_of
from basemodel.lora_ops import ChangedTokens, LoraPlan, TileTable, changed_tokens
from serving.engine.attention_step import AttentionStep, AttentionTiles
from serving.engine.batch import Batch
from serving.engine.request import Row
from serving.engine.step_plans import segments_of

Array = NDArray[Any]
ALIGNMENT_BYTES = 16
"""Of each table in the buffer: what Triton counts on where it is told nothing else."""


@dataclass(frozen=True)
class StepTables:
    """One step in host memory. `rows` and `sampled` as in `Batch`.

    ids, positions, write_slots [T] and wanted [S] int64; attention [M, 4] and blocks [P] int32, as the attention kernel
    reads them; `lora` and `head` are the plans of all tokens and of the sampled ones. `starts` names the adapters that
    take part; `changed` is there where one changes more than linear layers, and then `changed_head` may be.
    """

    rows: tuple[Row, ...]
    sampled: tuple[Row, ...]
    ids: Array
    positions: Array
    write_slots: Array
    wanted: Array
    attention: Array
    blocks: Array
    lora: HostTiles | None
    head: HostTiles | None
    starts: frozenset[int]
    changed: ChangedTokens | None
    changed_head: ChangedTokens | None

    @property
    def is_decoding(self) -> bool:
        """Whether every row is one token."""
        return len(self.rows) == len(self.ids)

    @property
    def arrays(self) -> dict[str, Array]:
        """All tables by name. `blocks`, whose size varies most, lies behind the others."""
        lora = {} if self.lora is None else {f"lora_{name}": array for name, array in self.lora.arrays.items()}
        head = {} if self.head is None else {f"head_{name}": array for name, array in self.head.arrays.items()}
        own = {
            name: getattr(self, name) for name in ("ids", "positions", "write_slots", "wanted", "attention", "blocks")
        }
        return lora | head | own


def step_tables(rows: Sequence[Row], block_tokens: int, device: torch.device) -> StepTables:
    """The tables of a step. Every row's request owns the blocks for its tokens and has its adapters pinned."""
    decoding = [row for row in rows if row.count == 1]
    ordered = (*decoding, *(row for row in rows if row.count > 1))
    ids: list[int] = []
    positions: list[int] = []
    wanted: list[int] = []
    blocks: list[int] = []
    attention: list[tuple[int, int, int, int]] = []
    write_slots: list[Array] = []
    for row in ordered:
        begin, end = row.request.computed, row.request.computed + row.count
        own = row.request.blocks[: -(-end // block_tokens)]
        attention += [
            (len(ids) + first, min(TILE_TOKENS, row.count - first), len(blocks), begin + 1 + first)
            for first in range(0, row.count, TILE_TOKENS)
        ]
        write_slots.append(_slots(own, begin, end, block_tokens))
        blocks += own
        ids += row.tokens
        positions += range(begin, end)
        wanted += range(len(ids) - row.sampled_tokens, len(ids))
    every, last = segments_of(ordered, [row.sampled_tokens for row in ordered])
    return StepTables(
        ordered,
        tuple(row for row in ordered if row.samples),
        np.array(ids),
        np.array(positions),
        np.concatenate(write_slots),
        np.array(wanted, dtype=np.int64),
        np.array(attention, dtype=np.int32),
        np.array(blocks, dtype=np.int32),
        host_tiles(every),
        host_tiles(last),
        starts_of(every),
        changed_tokens(every, device),
        changed_tokens(last, device),
    )


def device_batch(tables: StepTables, block_tokens: int, device: torch.device) -> Batch:
    """The batch of a step of any form: its tables in a buffer of their own."""
    layout = Layout(tables.arrays)
    host = layout.host_copy(tables.arrays, is_pinned=device.type == "cuda")
    views = layout.views(host.to(device, non_blocking=True))
    return batch_of(views, tables, block_tokens, device)


def batch_of(
    views: Mapping[str, torch.Tensor],
    tables: StepTables,
    block_tokens: int,
    device: torch.device,
) -> Batch:
    """The batch whose tensors are these views of the tables on the device."""
    plan, head_plan = (_plan(views, name, tables) for name in ("lora", "head"))
    return Batch(
        rows=tables.rows,
        sampled=tables.sampled,
        input_ids=views["ids"][None],
        positions=views["positions"][None],
        logits_index=views["wanted"],
        attention=AttentionStep(
            (),
            device,
            write_slots=views["write_slots"],
            tiles=AttentionTiles(views["blocks"], views["attention"], block_tokens),
        ),
        plan=plan,
        head_plan=head_plan,
    )


class Layout:
    """Where each of several tables lies in one buffer of bytes. Never changed."""

    def __init__(self, tables: Mapping[str, Array]) -> None:
        """A place for tables of these shapes and types, in their order."""
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        begin = 0
        for name, table in tables.items():
            self._places[name] = (begin, torch.from_numpy(table[:0]).dtype, table.shape)
            begin += -(-table.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self.bytes = begin

    def host_copy(self, tables: Mapping[str, Array], *, is_pinned: bool) -> torch.Tensor:
        """These tables in new host memory [bytes]; the last one may be shorter than its place, and what it leaves is
        not part of the result. `is_pinned`: page-locked; torch keeps it until copies from it have ended.
        """
        ends = [self._places[name][0] + table.nbytes for name, table in tables.items()]
        buffer = torch.empty(max(ends), dtype=torch.uint8, pin_memory=is_pinned)
        into = buffer.numpy()
        for name, table in tables.items():
            begin = self._places[name][0]
            into[begin : begin + table.nbytes] = np.ascontiguousarray(table).reshape(-1).view(np.uint8)
        return buffer

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tables in a buffer of at least `bytes`, but for what rounding adds behind the last one."""
        views = {}
        for name, (begin, dtype, shape) in self._places.items():
            size = int(np.prod(shape)) * dtype.itemsize
            views[name] = buffer[begin : begin + size].view(dtype).view(shape)
        return views


def _plan(views: Mapping[str, torch.Tensor], name: str, tables: StepTables) -> LoraPlan | None:
    if not tables.starts:
        return None
    fields = ("members", "tiles", "parts", "weights")
    table = TileTable(*(views[f"{name}_{field}"] for field in fields)) if f"{name}_parts" in views else None
    changed = tables.changed if name == "lora" else tables.changed_head
    return LoraPlan((), tables.starts, tiles=table, changed=changed)


def _slots(blocks: Sequence[int], begin: int, end: int, block_tokens: int) -> Array:
    """The cache slots of positions [begin, end) of a request that owns `blocks`."""
    positions = np.arange(begin, end)
    slots: Array = np.array(blocks)[positions // block_tokens] * block_tokens + positions % block_tokens
    return slots
