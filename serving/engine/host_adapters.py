"""The adapters in host memory and those on their way there: what is read next, what is kept, what is dropped.

It does: read ahead what is wanted, then what is kept and preloaded; take over what was read, within the byte budget.
It does not: place anything on the device (`adapter_pool`), or read itself (`adapter_reader`).

    wanted by requests that wait  >  kept  >  preloaded         each is read once, two at a time, most urgent first
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from serving.engine.adapter_reader import AdapterReader
from serving.engine.device_adapters import DeviceAdapters
from serving.engine.errors import AdapterRefusedError
from serving.engine.host_adapter import HostAdapter, HostMixture
from serving.engine.host_cache import HostCache
from serving.messages import AdapterUse


class HostAdapters:
    """Adapters by digest, on their way or read. Only `AdapterPool` changes it, in the engine loop."""

    def __init__(self, reader: AdapterReader, device: DeviceAdapters, *, budget_bytes: int) -> None:
        self.read_seconds = 0.0
        self.kept: dict[str, AdapterUse] = {}  # they stay, and are the last to be evicted from the device
        self.cache = HostCache(budget_bytes, device.shared_digests)
        self._reader = reader
        self._device = device
        self._preloads: dict[str, AdapterUse] = {}  # asked for, not yet read
        self._promised: frozenset[str] = frozenset()

    def __contains__(self, digest: str) -> bool:
        return digest in self.cache

    def __getitem__(self, digest: str) -> HostAdapter | HostMixture:
        return self.cache[digest]

    def adapter(self, digest: str) -> HostAdapter:
        """One that is here and is placed by itself."""
        adapter = self.cache[digest]
        assert isinstance(adapter, HostAdapter), "a mixture is placed as its experts"
        return adapter

    def is_loaded(self, digest: str) -> bool:
        """Whether the adapter is in host or device memory."""
        return digest in self.cache or digest in self._device

    @property
    def digests_read(self) -> list[str]:
        """Adapters that are being read, or will be when nothing more urgent is to be read."""
        return list(dict.fromkeys([*self._reader.digests, *self._preloads]))

    @property
    def has_work(self) -> bool:
        """Whether something is being read, or will be though no request waits for it."""
        return bool(self._reader.digests or self._preloads) or any(each not in self.cache for each in self.kept)

    def preload(self, use: AdapterUse) -> None:
        """Read an adapter when nothing that is waited for is to be read."""
        if not self.is_loaded(use.digest):
            self._preloads[use.digest] = use

    def read_again(self, use: AdapterUse) -> None:
        """Read what is on the device alone, if there is room for it."""
        if not self._reader.is_full and self.cache.has_room_for(use.digest):
            self._reader.start(use)

    def read_ahead(self, wanted: Sequence[AdapterUse], promised: Collection[str]) -> list[str]:
        """As `AdapterPool.read_ahead` says."""
        self._promised = frozenset(promised)
        started = []
        here = {use.digest for use in wanted if self.cache.is_counted(use.digest)} | set(self._reader.digests)
        needed_bytes = sum(map(self.cache.likely_bytes, here))
        for use in sorted(wanted, key=lambda each: each.digest not in self._promised):
            if self._reader.is_full:
                break
            has_room = needed_bytes < self.cache.budget_bytes or use.digest in self._promised
            if self.is_loaded(use.digest) or not has_room:
                continue
            if self._reader.start(use):
                started.append(use.digest)
                needed_bytes += self.cache.likely_bytes(use.digest)
        for use in [*self.kept.values(), *self._preloads.values()]:
            if not self._reader.is_full and use.digest not in self.cache:
                self._reader.start(use)
        return started

    def collect(self, wanted: Callable[[], Iterable[str]]) -> list[AdapterRefusedError]:
        """As `AdapterPool.collect` says."""
        refused = []
        for digest, outcome in self._reader.finished():
            self._preloads.pop(digest, None)
            problem = self._device.why_not(digest, outcome) if isinstance(outcome, HostAdapter) else outcome
            if isinstance(problem, AdapterRefusedError):
                self.kept.pop(digest, None)
                refused.append(problem)
            elif not isinstance(outcome, AdapterRefusedError):
                self.cache.put(digest, outcome)
                self.read_seconds += outcome.read_seconds
        self.cache.trim(wanted, self._promised | self.kept.keys())
        return refused

    def drop(self, digest: str) -> None:
        """Forget an adapter, and that it was to be kept."""
        self.cache.drop(digest)
        self.kept.pop(digest, None)

    def close(self) -> None:
        """End the reading threads."""
        self._reader.close()
