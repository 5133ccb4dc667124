"""Which adapters are on the device, in which rank rows, and which are only in host memory.

It does: read adapters in a thread, keep them in host memory within a byte budget, place them into rank rows on demand,
and evict the least recently used that nobody has pinned.
It does not: fetch from a registry (the API process has verified the folder), or decide who runs (`scheduler`).
Identity is the digest throughout.

    rank rows 0 ..................................................... rows-1
      | adapter x, pinned by 2 | free | adapter y, idle: may be evicted | free |
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from basemodel.adapter_weights import AdapterWeights, read_adapter
from basemodel.description import BaseDescription
from basemodel.errors import BaseModelError
from basemodel.lora_ops import RankRows
from serving.engine.errors import AdapterRefusedError
from serving.engine.probe import Probe, read_probes
from serving.messages import AdapterUse

logger = logging.getLogger(__name__)


class Places(Protocol):
    """Where adapters are put: `basemodel.attach.AdapterSites`."""

    rows: int

    def place(self, start: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into its rank rows."""

    def clear(self, start: int) -> None:
        """Forget the adapter in these rank rows."""


@dataclass(frozen=True)
class HostAdapter:
    """An adapter that was read. `read_seconds` is what reading took in its thread."""

    weights: AdapterWeights
    probes: tuple[Probe, ...]
    read_seconds: float


@dataclass
class Resident:
    """An adapter on the device. Only the pool changes it."""

    start: int
    rank: int
    pins: int = 0


