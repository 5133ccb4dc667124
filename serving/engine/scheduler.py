"""Chooses what the next step computes.

It does: let every running request decode, give what is left of the step's token budget to prompts in fair order, admit
waiting requests when their adapters are loaded and there is room, and preempt when room must be made.
It does not: run anything.

    waiting --admit--> running --finish--> gone
       ^                  |
       +----- preempt ----+   (its blocks are freed, its tokens are computed again later; nothing fails)

Nobody waits for ever. The least served tenant is first in line; if there is no room for its request, others may pass it
for `patience_steps`. Then nobody is admitted behind it, and requests of tenants that were served more give way to it,
one a step, as soon as each has brought itself forward by as many tokens.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from serving.engine.adapter_pool import AdapterPool
from serving.engine.drafts import Drafts
from serving.engine.fairness import FairOrder
from serving.engine.kv_cache import KVBlocks
from serving.engine.request import Request, Row
from serving.engine.victims import gives_blocks, gives_place

# Prompts get this much of a step even where the rows that decode use its budget up.
LEAST_PROMPT_TOKENS = 16


@dataclass(frozen=True)
class SchedulerLimits:
    """`step_budget_tokens` bounds a step, and `mixed_step_tokens` one in which somebody decodes, so that a long prompt
    never stalls those who do. Rows that decode run in every step; prompts get at least LEAST_PROMPT_TOKENS of it.

    Drafts are added to a step of less than `draft_step_tokens` tokens, up to them: a step's time hardly depends on how
    many tokens it has, as long as these are few.

    After `patience_steps` steps in which there was no room for the request that is first in line, it is made.
    """

    max_running: int
    step_budget_tokens: int
    mixed_step_tokens: int
    draft_step_tokens: int = 16
    patience_steps: int = 64

    def prompt_tokens(self, decoding: int) -> int:
        """Tokens that prompts may have in a step beside `decoding` rows."""
        total = self.mixed_step_tokens if decoding else self.step_budget_tokens
        return max(LEAST_PROMPT_TOKENS, total - decoding)


class Lack(Enum):
    """What a waiting request could not get. TURN: the step has copied enough adapters, or evicted one of its own, which
    is to be read again; a later step goes on.
    """

    PLACE = auto()
    BLOCKS = auto()
    ROWS = auto()
    TURN = auto()


class Scheduler:
    """The queues. Only the engine loop calls it."""

    def __init__(self, blocks: KVBlocks, pool: AdapterPool, limits: SchedulerLimits) -> None:
        self.blocks = blocks
        self.pool = pool
        self.limits = limits
        self.fair = FairOrder()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self._promised: Request | None = None  # whose adapters are read and stay in any case
        self.prefix_queries = 0  # tokens of prompts that were looked up, and found
        self.prefix_hits = 0

    def add(self, request: Request) -> None:
        """Queue a request. The next step starts to load its adapters, when their turn comes."""
        self.fair.enter(request)
        self.waiting.append(request)

    def advance(self, request: Request, count: int) -> None:
        """Take note that `count` more of a running request's tokens are in the KV cache."""
        request.computed += count
        if request.chain is not None:
            self.blocks.publish(request.chain, request.tokens, request.blocks, request.computed)
            spare = request.blocks[self.blocks.blocks_for(len(request.tokens) + 1) :]  # were for a draft
            del request.blocks[len(request.blocks) - len(spare) :]
            self.blocks.give_back(spare)

    def finish(self, request: Request) -> None:
        """Forget a request, wherever it is, and free what it holds."""
        (self.running if request.is_running else self.waiting).remove(request)
        self._release(request)
        self.fair.leave(request)

    def schedule(self) -> list[Row]:
        """The rows of the next step; no rows if nothing can run."""
        rows = self._decoding_rows()
        self.pool.begin_step(is_bounded=bool(rows))
        loaded = [request for request in self.waiting if self.is_loaded(request)]
        self._read_ahead(is_needed=len(loaded) < len(self.waiting))
        budget = self.limits.prompt_tokens(len(rows))
        reading = [request for request in self.running if request.pending_tokens > 1]
        line = self.fair.line([*reading, *loaded])
        unread = len(reading)
        is_closed = False  # nobody more is admitted in this step
        while budget and (unread or not is_closed) and (request := line.pop()) is not None:
            if request.is_running:
                unread -= 1
            elif is_closed:
                continue
            elif (lack := self._admit(request)) is not None:
                is_closed = self._pass_over(request, lack)
                continue
            count = min(request.pending_tokens, budget)
            rows.append(Row(request, count))
            line.took(request, count)
            budget -= count
        return self._with_drafts([row for row in rows if row.request.is_running])

    def is_loaded(self, request: Request) -> bool:
        """Whether all adapters of a request are in host or device memory."""
        return all(map(self.pool.is_loaded, request.digests))

    def wanted_digests(self) -> list[str]:
        """The adapters that waiting requests need, most urgent first."""
        return [use.digest for request in self._in_order() for use in request.parts]

    def check_integrity(self) -> None:
        """Blocks and pins are owned by those who run, and by nobody else."""
        self.blocks.check_integrity(request.blocks for request in [*self.running, *self.waiting])
        assert all(request.is_running for request in self.running)
        assert not any(request.blocks or request.rank_rows or request.is_running for request in self.waiting)
        assert all(request.rank_rows == self.pool.rank_rows(request.placed) for request in self.running)
        pins = Counter(use.digest for request in self.running for use in request.placed)
        self.pool.check_integrity(dict(pins))
        self.fair.check_integrity([*self.running, *self.waiting])

    # ------------------------------------------------------------------------------------------------- admission
    def _in_order(self) -> Iterator[Request]:
        return iter(self.fair.line(self.waiting).pop, None)

    def _read_ahead(self, *, is_needed: bool) -> None:
        """Read what waiting requests need and what is not loaded, or was dropped from memory since, in fair order."""
        if self._promised is not None and (self._promised.is_running or self._promised not in self.waiting):
            self._promised = None
        if not is_needed:
            self.pool.read_ahead((), () if self._promised is None else self._promised.digests)
            return
        line = [(use, request) for request in self._in_order() for use in request.parts]
        self._promised = self._promised or next(request for _, request in line if not self.is_loaded(request))
        first = {use.digest: request for use, request in reversed(line)}
        for digest in self.pool.read_ahead([use for use, _ in line], self._promised.digests):
            self.fair.charge(first[digest], loads=1)

    def _admit(self, request: Request) -> Lack | None:
        """Move a request to running, if there are a place, KV blocks for all its tokens and room for its adapters.

        It owns these blocks from now on, so that no two prompts can wait for each other's. What the cache knows of its
        prefix is not computed again.
        """
        if len(self.running) >= self.limits.max_running:
            return Lack.PLACE
        if not (self.is_loaded(request) and self.pool.has_turn(request.placed)):
            return Lack.TURN
        blocks, chain = self.blocks.match(request.identity, request.tokens)
        missing = self.blocks.blocks_for(len(request.tokens) + 1) - len(blocks)
        if missing > self.blocks.free:
            self.blocks.give_back(blocks)
            return Lack.BLOCKS
        moves, loads = self.pool.device.moves, self.pool.device.loads
        rank_rows = self.pool.pin(request.placed)
        self.fair.charge(request, loads=self.pool.device.loads - loads)
        if self.pool.device.moves > moves:  # also where there was no room in the end
            for each in self.running:
                each.rank_rows = self.pool.rank_rows(each.placed)
        if rank_rows is None:
            self.blocks.give_back(blocks)
            return Lack.ROWS
        request.rank_rows = rank_rows
        request.router = self.pool.router(request.adapters[0]) if request.adapters else None
        request.computed = request.cached_tokens = len(blocks) * self.blocks.block_tokens
        request.blocks, request.chain = [*blocks, *(self.blocks.take(missing) or ())], chain
        request.admitted_tokens = len(request.tokens)
        request.skipped_steps = 0
        if not request.charged_tokens:  # its first admission, not one after a preemption
            request.queue_seconds = time.monotonic() - request.queued_at
            self.prefix_queries += len(request.tokens)
            self.prefix_hits += request.cached_tokens
        self.waiting.remove(request)
        self.running.append(request)
        return None

    def _pass_over(self, request: Request, lack: Lack) -> bool:
        """There is no room for a request; whether nobody behind it may be admitted either."""
        if lack is Lack.TURN:
            return False
        request.skipped_steps += 1
        if request.skipped_steps <= self.limits.patience_steps:
            return lack is Lack.PLACE
        settled = self.limits.patience_steps
        victim = gives_place(self.running, request, self.fair, settled, with_adapters=lack is Lack.ROWS)
        if victim is not None:
            self._preempt(victim)
        return True

    # ------------------------------------------------------------------------------------------------- drafts
    def _with_drafts(self, rows: list[Row]) -> list[Row]:
        """The same rows, with drafts for those that decode and may guess, as far as the step has tokens left."""
        left = self.limits.draft_step_tokens - sum(row.count for row in rows)
        guessing = sum(row.count == 1 and row.request.drafts is not None for row in rows)
        drafted = []
        for row in rows:
            if left > 0 and row.count == 1 and row.samples and row.request.drafts is not None:
                row = self._with_draft(row, row.request.drafts, left // guessing or 1)
                left -= len(row.draft)
                guessing -= 1
            drafted.append(row)
        return drafted

    def _with_draft(self, row: Row, drafts: Drafts, limit: int) -> Row:
        """A draft takes free blocks, and preempts nobody."""
        request = row.request
        draft = drafts.propose(request.tokens, min(limit, request.ends_at_tokens - len(request.tokens) - 1))
        missing = self.blocks.blocks_for(request.computed + 1 + len(draft)) - len(request.blocks)
        if missing > 0:
            request.blocks += self.blocks.take(min(missing, self.blocks.free)) or ()
        draft = draft[: len(request.blocks) * self.blocks.block_tokens - request.computed - 1]
        return Row(request, 1 + len(draft), draft)

    # ------------------------------------------------------------------------------------------------- memory
    def _decoding_rows(self) -> list[Row]:
        """A row of one token for every request that decodes; those that found no block are preempted, or made others
        be.
        """
        decoding = [request for request in self.running if request.pending_tokens == 1]
        grown = [request for request in decoding if request.is_running and self._grow(request)]
        return [Row(request, 1) for request in grown if request.is_running]  # a later one may have preempted it

    def _grow(self, request: Request) -> bool:
        """Give a running request blocks for one more token, preempting others if it must."""
        missing = self.blocks.blocks_for(request.computed + 1) - len(request.blocks)
        if missing <= 0:
            return True
        while (taken := self.blocks.take(missing)) is None:
            victim = gives_blocks(self.running, self.limits.patience_steps)
            self._preempt(victim)
            if victim is request:
                return False
        request.blocks += taken
        return True

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.computed = 0
        self.running.remove(request)
        self.waiting.append(request)
        self.preemptions += 1

    def _release(self, request: Request) -> None:
        self.blocks.give_back(request.blocks)
        request.chain = None
        if request.rank_rows is not None:
            self.pool.unpin(request.placed)
            request.rank_rows = request.router = None
