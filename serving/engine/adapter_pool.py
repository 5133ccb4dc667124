"""Which adapters are on the device and which are only in host memory, and who goes for whom.

It does: place adapters into rank rows on demand, choose the least recently used that nobody has pinned to be evicted,
and move those that are pinned together where the free rows are scattered.
It does not: fetch from a registry (the API process has verified the folder), decide who runs (`scheduler`), choose what
is read (`host_adapters`), or keep account of rows (`device_adapters`) and of host memory (`host_cache`).
Identity is the digest throughout.

An operator may have adapters kept: they stay in host memory, come to the device when there is room, and are the last to
be evicted from there. They never make another adapter wait.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from basemodel.lora_segment import RankRows
from serving.engine.adapter_reader import AdapterReader
from serving.engine.device_adapters import DeviceAdapters, Places
from serving.engine.errors import AdapterRefusedError
from serving.engine.host_adapter import AdapterNature, HostMixture
from serving.engine.host_adapters import HostAdapters
from serving.engine.probe import Probe
from serving.engine.rank_space import Resident, moves_to_gap
from serving.engine.router import Router, Tallies
from serving.messages import AdapterUse


class AdapterPool:
    """The adapters in host memory and on the device. Only the engine loop calls it; reading threads touch nothing of
    it, and `device` is changed by nobody else.
    """

    def __init__(
        self, places: Places, reader: AdapterReader, *, slots: int, host_cache_bytes: int, whole_bytes: int
    ) -> None:
        self.tallies = Tallies()
        self.device = DeviceAdapters(places, slots=slots, whole_bytes=whole_bytes)
        self._host = HostAdapters(reader, self.device, budget_bytes=host_cache_bytes)

    # ------------------------------------------------------------------------------------------------- reading
    def preload(self, use: AdapterUse) -> None:
        """Read an adapter when nothing that is waited for is to be read."""
        self._host.preload(use)

    def keep(self, uses: Iterable[AdapterUse]) -> None:
        """From now on these adapters are kept, and no others."""
        self._host.kept = {use.digest: use for use in uses}

    def read_ahead(self, wanted: Sequence[AdapterUse], promised: Collection[str] = ()) -> list[str]:
        """Start to read what is missing of `wanted` (most urgent first) where nothing else that is wanted must go for
        it, but what is `promised` in any case; then what is kept and preloaded. Returns the digests of `wanted` that it
        started.

        The parts of one request are promised until it is admitted: they must be here together, so none of them may go
        for what others want, and memory for them is found even if there is none.
        """
        return self._host.read_ahead(wanted, promised)

    def collect(self, wanted: Callable[[], Iterable[str]]) -> list[AdapterRefusedError]:
        """Take over what was read, and bring host memory back to its budget; returns what could not be read.

        `wanted` names the digests that waiting requests need, most urgent first.
        """
        return self._host.collect(wanted)

    def is_loaded(self, digest: str) -> bool:
        """Whether the adapter is in host or device memory."""
        return self._host.is_loaded(digest)

    def probes(self, digest: str) -> tuple[Probe, ...]:
        """The probes of an adapter in host memory; none where only its device copy is left."""
        return self._host[digest].probes if digest in self._host else ()

    def nature(self, digest: str) -> AdapterNature:
        """What a loaded adapter is."""
        return self.device[digest].nature if digest in self.device else self._host.adapter(digest).nature

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
        if len(digests) > (slots := self.device.slots):
            return f"it needs {len(digests)} adapters at once, and there are {slots} slots; raise --adapter-slots"
        ranks = sum(self._rank(digest) for digest in digests)
        if ranks > self.device.rows:
            return (
                f"its adapters have {ranks} rank rows together, and the adapter pool has {self.device.rows}; "
                "raise --adapter-pool-mib"
            )
        return None

    # ------------------------------------------------------------------------------------------------- placing
    def begin_step(self, *, is_bounded: bool) -> None:
        """A step begins; where others decode, copying is bounded, so that they do not wait for it."""
        self.device.begin_step(is_bounded=is_bounded)
        for digest, use in self._host.kept.items():
            if digest in self._host and digest not in self.device and not use.experts and self._has_turn(digest):
                start = self.device.gap(self._host.adapter(digest), self.device.residents)
                if start is not None:
                    self._put(use, start)

    def has_turn(self, uses: Iterable[AdapterUse]) -> bool:
        """Whether this step may still copy what is missing of these adapters; if not, the next one may."""
        return all(use.digest in self.device or self._has_turn(use.digest) for use in uses)

    def pin(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...] | None:
        """Bring every adapter of a request into rank rows and hold it there; None, and no change of pins, if there is
        no room because others are pinned. All of them must be loaded; mixtures are pinned as their experts. Where
        `device.moves` grew, others have new `rank_rows`.
        """
        uses = tuple(uses)
        pinned: list[str] = []
        is_used = bool(self.device.pinned)
        for use in sorted(uses, key=lambda each: each.digest not in self.device):  # none is evicted for another
            if use.digest not in self.device and not self._place(use):
                break
            self.device.pin(use.digest)
            pinned.append(use.digest)
        if len(pinned) == len(uses):
            return self.rank_rows(uses)
        for digest in pinned:
            self.device.unpin(digest)
        if not is_used:  # only how its own rows are cut is in the way, and they could not be moved: begin anew
            for digest in self.device:
                self._evict(digest)
        return None

    def unpin(self, uses: Iterable[AdapterUse]) -> None:
        """Let go of what `pin` held. The adapters stay until their rows are needed."""
        for use in uses:
            self.device.unpin(use.digest)

    def rank_rows(self, uses: Iterable[AdapterUse]) -> tuple[RankRows, ...]:
        """Where adapters that are pinned lie now."""
        return self.device.rank_rows(uses)

    def drop(self, digest: str) -> None:
        """Forget an adapter everywhere (its probes failed). It must not be pinned."""
        self._host.drop(digest)
        if digest in self.device:
            self.device.evict(digest)

    def _rank(self, digest: str) -> int:
        """Rank rows of an adapter; 0 where it was never loaded."""
        if digest in self.device:
            return self.device[digest].rank
        return self._host.cache.known_rank(digest)

    def _has_turn(self, digest: str) -> bool:
        return self.device.has_turn(self._host.cache.known_bytes(digest))

    def _place(self, use: AdapterUse) -> bool:
        """Put an adapter on the device, evicting idle ones only if it then fits; whether it is there."""
        adapter, pinned = self._host.adapter(use.digest), self.device.pinned
        if not self.device.could_hold(adapter, pinned):
            return False
        if self.device.gap(adapter, pinned) is None and not self._move_together(adapter.weights.rank, pinned):
            return False
        while (start := self.device.gap(adapter, self.device.residents)) is None:
            self._evict(self._next_to_go())
        self._put(use, start)
        return True

    def _put(self, use: AdapterUse, start: int) -> None:
        self.device.put(use, self._host.adapter(use.digest), start)
        self._host.cache.touch(use.digest)

    def _evict(self, digest: str) -> None:
        """Off the device; in host memory it was used last."""
        self.device.evict(digest)
        self._host.cache.touch(digest)

    def _move_together(self, rank: int, pinned: Collection[Resident]) -> bool:
        """Move pinned adapters until a gap of `rank` rows is behind them; False, and nothing moved, while one that has
        to move is not in host memory.
        """
        moves = moves_to_gap(rank, pinned)
        absent = [resident.use for resident, _ in moves if resident.use.digest not in self._host]
        for use in absent:
            self._host.read_again(use)
        if absent:
            return False
        for resident, position in moves:
            for digest in self.device.in_the_way(resident, position):
                self._evict(digest)
            self.device.move(resident, position, self._host.adapter(resident.use.digest).weights)
        return True

    def _next_to_go(self) -> str:
        """The least recently used of those that nobody pins, those that are kept last."""
        idle = self.device.idle_digests
        return next((digest for digest in idle if digest not in self._host.kept), idle[0])

    # ------------------------------------------------------------------------------------------------- accounts
    @property
    def resident_digests(self) -> list[str]:
        """Adapters in rank rows, least recently used first."""
        return list(self.device)

    @property
    def load_seconds(self) -> float:
        """Time that reading and copying adapters took so far."""
        return self._host.read_seconds + self.device.copy_seconds

    @property
    def host_digests(self) -> list[str]:
        """Adapters in host memory, least recently used first."""
        return self._host.cache.digests

    @property
    def reading_digests(self) -> list[str]:
        """Adapters that are being read, or will be when nothing more urgent is to be read."""
        return self._host.digests_read

    @property
    def has_work(self) -> bool:
        """Whether something is being read, or will be though no request waits for it."""
        return self._host.has_work

    @property
    def host_bytes(self) -> int:
        """Host memory taken by adapters, but for those that the device computes where they lie."""
        return self._host.cache.counted_bytes

    def adapter_bytes(self, digest: str) -> int:
        """Size of an adapter in host memory, 0 where it is not there."""
        return self._host.cache.known_bytes(digest) if digest in self._host else 0

    def close(self) -> None:
        """End the reading threads."""
        self._host.close()

    def check_integrity(self, pins: dict[str, int]) -> None:
        """The accounts of the device and of host memory add up, and pins are those of `pins` (digest -> holders)."""
        self.device.check_integrity(pins)
        self._host.cache.check_integrity()