class AdapterPool:
    """Host cache and device rows. Only the engine loop calls it; the reading thread touches nothing of it."""

    def __init__(
        self, places: Places, base: BaseDescription, dtype: torch.dtype, *, slots: int, host_cache_bytes: int
    ) -> None:
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self.load_seconds = 0.0
        self._places = places
        self._base = base
        self._dtype = dtype
        self._host_cache_bytes = host_cache_bytes
        self._host: OrderedDict[str, HostAdapter] = OrderedDict()
        self._resident: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._reading: dict[str, Future[HostAdapter]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-reader")

    # ------------------------------------------------------------------------------------------------- reading
    def want(self, use: AdapterUse) -> None:
        """Start to read an adapter that is not in memory yet."""
        if use.digest not in self._host and use.digest not in self._resident and use.digest not in self._reading:
            folder = Path(use.folder)
            self._reading[use.digest] = self._thread.submit(_read, folder, self._base, self._dtype)

    def collect(self, wanted: set[str]) -> list[AdapterRefusedError]:
        """Take over what the thread has finished; returns the adapters that could not be read.

        `wanted` are the digests that waiting requests need: these stay in host memory, whatever the budget says.
        """
        refused = []
        for digest in [digest for digest, future in self._reading.items() if future.done()]:
            future = self._reading.pop(digest)
            try:
                adapter = future.result()
                self._check_size(digest, adapter)
            except (BaseModelError, OSError, msgspec.DecodeError) as error:
                refused.append(AdapterRefusedError(digest, str(error)))
            except AdapterRefusedError as error:
                refused.append(error)
            else:
                self._host[digest] = adapter
                self.load_seconds += adapter.read_seconds
        self._trim_host(wanted)
        return refused

    def is_loaded(self, digest: str) -> bool:
        """Whether the adapter is in host or device memory."""
        return digest in self._host or digest in self._resident

    def probes(self, digest: str) -> tuple[Probe, ...]:
        """The probes of an adapter in host memory; none where only its device copy is left."""
        return self._host[digest].probes if digest in self._host else ()

    # ------------------------------------------------------------------------------------------------- placing
    def pin(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...] | None:
        """Bring every adapter of a request into rank rows and hold it there; None, and no change of pins, if there is
        no room because others are pinned. All of them must be loaded.
        """
        uses = tuple(uses)
        pinned: list[Resident] = []
        for use in uses:
            resident = self._resident.get(use.digest) or self._place(use.digest)
            if resident is None:
                for held in pinned:
                    held.pins -= 1
                return None
            resident.pins += 1
            pinned.append(resident)
            self._resident.move_to_end(use.digest)
        return tuple(RankRows(r.start, r.rank, use.weight) for r, use in zip(pinned, uses, strict=True))

    def unpin(self, uses: Iterable[AdapterUse]) -> None:
        """Let go of what `pin` held. The adapters stay until their rows are needed."""
        for use in uses:
            self._resident[use.digest].pins -= 1

    def drop(self, digest: str) -> None:
        """Forget an adapter everywhere (its probes failed). It must not be pinned."""
        self._host.pop(digest, None)
        if digest in self._resident:
            self._evict(digest)

    def _place(self, digest: str) -> Resident | None:
        adapter = self._host[digest]
        rank = adapter.weights.rank
        if self._room(rank, [resident for resident in self._resident.values() if resident.pins]) is None:
            return None  # not even without all idle adapters: evict none of them in vain
        start = self._room(rank, self._resident.values())
        while start is None:
            self._evict(next(name for name, resident in self._resident.items() if resident.pins == 0))
            start = self._room(rank, self._resident.values())
        begin = time.perf_counter()
        self._places.place(start, adapter.weights)
        self.load_seconds += time.perf_counter() - begin
        self.loads += 1
        self._host.move_to_end(digest)
        self._resident[digest] = Resident(start, rank)
        return self._resident[digest]

    def _room(self, rank: int, taken: Collection[Resident]) -> int | None:
        """The first run of `rank` rows between those of `taken`, if a slot is left too."""
        if len(taken) >= self.slots:
            return None
        position = 0
        for resident in sorted(taken, key=lambda each: each.start):
            if resident.start - position >= rank:
                return position
            position = resident.start + resident.rank
        return position if self._places.rows - position >= rank else None

    def _evict(self, digest: str) -> None:
        resident = self._resident.pop(digest)
        assert resident.pins == 0
        self._places.clear(resident.start)
        self.evictions += 1

    # ------------------------------------------------------------------------------------------------- accounts
    @property
    def resident_digests(self) -> list[str]:
        """Adapters in rank rows, least recently used first."""
        return list(self._resident)

    @property
    def host_digests(self) -> list[str]:
        """Adapters in host memory, least recently used first."""
        return list(self._host)

    @property
    def reading_digests(self) -> list[str]:
        """Adapters that the thread is reading or will read."""
        return list(self._reading)

    @property
    def host_bytes(self) -> int:
        """Host memory taken by adapters."""
        return sum(adapter.weights.adapter_bytes for adapter in self._host.values())

    def adapter_bytes(self, digest: str) -> int:
        """Size of an adapter in host memory, 0 where it is not there."""
        return self._host[digest].weights.adapter_bytes if digest in self._host else 0

    def close(self) -> None:
        """End the reading thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def check_integrity(self, pins: dict[str, int]) -> None:
        """Rows do not overlap, slots are within the limit, and pins are those of `pins` (digest -> holders)."""
        position = 0
        for resident in sorted(self._resident.values(), key=lambda each: each.start):
            assert resident.start >= position, "two adapters share a rank row"
            position = resident.start + resident.rank
        assert position <= self._places.rows
        assert len(self._resident) <= self.slots
        held = {digest: resident.pins for digest, resident in self._resident.items() if resident.pins}
        assert held == {digest: count for digest, count in pins.items() if count}, "a pin was lost or left behind"

    def _check_size(self, digest: str, adapter: HostAdapter) -> None:
        if adapter.weights.rank > self._places.rows:
            raise AdapterRefusedError(
                digest,
                f"its rank {adapter.weights.rank} is more than the {self._places.rows} rank rows of the adapter pool; "
                "raise --adapter-pool-bytes",
            )

    def _trim_host(self, wanted: set[str]) -> None:
        for digest in [digest for digest in self._host if digest not in wanted]:
            if self.host_bytes <= self._host_cache_bytes:
                return
            del self._host[digest]


def _read(folder: Path, base: BaseDescription, dtype: torch.dtype) -> HostAdapter:
    """Runs in the reading thread."""
    begin = time.perf_counter()
    weights = read_adapter(folder, base, dtype)
    return HostAdapter(weights, read_probes(folder), time.perf_counter() - begin)
