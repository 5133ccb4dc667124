"""Who owns which block of the KV cache, and which full blocks can be used again.

It does: hand out, share, take back and account for blocks of a fixed number of tokens, and find the blocks of a prefix
that was computed before.
It does not: hold keys and values (`attention`) or choose whom to preempt (`scheduler`).

    blocks 0 .. total-1, each of them
      free      nobody's, nothing in it
      cached    nobody's, but its content is known: found again by its prefix, or taken when no free block is left
      owned     by one request; or by several that share it as a full block of their prefix: nobody writes to it again

A full block is known by the block before it and its own tokens; the first one by its identity (tenant, adapters) and
its tokens. Tokens are compared, not hashes of them: two tenants, adapters or texts can never be taken for one another.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from serving.engine.prefix_chain import PrefixChain


@dataclass(frozen=True)
class _Known:
    block: int
    node: int


class KVBlocks:
    """The blocks and what is known of them. Only the scheduler changes it."""

    def __init__(self, total: int, block_tokens: int) -> None:
        assert total > 0
        assert block_tokens > 0
        self.total = total
        self.block_tokens = block_tokens
        self._free = list(range(total - 1, -1, -1))
        self._owners: Counter[int] = Counter()
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first, ends of prefixes before heads
        self._known: dict[tuple[Hashable, tuple[int, ...]], _Known] = {}
        self._keys: dict[int, tuple[Hashable, tuple[int, ...]]] = {}
        self._nodes = count()

    @property
    def free(self) -> int:
        """Blocks that nobody owns: free and cached ones."""
        return len(self._free) + len(self._cached)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_tokens)

    # ------------------------------------------------------------------------------------------------- owning
    def take(self, count: int) -> list[int] | None:
        """`count` blocks to write to, or None (and nothing is taken) if there are not as many."""
        if count > self.free:
            return None
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        self._owners.update(taken)
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Return a request's blocks; empties the list. Known ones stay cached for the next of the same prefix."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            del self._owners[block]
            if block in self._keys:
                self._cached[block] = None
            else:
                self._free.append(block)
        blocks.clear()

    # ------------------------------------------------------------------------------------------------- prefixes
    def match(self, identity: Hashable, tokens: Sequence[int]) -> tuple[list[int], PrefixChain]:
        """Take the known full blocks that `tokens` begin with. The last token is never among them: it must be computed.

        `identity` is everything besides the tokens that keys and values depend on, and who may share them.
        """
        chain = PrefixChain(identity)
        found: list[int] = []
        for begin in range(0, (len(tokens) - 1) // self.block_tokens * self.block_tokens, self.block_tokens):
            known = self._known.get((chain.node, tuple(tokens[begin : begin + self.block_tokens])))
            if known is None:
                break
            chain.node = known.node
            chain.blocks += 1
            found.append(known.block)
            self._owners[known.block] += 1
            self._cached.pop(known.block, None)
        return found, chain

    def publish(self, chain: PrefixChain, tokens: Sequence[int], blocks: Sequence[int], computed: int) -> None:
        """Make a request's blocks known that are full now: its first `computed` tokens are in the cache."""
        while (chain.blocks + 1) * self.block_tokens <= computed:
            begin = chain.blocks * self.block_tokens
            key = (chain.node, tuple(tokens[begin : begin + self.block_tokens]))
            known = self._known.get(key)
            if known is None:
                known = _Known(blocks[chain.blocks], next(self._nodes))
                self._known[key] = known
                self._keys[known.block] = key
            chain.node = known.node
            chain.blocks += 1

    def forget(self, blocks: Iterable[int]) -> None:
        """Make a request's own blocks unknown, because what was computed into them is not to be trusted."""
        for block in [block for block in blocks if self._owners[block] == 1 and block in self._keys]:
            del self._known[self._keys.pop(block)]

    # ------------------------------------------------------------------------------------------------- accounts
    def check_integrity(self, owned: Iterable[list[int]]) -> None:
        """Every block is free, cached, or owned as often as it is named by `owned`: the block lists of all requests."""
        owners = Counter(block for blocks in owned for block in blocks)
        assert owners == self._owners, "a KV block is lost or owned by nobody"
        seen = [*self._free, *self._cached, *owners]
        assert sorted(seen) == list(range(self.total)), "a KV block is lost or owned twice"
        assert all(block in self._keys for block in self._cached)
        assert {known.block: key for key, known in self._known.items()} == self._keys
        shared = [block for block, count in owners.items() if count > 1]
        assert all(block in self._keys for block in shared), "a block that somebody may write to is shared"

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._known[self._keys.pop(block)]
        return block
