"""Decode steps as CUDA graphs: captured once at the start, for some numbers of rows and of adapter parts, and replayed.

It does: pad a step in which every row decodes to the next captured size, fill the tables that the graph reads with one
copy, replay, and say which steps do not fit (the runner computes these as they are).
It does not: run the model or know what is in a step (`step_tables`), or capture by itself (`GraphBackend`).
Its logic is tested on the CPU, with a tape of torch's operators in the place of a graph. Not yet run on a GPU.

    captured   rows 1, 2, 4, ... most_rows   x   parts 0, 1, 2, 4, ... 2 * rows   smallest first: where memory runs out,
               the largest steps go without, in which a launch is shared by most rows
    padded     rows behind the step's own are token 0 at position 0, write to the scratch slot and see only that; parts
               behind the step's own have no ranks

What a graph reads lies in one buffer, filled before each replay: no kernel sees a number that Python knew at capture,
but for the sizes. A step whose adapters change more than linear layers, or touch a layer without rank rows, is not
replayed: that is decided in Python, layer by layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from basemodel.cuda.tiles import TILE_TOKENS, HostTiles
from serving.engine.batch import Batch
from serving.engine.step_tables import Layout, StepTables, batch_of

logger = logging.getLogger(__name__)
PARTS_PER_ROW = 2
"""Most parts of a captured step for each of its rows: adapters of rank 32, or two of rank 16 at once."""


@dataclass(frozen=True, order=True)
class GraphSize:
    """What a graph was captured for. Without `parts` there is no LoRA in it at all."""

    rows: int
    parts: int


@dataclass(frozen=True)
class GraphLimits:
    """`most_rows` of a captured step; `blocks_per_row` is the longest block table; `scratch_slot` is a slot of the KV
    cache that nobody owns; `memory_bytes` may be taken by all graphs together.
    """

    most_rows: int
    block_tokens: int
    blocks_per_row: int
    scratch_slot: int
    memory_bytes: int


class GraphBackend(Protocol):
    """What captures work on a device."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` does on the device; the result does the same to the same tensors. It does it, too, once
        or more. Raises RuntimeError where it cannot be captured, torch.OutOfMemoryError.
        """

    @property
    def taken_bytes(self) -> int:
        """Device memory that was taken since the first capture began."""


class GraphedSteps:
    """The captured steps of one model. Only the runner calls it."""

    def __init__(
        self,
        forward: Callable[[Batch], torch.Tensor],
        backend: GraphBackend,
        limits: GraphLimits,
        device: torch.device,
        *,
        covers: Callable[[frozenset[int]], bool],
    ) -> None:
        """`covers` says whether adapters (by first rank row) touch only layers that had their rank rows at capture."""
        self.limits = limits
        self.replays = 0
        self._forward, self._backend, self._covers, self._device = forward, backend, covers, device
        self._replay: dict[GraphSize, Callable[[], None]] = {}
        self._batches: dict[GraphSize, Batch] = {}
        self._layouts: dict[GraphSize, Layout] = {}
        self._logits: torch.Tensor | None = None  # [most_rows, V], made at the first capture
        self._buffer: torch.Tensor | None = None  # as large as the largest layout; one graph runs at a time

    @property
    def sizes(self) -> list[GraphSize]:
        """What is captured."""
        return sorted(self._replay)

    # ------------------------------------------------------------------------------------------------- capturing
    def capture(self) -> None:
        """Capture every size, until the memory set aside for it is taken. A model that cannot be captured has none."""
        sizes = graph_sizes(self.limits.most_rows)
        self._layouts = {size: Layout(self._padded(self._nothing(), size, whole=True).arrays) for size in sizes}
        buffer_bytes = max(layout.bytes for layout in self._layouts.values())
        self._buffer = torch.zeros(buffer_bytes, dtype=torch.uint8, device=self._device)
        try:
            for size in sizes:
                if self._backend.taken_bytes >= self.limits.memory_bytes:
                    logger.info("graphs of steps: %d of %d sizes fill their memory", len(self._replay), len(sizes))
                    break
                self._capture(size)
        except torch.OutOfMemoryError:
            logger.warning("graphs of steps: no memory for more than %d of %d sizes", len(self._replay), len(sizes))
        except RuntimeError as error:
            logger.warning("this model's steps cannot be captured, so they run without graphs: %s", error)
            self._replay.clear()

    def _capture(self, size: GraphSize) -> None:
        tables = self._padded(self._nothing(), size, whole=True)
        layout = self._layouts[size]
        assert self._buffer is not None
        self._fill(layout, tables)
        batch = batch_of(layout.views(self._buffer), tables, self.limits.block_tokens, self._device)
        plan = None
        if batch.plan is not None:
            plan = replace(batch.plan, everywhere=True)
        # every row's logits, in the order of the rows: the head sees what all layers see
        batch = replace(batch, plan=plan, head_plan=plan, logits_index=None)
        if self._logits is None:
            found = self._forward(batch)
            self._logits = found.new_zeros(self.limits.most_rows, found.shape[1])
        into = self._logits[: size.rows]

        def work() -> None:
            into.copy_(self._forward(batch))

        self._replay[size] = self._backend.capture(work)
        self._batches[size] = batch

    # ------------------------------------------------------------------------------------------------- replaying
    def size_for(self, tables: StepTables) -> GraphSize | None:
        """The captured size that a step fits in; None: it must be computed as it is."""
        if not tables.is_decoding or tables.changed is not None or not self._covers(tables.starts):
            return None
        rows = len(tables.rows)
        if len(tables.blocks) >= rows * self.limits.blocks_per_row + 1:
            return None
        parts = 0 if tables.lora is None else len(tables.lora.parts)
        size = GraphSize(_power_of_two(rows), _power_of_two(parts))
        size = replace(size, rows=min(size.rows, max(self.limits.most_rows, rows)))
        return size if size in self._replay else None

    def run(self, tables: StepTables, size: GraphSize) -> tuple[Batch, torch.Tensor]:
        """The batch, and the logits [S, V] of its sampled rows, which are overwritten by the next step."""
        assert self._logits is not None
        self._fill(self._layouts[size], self._padded(tables, size))
        self._replay[size]()
        self.replays += 1
        batch = replace(self._batches[size], rows=tables.rows, sampled=tables.sampled)
        logits = self._logits[: len(tables.rows)]
        if len(tables.wanted) < len(tables.rows):  # a chunk of one token of a prompt that goes on
            logits = logits[torch.from_numpy(tables.wanted).to(self._device)]
        return batch, logits

    def _fill(self, layout: Layout, tables: StepTables) -> None:
        assert self._buffer is not None
        host = layout.host_copy(tables.arrays, is_pinned=self._device.type == "cuda")
        self._buffer[: len(host)].copy_(host, non_blocking=True)

    # ------------------------------------------------------------------------------------------------- padding
    def _padded(self, tables: StepTables, size: GraphSize, *, whole: bool = False) -> StepTables:
        """The step with as many rows and parts as `size` says; `whole`: and with room for the longest block tables."""
        limits = self.limits
        missing = size.rows - len(tables.ids)
        entry = len(tables.blocks)  # of the scratch block, behind the step's own
        rows = np.arange(len(tables.ids), size.rows)
        attention = np.stack([rows, np.ones_like(rows), np.full_like(rows, entry), np.ones_like(rows)], axis=1)
        blocks = np.append(tables.blocks, limits.scratch_slot // limits.block_tokens)
        if whole:
            blocks = np.resize(blocks, size.rows * limits.blocks_per_row + 1)
        return replace(
            tables,
            ids=np.append(tables.ids, np.zeros(missing, dtype=np.int64)),
            positions=np.append(tables.positions, np.zeros(missing, dtype=np.int64)),
            write_slots=np.append(tables.write_slots, np.full(missing, limits.scratch_slot)),
            wanted=np.arange(size.rows),
            attention=np.concatenate([tables.attention, attention]).astype(np.int32),
            blocks=blocks.astype(np.int32),
            lora=_padded_tiles(tables.lora, size),
            head=None,
            starts=tables.starts or frozenset(range(min(1, size.parts))),
        )

    def _nothing(self) -> StepTables:
        """A step without rows."""
        none = np.zeros(0, dtype=np.int64)
        return StepTables(
            rows=(),
            sampled=(),
            ids=none,
            positions=none,
            write_slots=none,
            wanted=none,
            attention=np.zeros((0, 4), dtype=np.int32),
            blocks=np.zeros(0, dtype=np.int32),
            lora=None,
            head=None,
            starts=frozenset(),
            changed=None,
            changed_head=None,
        )


def graph_sizes(most_rows: int) -> list[GraphSize]:
    """What is captured, in this order."""
    counts = [1]
    while counts[-1] < most_rows:
        counts.append(min(2 * counts[-1], most_rows))
    sizes = []
    for rows in counts:
        parts = [0, 1]
        while parts[-1] < PARTS_PER_ROW * rows:
            parts.append(2 * parts[-1])
        sizes += [GraphSize(rows, count) for count in parts]
    return sizes


def _power_of_two(count: int) -> int:
    """The next one that is not smaller; 0 for 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _padded_tiles(tiles: HostTiles | None, size: GraphSize) -> HostTiles | None:
    if size.parts == 0:
        return None
    if tiles is None:
        empty = np.zeros((0, 4), dtype=np.int32)
        weights = np.zeros((0, TILE_TOKENS), dtype=np.float32)
        tiles = HostTiles(np.zeros(0, dtype=np.int32), empty, empty, weights)
    return tiles.padded(size.rows, size.parts)
