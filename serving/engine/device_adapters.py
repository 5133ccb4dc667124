"""The adapters on the device: each in rank rows of its own, and what it takes beside them.

It does: put, move, hold and evict adapters, bound what a step copies, and keep account of rows, slots, bytes and pins.
It does not: read adapters, or decide who must go for whom (`adapter_pool`).

    rank rows 0 ..................................................... rows-1
      | adapter x, pinned by 2 | free | adapter y, idle: may be evicted | free |
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from basemodel.adapter_weights import AdapterWeights
from basemodel.lora_segment import RankRows
from serving.engine.errors import AdapterRefusedError
from serving.engine.host_adapter import HostAdapter
from serving.engine.rank_space import Resident, first_gap
from serving.messages import AdapterUse

# Where adapters are copied, a step in which rows decode copies at most so many bytes (at least one adapter).
STEP_COPY_BYTES = 16 * 1024 * 1024


class Places(Protocol):
    """Where adapters are put: `basemodel.attach.AdapterSites`."""

    rows: int

    @property
    def copies(self) -> bool:
        """Whether placing an adapter copies its factors; where it does not, a step may place any number."""

    @property
    def whole_bytes(self) -> int:
        """Memory of what the placed adapters take beside rank rows."""

    def place(self, start: int, adapter: AdapterWeights) -> int | None:
        """Let an adapter into its rank rows; returns the slot of one that changes more than linear layers."""

    def clear(self, start: int) -> None:
        """Forget the adapter in these rank rows."""


class DeviceAdapters:
    """Residents by digest, least recently used first. Only `AdapterPool` changes it.

    `whole_bytes` is the room for what adapters take beside rank rows: DoRA's scales, biases, whole weights.
    """

    def __init__(self, places: Places, *, slots: int, whole_bytes: int) -> None:
        self.slots = slots
        self.whole_bytes = whole_bytes
        self.loads = 0
        self.evictions = 0
        self.moves = 0
        self.copy_seconds = 0.0
        self._places = places
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._copy_bytes_left: int | None = None

    def __contains__(self, digest: str) -> bool:
        return digest in self._residents

    def __getitem__(self, digest: str) -> Resident:
        return self._residents[digest]

    def __iter__(self) -> Iterator[str]:
        """Digests, least recently used first."""
        return iter(list(self._residents))

    @property
    def rows(self) -> int:
        """Rank rows in all."""
        return self._places.rows

    @property
    def residents(self) -> Collection[Resident]:
        """Everything that is here."""
        return self._residents.values()

    @property
    def pinned(self) -> list[Resident]:
        """Those that running requests hold."""
        return [resident for resident in self._residents.values() if resident.pins]

    @property
    def idle_digests(self) -> list[str]:
        """Those that nobody holds, least recently used first."""
        return [digest for digest, resident in self._residents.items() if not resident.pins]

    def shared_digests(self) -> Collection[str]:
        """Those that are computed from the memory into which they were read: all, or none where they are copied."""
        return () if self._places.copies else self._residents.keys()

    # ------------------------------------------------------------------------------------------------- the step
    def begin_step(self, *, is_bounded: bool) -> None:
        """A step begins; where others decode, copying is bounded, so that they do not wait for it."""
        self._copy_bytes_left = STEP_COPY_BYTES if is_bounded and self._places.copies else None

    def has_turn(self, adapter_bytes: int) -> bool:
        """Whether this step may still copy so much; the first adapter of a step always may."""
        left = self._copy_bytes_left
        return left is None or left == STEP_COPY_BYTES or adapter_bytes <= left

    # ------------------------------------------------------------------------------------------------- room
    def in_the_way(self, moved: Resident, position: int) -> list[str]:
        """Idle ones in the rows [position, position + rank) to which a resident is to move."""
        stop = position + moved.rank
        return [each for each in self.idle_digests if (at := self._residents[each]).start < stop and at.stop > position]

    def could_hold(self, adapter: HostAdapter, beside: Collection[Resident]) -> bool:
        """Whether there is room beside these, if only rows lay together."""
        free_rows = self.rows - sum(resident.rank for resident in beside)
        return self._has_slot(adapter, beside) and adapter.weights.rank <= free_rows

    def gap(self, adapter: HostAdapter, beside: Collection[Resident]) -> int | None:
        """Where an adapter's rows are free beside these, if a slot and bytes are left too."""
        if not self._has_slot(adapter, beside):
            return None
        return first_gap(adapter.weights.rank, self.rows, beside)

    def why_not(self, digest: str, adapter: HostAdapter) -> AdapterRefusedError | None:
        """Why an adapter cannot be here, though it were alone; None where it can."""
        nature = adapter.nature
        if adapter.weights.rank > self.rows:
            return AdapterRefusedError(
                digest,
                f"its rank {adapter.weights.rank} is more than the {self.rows} rank rows of the adapter pool; "
                "raise --adapter-pool-mib",
            )
        if nature.whole_bytes > self.whole_bytes:
            return AdapterRefusedError(
                digest,
                f"it takes {nature.whole_bytes:,} bytes beside its rank rows ({', '.join(nature.kinds)}), and "
                f"{self.whole_bytes:,} are set aside for that; raise --adapter-whole-mib",
            )
        return None

    def _has_slot(self, adapter: HostAdapter, beside: Collection[Resident]) -> bool:
        whole_bytes = sum(resident.nature.whole_bytes for resident in beside) + adapter.nature.whole_bytes
        return len(beside) < self.slots and whole_bytes <= self.whole_bytes

    # ------------------------------------------------------------------------------------------------- changes
    def put(self, use: AdapterUse, adapter: HostAdapter, start: int) -> None:
        """Let an adapter into rows that are free."""
        slot = self._copy(start, adapter.weights)
        self.loads += 1
        self._residents[use.digest] = Resident(use, start, adapter.weights.rank, adapter.nature, slot)

    def move(self, moved: Resident, position: int, weights: AdapterWeights) -> None:
        """Let a resident into other rows, where nobody is `in_the_way` any more."""
        self._places.clear(moved.start)
        moved.slot = self._copy(position, weights)
        moved.start = position
        self.moves += 1

    def evict(self, digest: str) -> None:
        """Forget an adapter that nobody holds."""
        resident = self._residents.pop(digest)
        assert resident.pins == 0
        self._places.clear(resident.start)
        self.evictions += 1

    def pin(self, digest: str) -> None:
        """One more request holds it, and it was used last."""
        self._residents[digest].pins += 1
        self._residents.move_to_end(digest)

    def unpin(self, digest: str) -> None:
        """One request less holds it. It stays until its rows are needed."""
        self._residents[digest].pins -= 1

    def rank_rows(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...]:
        """Where adapters lie now."""
        residents = [(self._residents[use.digest], use.weight) for use in uses]
        return tuple(RankRows(each.start, each.rank, weight, each.slot) for each, weight in residents)

    def _copy(self, start: int, weights: AdapterWeights) -> int | None:
        begin = time.perf_counter()
        slot = self._places.place(start, weights)
        self.copy_seconds += time.perf_counter() - begin
        if self._copy_bytes_left is not None:
            self._copy_bytes_left = max(0, self._copy_bytes_left - weights.adapter_bytes)
        return slot

    # ------------------------------------------------------------------------------------------------- accounts
    def check_integrity(self, pins: dict[str, int]) -> None:
        """Rows do not overlap, slots and bytes are within limits, and pins are those of `pins` (digest -> holders)."""
        position = 0
        for resident in sorted(self._residents.values(), key=lambda each: each.start):
            assert resident.start >= position, "two adapters share a rank row"
            position = resident.start + resident.rank
        assert position <= self.rows
        assert len(self._residents) <= self.slots
        whole_bytes = sum(resident.nature.whole_bytes for resident in self._residents.values())
        assert whole_bytes == self._places.whole_bytes, "what lies beside the rank rows is not what was counted"
        assert whole_bytes <= self.whole_bytes
        numbers = [resident.slot for resident in self._residents.values() if resident.slot is not None]
        assert len(numbers) == len(set(numbers)), "two adapters share a slot"
        held = {digest: resident.pins for digest, resident in self._residents.items() if resident.pins}
        assert held == {digest: count for digest, count in pins.items() if count}, "a pin was lost or left behind"
