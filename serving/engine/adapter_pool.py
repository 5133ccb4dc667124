"""Which adapters are on the device, in which rank rows, and which are only in host memory.

It does: read adapters and mixtures in a thread, keep them in host memory within a byte budget, place adapters into
rank rows on demand, and evict the least recently used that nobody has pinned.
It does not: fetch from a registry (the API process has verified the folder), or decide who runs (`scheduler`).
Identity is the digest throughout.

    rank rows 0 ..................................................... rows-1
      | adapter x, pinned by 2 | free | adapter y, idle: may be evicted | free |
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec
import torch

from basemodel.adapter_weights import AdapterWeights
from basemodel.description import BaseDescription
from basemodel.errors import BaseModelError
from basemodel.lora_ops import RankRows
from serving.engine.errors import AdapterRefusedError
from serving.engine.host_adapter import HostAdapter, HostMixture, read_host_adapter, read_host_mixture
from serving.engine.probe import Probe
from serving.engine.router import Router, Tallies
from serving.messages import AdapterUse

logger = logging.getLogger(__name__)


class Places(Protocol):
    """Where adapters are put: `basemodel.attach.AdapterSites`."""

    rows: int

    def place(self, start: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into its rank rows."""

    def clear(self, start: int) -> None:
        """Forget the adapter in these rank rows."""


@dataclass
class Resident:
    """An adapter on the device. Only the pool changes it."""

    start: int
    rank: int
    pins: int = 0


