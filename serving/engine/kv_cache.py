"""Who owns which block of the KV cache.

It does: hand out, take back and account for blocks of a fixed number of tokens.
It does not: hold keys and values (`attention`) or choose whom to preempt (`scheduler`).

    blocks 0 .. total-1 :  every block is in the free list, or owned by exactly one request
"""

from __future__ import annotations

from collections.abc import Iterable


class KVBlocks:
    """The free list of KV blocks. Only the scheduler changes it."""

    def __init__(self, total: int, block_tokens: int) -> None:
        assert total > 0
        assert block_tokens > 0
        self.total = total
        self.block_tokens = block_tokens
        self._free = list(range(total - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks, or None (and nothing is taken) if there are not as many."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        """Return a request's blocks; empties the list."""
        self._free += reversed(blocks)
        blocks.clear()

    def check_integrity(self, owned: Iterable[list[int]]) -> None:
        """Every block is free or owned, once. `owned` are the block lists of all requests."""
        seen = [*self._free, *(block for blocks in owned for block in blocks)]
        assert sorted(seen) == list(range(self.total)), "a KV block is lost or owned twice"
