"""Which adapters are on the device, in which rank rows, and which are only in host memory.

It does: read ahead what is wanted, place adapters into rank rows on demand, evict the least recently used that nobody
has pinned, and move those that are pinned together where the free rows are scattered.
It does not: fetch from a registry (the API process has verified the folder), or decide who runs (`scheduler`).
Identity is the digest throughout.

    rank rows 0 ..................................................... rows-1
      | adapter x, pinned by 2 | free | adapter y, idle: may be evicted | free |

An operator may have adapters kept: they stay in host memory, come to the device when there is room, and are the last to
be evicted from there. They never make another adapter wait.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from basemodel.adapter_weights import AdapterWeights
from basemodel.lora_segment import RankRows
from serving.engine.adapter_reader import AdapterReader
from serving.engine.errors import AdapterRefusedError
from serving.engine.host_adapter import AdapterNature, HostAdapter, HostMixture
from serving.engine.host_cache import HostCache
from serving.engine.probe import Probe
from serving.engine.rank_space import Resident, first_gap, moves_to_gap
from serving.engine.router import Router, Tallies
from serving.messages import AdapterUse

# While rows decode, one step copies adapters of at most so many bytes (at least one adapter): about 5 ms.
STEP_COPY_BYTES = 16 * 1024 * 1024


class Places(Protocol):
    """Where adapters are put: `basemodel.attach.AdapterSites`."""

    rows: int

    @property
    def whole_bytes(self) -> int:
        """Memory of what the placed adapters take beside rank rows."""

    def place(self, start: int, adapter: AdapterWeights) -> int | None:
        """Copy an adapter into its rank rows; returns the slot of one that changes more than linear layers."""

    def clear(self, start: int) -> None:
        """Forget the adapter in these rank rows."""


class AdapterPool:
    """Host cache and device rows. Only the engine loop calls it; reading threads touch nothing of it.

    `whole_bytes` is the room for what adapters take beside rank rows: DoRA's scales, biases, whole weights.
    """

    def __init__(
        self, places: Places, reader: AdapterReader, *, slots: int, host_cache_bytes: int, whole_bytes: int
    ) -> None:
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self.moves = 0
        self.load_seconds = 0.0
        self.tallies = Tallies()
        self._places = places
        self._reader = reader
        self._host = HostCache(host_cache_bytes)
        self._whole_bytes = whole_bytes
        self._resident: OrderedDict[str, Resident] = OrderedDict()  # least recently used first
        self._preloads: dict[str, AdapterUse] = {}  # asked for, not yet read
        self._kept: dict[str, AdapterUse] = {}
        self._promised: frozenset[str] = frozenset()
        self._copy_bytes_left: int | None = None

    # ------------------------------------------------------------------------------------------------- reading
    def preload(self, use: AdapterUse) -> None:
        """Read an adapter when nothing that is waited for is to be read."""
        if not self.is_loaded(use.digest):
            self._preloads[use.digest] = use

    def keep(self, uses: Iterable[AdapterUse]) -> None:
        """From now on these adapters are kept, and no others."""
        self._kept = {use.digest: use for use in uses}

    def read_ahead(self, wanted: Sequence[AdapterUse], promised: Collection[str] = ()) -> list[str]:
        """Start to read what is missing of `wanted` (most urgent first) where nothing else that is wanted must go for
        it, but what is `promised` in any case; then what is kept and preloaded. Returns the digests of `wanted` that it
        started.

        The parts of one request are promised until it is admitted: they must be here together, so none of them may go
        for what others want, and memory for them is found even if there is none.
        """
        self._promised = frozenset(promised)
        started = []
        here = {use.digest for use in wanted if use.digest in self._host} | set(self._reader.digests)
        needed_bytes = sum(map(self._host.likely_bytes, here))
        for use in sorted(wanted, key=lambda each: each.digest not in self._promised):
            if self._reader.is_full:
                break
            has_room = needed_bytes < self._host.budget_bytes or use.digest in self._promised
            if self.is_loaded(use.digest) or not has_room:
                continue
            if self._reader.start(use):
                started.append(use.digest)
                needed_bytes += self._host.likely_bytes(use.digest)
        for use in [*self._kept.values(), *self._preloads.values()]:
            if not self._reader.is_full and use.digest not in self._host:
                self._reader.start(use)
        return started

    def collect(self, wanted: Callable[[], Iterable[str]]) -> list[AdapterRefusedError]:
        """Take over what was read, and bring host memory back to its budget; returns what could not be read.

        `wanted` names the digests that waiting requests need, most urgent first.
        """
        refused = []
        for digest, outcome in self._reader.finished():
            self._preloads.pop(digest, None)
            problem = self._oversize(digest, outcome) if isinstance(outcome, HostAdapter) else outcome
            if isinstance(problem, AdapterRefusedError):
                self._kept.pop(digest, None)
                refused.append(problem)
            elif not isinstance(outcome, AdapterRefusedError):
                self._host.put(digest, outcome)
                self.load_seconds += outcome.read_seconds
        self._host.trim(wanted, self._promised | self._kept.keys())
        return refused

    def is_loaded(self, digest: str) -> bool:
        """Whether the adapter is in host or device memory."""
        return digest in self._host or digest in self._resident

    def probes(self, digest: str) -> tuple[Probe, ...]:
        """The probes of an adapter in host memory; none where only its device copy is left."""
        return self._host[digest].probes if digest in self._host else ()

    def nature(self, digest: str) -> AdapterNature:
        """What a loaded adapter is."""
        return self._resident[digest].nature if digest in self._resident else self._adapter(digest).nature

    def router(self, use: AdapterUse) -> Router | None:
        """A new router for a request of this mixture, which must be loaded; None where it is no mixture."""
        if not use.experts:
            return None
        mixture = self._host[use.digest]
        assert isinstance(mixture, HostMixture)
        return Router(mixture.table, self.tallies.of(use.digest, len(use.experts)))

    def why_never(self, uses: Iterable[AdapterUse]) -> str | None:
        """Why these adapters cannot lie on the device together, however long they wait; None where they can."""
        uses = tuple(uses)
        digests = {use.digest for use in uses}
        if len(uses) > 1 or any(use.weight != 1.0 for use in uses):
            for digest in digests:
                if self.is_loaded(digest) and (kinds := self.nature(digest).kinds):
                    return (
                        f"adapter {digest[:19]} cannot be weighted or combined with others: it is not LoRA alone "
                        f"({', '.join(kinds)}), and a sum of such changes has no meaning; use it alone, with weight 1"
                    )
        if len(digests) > self.slots:
            return f"it needs {len(digests)} adapters at once, and there are {self.slots} slots; raise --adapter-slots"
        ranks = sum(self._rank(digest) for digest in digests)
        if ranks > self._places.rows:
            return (
                f"its adapters have {ranks} rank rows together, and the adapter pool has {self._places.rows}; "
                "raise --adapter-pool-mib"
            )
        return None

    # ------------------------------------------------------------------------------------------------- placing
    def begin_step(self, *, is_bounded: bool) -> None:
        """A step begins; where others decode, copying is bounded, so that they do not wait for it."""
        self._copy_bytes_left = STEP_COPY_BYTES if is_bounded else None
        for digest, use in self._kept.items():
            if digest in self._host and digest not in self._resident and not use.experts and self._has_turn(digest):
                start = self._gap(digest, self._resident.values())
                if start is not None:
                    self._put(use, start)

    def has_turn(self, uses: Iterable[AdapterUse]) -> bool:
        """Whether this step may still copy what is missing of these adapters; if not, the next one may."""
        return all(use.digest in self._resident or self._has_turn(use.digest) for use in uses)

    def pin(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...] | None:
        """Bring every adapter of a request into rank rows and hold it there; None, and no change of pins, if there is
        no room because others are pinned. All of them must be loaded; mixtures are pinned as their experts. Where
        `moves` grew, others have new `rank_rows`.
        """
        uses = tuple(uses)
        pinned: list[Resident] = []
        is_used = any(resident.pins for resident in self._resident.values())
        for use in sorted(uses, key=lambda each: each.digest not in self._resident):  # none is evicted for another
            resident = self._resident.get(use.digest) or self._place(use)
            if resident is None:
                break
            resident.pins += 1
            pinned.append(resident)
            self._resident.move_to_end(use.digest)
        if len(pinned) == len(uses):
            return self.rank_rows(uses)
        for resident in pinned:
            resident.pins -= 1
        if not is_used:  # only how its own rows are cut is in the way, and they could not be moved: begin anew
            for digest in list(self._resident):
                self._evict(digest)
        return None

    def unpin(self, uses: Iterable[AdapterUse]) -> None:
        """Let go of what `pin` held. The adapters stay until their rows are needed."""
        for use in uses:
            self._resident[use.digest].pins -= 1

    def rank_rows(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...]:
        """Where adapters that are pinned lie now."""
        residents = [(self._resident[use.digest], use.weight) for use in uses]
        return tuple(RankRows(each.start, each.rank, weight, each.slot) for each, weight in residents)

    def drop(self, digest: str) -> None:
        """Forget an adapter everywhere (its probes failed). It must not be pinned."""
        self._host.drop(digest)
        self._kept.pop(digest, None)
        if digest in self._resident:
            self._evict(digest)

    def _rank(self, digest: str) -> int:
        """Rank rows of an adapter; 0 where it was never loaded."""
        if digest in self._resident:
            return self._resident[digest].rank
        return self._host.known_rank(digest)

    def _adapter(self, digest: str) -> HostAdapter:
        adapter = self._host[digest]
        assert isinstance(adapter, HostAdapter), "a mixture is placed as its experts"
        return adapter

    def _weights(self, digest: str) -> AdapterWeights:
        return self._adapter(digest).weights

    def _has_turn(self, digest: str) -> bool:
        left = self._copy_bytes_left
        return left is None or left == STEP_COPY_BYTES or self._host.known_bytes(digest) <= left

    def _place(self, use: AdapterUse) -> Resident | None:
        """Put an adapter on the device, evicting idle ones only if it then fits."""
        rank = self._weights(use.digest).rank
        pinned = [resident for resident in self._resident.values() if resident.pins]
        free_rows = self._places.rows - sum(resident.rank for resident in pinned)
        if len(pinned) >= self.slots or rank > free_rows or not self._has_bytes(use.digest, pinned):
            return None
        if self._gap(use.digest, pinned) is None and not self._move_together(rank, pinned):
            return None
        start = self._gap(use.digest, self._resident.values())
        while start is None:
            self._evict(self._idle())
            start = self._gap(use.digest, self._resident.values())
        self._put(use, start)
        return self._resident[use.digest]

    def _put(self, use: AdapterUse, start: int) -> None:
        adapter = self._adapter(use.digest)
        slot = self._copy(start, adapter.weights)
        self.loads += 1
        self._host.touch(use.digest)
        self._resident[use.digest] = Resident(use, start, adapter.weights.rank, adapter.nature, slot)

    def _move_together(self, rank: int, pinned: Collection[Resident]) -> bool:
        """Move pinned adapters until a gap of `rank` rows is behind them; False, and nothing moved, while one that has
        to move is not in host memory.
        """
        moves = moves_to_gap(rank, pinned)
        absent = [resident.use for resident, _ in moves if resident.use.digest not in self._host]
        for use in absent:
            if not self._reader.is_full and self._host.has_room_for(use.digest):
                self._reader.start(use)
        if absent:
            return False
        for resident, position in moves:
            self._move(resident, position)
        return True

    def _move(self, moved: Resident, position: int) -> None:
        stop = position + moved.rank
        for digest, resident in list(self._resident.items()):
            if not resident.pins and resident.start < stop and resident.stop > position:
                self._evict(digest)
        self._places.clear(moved.start)
        moved.slot = self._copy(position, self._weights(moved.use.digest))
        moved.start = position
        self.moves += 1

    def _copy(self, start: int, weights: AdapterWeights) -> int | None:
        begin = time.perf_counter()
        slot = self._places.place(start, weights)
        self.load_seconds += time.perf_counter() - begin
        if self._copy_bytes_left is not None:
            self._copy_bytes_left = max(0, self._copy_bytes_left - weights.adapter_bytes)
        return slot

    def _gap(self, digest: str, taken: Collection[Resident]) -> int | None:
        """Where an adapter's rows are free beside those of `taken`, if a slot and bytes are left too."""
        if len(taken) >= self.slots or not self._has_bytes(digest, taken):
            return None
        return first_gap(self._weights(digest).rank, self._places.rows, taken)

    def _has_bytes(self, digest: str, taken: Collection[Resident]) -> bool:
        """Whether there is room for what an adapter has beside rank rows."""
        whole_bytes = sum(resident.nature.whole_bytes for resident in taken)
        return whole_bytes + self._adapter(digest).nature.whole_bytes <= self._whole_bytes

    def _idle(self) -> str:
        """Who goes next: the least recently used of those that nobody pins, those that are kept last."""
        idle = [digest for digest, resident in self._resident.items() if not resident.pins]
        return next((digest for digest in idle if digest not in self._kept), idle[0])

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
        return self._host.digests

    @property
    def reading_digests(self) -> list[str]:
        """Adapters that are being read, or will be when nothing more urgent is to be read."""
        return list(dict.fromkeys([*self._reader.digests, *self._preloads]))

    @property
    def has_work(self) -> bool:
        """Whether something is being read, or will be though no request waits for it."""
        return bool(self._reader.digests or self._preloads) or any(each not in self._host for each in self._kept)

    @property
    def host_bytes(self) -> int:
        """Host memory taken by adapters."""
        return self._host.held_bytes

    def adapter_bytes(self, digest: str) -> int:
        """Size of an adapter in host memory, 0 where it is not there."""
        return self._host.known_bytes(digest) if digest in self._host else 0

    def close(self) -> None:
        """End the reading threads."""
        self._reader.close()

    def check_integrity(self, pins: dict[str, int]) -> None:
        """Rows do not overlap, slots are within the limit, and pins are those of `pins` (digest -> holders)."""
        position = 0
        for resident in sorted(self._resident.values(), key=lambda each: each.start):
            assert resident.start >= position, "two adapters share a rank row"
            position = resident.start + resident.rank
        assert position <= self._places.rows
        assert len(self._resident) <= self.slots
        whole_bytes = sum(resident.nature.whole_bytes for resident in self._resident.values())
        assert whole_bytes == self._places.whole_bytes, "what lies beside the rank rows is not what was counted"
        assert whole_bytes <= self._whole_bytes
        numbers = [resident.slot for resident in self._resident.values() if resident.slot is not None]
        assert len(numbers) == len(set(numbers)), "two adapters share a slot"
        held = {digest: resident.pins for digest, resident in self._resident.items() if resident.pins}
        assert held == {digest: count for digest, count in pins.items() if count}, "a pin was lost or left behind"
        self._host.check_integrity()

    def _oversize(self, digest: str, adapter: HostAdapter) -> AdapterRefusedError | None:
        nature = adapter.nature
        if adapter.weights.rank > self._places.rows:
            return AdapterRefusedError(
                digest,
                f"its rank {adapter.weights.rank} is more than the {self._places.rows} rank rows of the adapter pool; "
                "raise --adapter-pool-mib",
            )
        if nature.whole_bytes > self._whole_bytes:
            return AdapterRefusedError(
                digest,
                f"it takes {nature.whole_bytes:,} bytes beside its rank rows ({', '.join(nature.kinds)}), and "
                f"{self._whole_bytes:,} are set aside for that; raise --adapter-whole-mib",
            )
        return None