class AdapterPool:
    """Host cache and device rows. Only the engine loop calls it; the reading thread touches nothing of it.

    embedding [V, H] is the base's own, which gates score.
    """

    def __init__(
        self,
        places: Places,
        base: BaseDescription,
        dtype: torch.dtype,
        embedding: torch.Tensor,
        *,
        slots: int,
        host_cache_bytes: int,
    ) -> None:
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self.load_seconds = 0.0
        self._places = places
        self._base = base
        self._dtype = dtype
        self._embedding = embedding
        self.tallies = Tallies()
        self._host_cache_bytes = host_cache_bytes
        self._host: OrderedDict[str, HostAdapter | HostMixture] = OrderedDict()
        self._resident: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._reading: dict[str, Future[HostAdapter | HostMixture]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="adapter-reader")

    # ------------------------------------------------------------------------------------------------- reading
    def want(self, use: AdapterUse) -> None:
        """Start to read what of it is not in memory yet: an adapter, or a mixture and its experts."""
        for adapter in use.adapters:
            self._start(adapter.digest, partial(read_host_adapter, adapter, self._base, self._dtype))
        if use.experts:
            self._start(use.digest, partial(read_host_mixture, use, self._base, self._embedding))

    def _start(self, digest: str, read: Callable[[], HostAdapter | HostMixture]) -> None:
        if not self.is_loaded(digest) and digest not in self._reading:
            self._reading[digest] = self._thread.submit(read)

    def collect(self, wanted: set[str]) -> list[AdapterRefusedError]:
        """Take over what the thread has finished; returns the adapters that could not be read.

        `wanted` are the digests that waiting requests need: these stay in host memory, whatever the budget says.
        """
        refused = []
        for digest in [digest for digest, future in self._reading.items() if future.done()]:
            future = self._reading.pop(digest)
            try:
                adapter = future.result()
                if isinstance(adapter, HostAdapter):
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
        """Whether the adapter is in host or device memory, or the mixture's gate in host memory."""
        return digest in self._host or digest in self._resident

    def is_ready(self, use: AdapterUse) -> bool:
        """Whether everything of it is loaded: the adapter, or the mixture and its experts."""
        return self.is_loaded(use.digest) and all(self.is_loaded(adapter.digest) for adapter in use.adapters)

    def router(self, use: AdapterUse, *, is_tallied: bool = True) -> Router | None:
        """A new router for a request of this mixture, which must be ready; None where it is no mixture."""
        if not use.experts:
            return None
        mixture = self._host[use.digest]
        assert isinstance(mixture, HostMixture)
        count = len(use.experts)
        return Router(mixture.table, self.tallies.of(use.digest, count) if is_tallied else [0] * count)

    def probes(self, digest: str) -> tuple[Probe, ...]:
        """The probes of what is in host memory; none where only an adapter's device copy is left."""
        return self._host[digest].probes if digest in self._host else ()

    # ------------------------------------------------------------------------------------------------- placing
    def pin(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...] | None:
        """Bring every adapter of a request into rank rows and hold it there; None, and no change of pins, if there is
        no room because others are pinned. All of them must be loaded. Mixtures are pinned as their experts.
        """
        uses = tuple(uses)
        if not self._bring(list(dict.fromkeys(use.digest for use in uses))):
            return None
        for use in uses:
            self._resident[use.digest].pins += 1
            self._resident.move_to_end(use.digest)
        held = [self._resident[use.digest] for use in uses]
        return tuple(RankRows(each.start, each.rank, use.weight) for each, use in zip(held, uses, strict=True))

    def why_never(self, uses: Iterable[AdapterUse]) -> str | None:
        """Why these adapters cannot lie on the device together, however long they wait; None where they can."""
        digests = {use.digest for use in uses}
        if len(digests) > self.slots:
            return f"it needs {len(digests)} adapters at once, and there are {self.slots} slots; raise --adapter-slots"
        ranks = sum(self._rank(digest) for digest in digests)
        if ranks > self._places.rows:
            return (
                f"its adapters have {ranks} rank rows together, and the adapter pool has {self._places.rows}; "
                "raise --adapter-pool-bytes"
            )
        return None

    def unpin(self, uses: Iterable[AdapterUse]) -> None:
        """Let go of what `pin` held. The adapters stay until their rows are needed."""
        for use in uses:
            self._resident[use.digest].pins -= 1

    def drop(self, digest: str) -> None:
        """Forget an adapter everywhere (its probes failed). It must not be pinned."""
        self._host.pop(digest, None)
        if digest in self._resident:
            self._evict(digest)

    def _bring(self, digests: Sequence[str]) -> bool:
        """Make all of them resident, or say that there is no room now. Pins are as before."""
        ours = [self._resident[digest] for digest in digests if digest in self._resident]
        for resident in ours:  # one of ours must not make way for another
            resident.pins += 1
        for digest in [digest for digest in digests if digest not in self._resident]:
            placed = self._place(digest)
            if placed is None:
                break
            placed.pins += 1
            ours.append(placed)
        for resident in ours:
            resident.pins -= 1
        return len(ours) == len(digests) or self._bring_afresh(digests)

    def _bring_afresh(self, digests: Sequence[str]) -> bool:
        """Where nobody else is pinned and they fit, what is in the way is only how the rows are cut: begin anew."""
        if any(resident.pins for resident in self._resident.values()):
            return False
        if len(digests) > self.slots or sum(map(self._rank, digests)) > self._places.rows:
            return False
        for digest in list(self._resident):
            self._evict(digest)
        if not all(digest in self._host for digest in digests):
            return False  # one of them was left on the device only: it is read again
        return all(self._place(digest) is not None for digest in digests)

    def _rank(self, digest: str) -> int:
        """Rank rows of an adapter; 0 where it is not loaded."""
        if digest in self._resident:
            return self._resident[digest].rank
        adapter = self._host.get(digest)
        return adapter.weights.rank if isinstance(adapter, HostAdapter) else 0

    def _place(self, digest: str) -> Resident | None:
        adapter = self._host[digest]
        assert isinstance(adapter, HostAdapter)
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
        """Adapters and mixtures in host memory, least recently used first."""
        return list(self._host)

    @property
    def reading_digests(self) -> list[str]:
        """Adapters that the thread is reading or will read."""
        return list(self._reading)

    @property
    def host_bytes(self) -> int:
        """Host memory taken by adapters."""
        return sum(adapter.host_bytes for adapter in self._host.values())

    def adapter_bytes(self, digest: str) -> int:
        """Size of an adapter in host memory, 0 where it is not there."""
        return self._host[digest].host_bytes if digest in self._host else 0

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
