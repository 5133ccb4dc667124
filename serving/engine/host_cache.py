"""The adapters and mixtures in host memory, within a byte budget.

It does: keep what was read, least recently used first out, and remember how large it was.
It does not: read (`adapter_reader`), or know why an adapter is wanted or kept (`adapter_pool`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from serving.engine.host_adapter import HostAdapter, HostMixture

# Sizes of adapters that were dropped: known sizes keep one from being read again while there is no room for it.
MOST_REMEMBERED_SIZES = 65_536


class HostCache:
    """Adapters by digest. Only `AdapterPool` changes it.

    `placed` names those that the device computes from this very memory: its own budget counts them, they take nothing
    of this one, and to drop them would win nothing.
    """

    def __init__(self, budget_bytes: int, placed: Callable[[], Collection[str]] = tuple) -> None:
        self.budget_bytes = budget_bytes
        self._placed = placed
        self._adapters: OrderedDict[str, HostAdapter | HostMixture] = OrderedDict()  # least recently used first
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._ranks: dict[str, int] = {}
        self.held_bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._adapters

    def __getitem__(self, digest: str) -> HostAdapter | HostMixture:
        return self._adapters[digest]

    @property
    def counted_bytes(self) -> int:
        """What is here but for what is placed."""
        return self.held_bytes - sum(self._adapters[each].host_bytes for each in self._placed() if each in self)

    def is_counted(self, digest: str) -> bool:
        """Whether an adapter is here and takes of the budget."""
        return digest in self._adapters and digest not in self._placed()

    @property
    def digests(self) -> list[str]:
        """What is here, least recently used first."""
        return list(self._adapters)

    def known_bytes(self, digest: str) -> int:
        """The size of an adapter that is or was here, 0 if it never was."""
        return self._sizes.get(digest, 0)

    def known_rank(self, digest: str) -> int:
        """The rank of an adapter that is or was here, 0 if it never was, and for a mixture."""
        return self._ranks.get(digest, 0)

    def likely_bytes(self, digest: str) -> int:
        """The size of an adapter, or the mean of those here where it was never read."""
        return self.known_bytes(digest) or self.held_bytes // max(1, len(self._adapters))

    def has_room_for(self, digest: str) -> bool:
        """Whether an adapter of known size fits without another being dropped."""
        return self.counted_bytes + self.known_bytes(digest) <= self.budget_bytes

    def put(self, digest: str, adapter: HostAdapter | HostMixture) -> None:
        """Take an adapter in. `trim` brings the cache back to its budget."""
        assert digest not in self._adapters
        self._adapters[digest] = adapter
        self._sizes[digest] = adapter.host_bytes
        self._sizes.move_to_end(digest)
        self._ranks[digest] = adapter.weights.rank if isinstance(adapter, HostAdapter) else 0
        if len(self._sizes) > MOST_REMEMBERED_SIZES:
            del self._ranks[self._sizes.popitem(last=False)[0]]
        self.held_bytes += adapter.host_bytes

    def touch(self, digest: str) -> None:
        """It was used; nothing happens if it is not here."""
        if digest in self._adapters:
            self._adapters.move_to_end(digest)

    def drop(self, digest: str) -> None:
        """Forget an adapter; nothing happens if it is not here."""
        adapter = self._adapters.pop(digest, None)
        if adapter is not None:
            self.held_bytes -= adapter.host_bytes

    def trim(self, wanted: Callable[[], Iterable[str]], kept: Collection[str]) -> None:
        """Drop adapters until the budget holds: first those nobody waits for, then those whose turn is last.

        `wanted` names what waiting requests need, most urgent first; `kept` always stay.
        """
        over = self.counted_bytes - self.budget_bytes
        if over <= 0:
            return
        kept = {*kept, *self._placed()}
        needed = {digest: None for digest in wanted() if digest in self._adapters}
        for digest in [*(each for each in self.digests if each not in needed), *reversed(needed)]:
            if over <= 0:
                return
            if digest not in kept:
                over -= self._adapters[digest].host_bytes
                self.drop(digest)

    def check_integrity(self) -> None:
        """The account of bytes is that of the adapters."""
        assert self.held_bytes == sum(adapter.host_bytes for adapter in self._adapters.values())
        assert set(self._adapters) <= set(self._sizes)
