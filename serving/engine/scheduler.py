"""Chooses what the next step computes.

It does: let every running request decode, fill the rest of the step's token budget with chunks of prompts, admit
waiting requests in fair order when their adapters are loaded and there is room, and preempt the youngest when the KV
cache is full. It does not: run anything.

    waiting --admit--> running --finish--> gone
       ^                  |
       +----- preempt ----+   (its blocks are freed, its tokens are computed again later; nothing fails)
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from serving.engine.adapter_pool import AdapterPool
from serving.engine.fairness import FairOrder
from serving.engine.kv_cache import KVBlocks
from serving.engine.request import Request, Row


@dataclass(frozen=True)
class SchedulerLimits:
    """`step_budget_tokens` bounds a step, so that a long prompt never stalls those that decode.

    After `patience_steps` steps in which a request found no adapter slot, nobody who came later is admitted before it.
    """

    max_running: int
    step_budget_tokens: int
    patience_steps: int = 64


class Scheduler:
    """The queues. Only the engine loop calls it."""

    def __init__(self, blocks: KVBlocks, pool: AdapterPool, limits: SchedulerLimits) -> None:
        self.blocks = blocks
        self.pool = pool
        self.limits = limits
        self.fair = FairOrder()
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # in order of arrival
        self.preemptions = 0
        self.prefix_queries = 0  # tokens of prompts that were looked up, and found
        self.prefix_hits = 0

    def add(self, request: Request) -> None:
        """Queue a request and start to load its adapters at once."""
        self.fair.enter(request.tenant)
        self.waiting.append(request)
        for use in request.adapters:
            self.pool.want(use)

    def advance(self, request: Request, count: int) -> None:
        """Take note that `count` more of a running request's tokens are in the KV cache."""
        request.computed += count
        if request.chain is not None:
            self.blocks.publish(request.chain, request.tokens, request.blocks, request.computed)

    def finish(self, request: Request) -> None:
        """Forget a request, wherever it is, and free what it holds."""
        self._release(request)
        (self.running if request in self.running else self.waiting).remove(request)
        self.fair.leave(request.tenant)

    def schedule(self) -> list[Row]:
        """The rows of the next step; no rows if nothing can run."""
        budget = self.limits.step_budget_tokens
        rows: list[Row] = []
        for request in list(self.running):  # decoding rows first: each costs one token
            if request in self.running and request.pending_tokens == 1 and budget and self._grow(request, 1):
                rows.append(Row(request, 1))
                budget -= 1
        rows = [row for row in rows if row.request in self.running]  # a later row may have preempted an earlier one
        for request in self.running:
            if request.pending_tokens > 1 and budget:
                budget -= self._add_chunk(rows, request, budget)
        for request in self._admissible():
            if not budget or len(self.running) >= self.limits.max_running:
                break
            if self._admit(request):
                budget -= self._add_chunk(rows, request, budget)
            elif request.skipped_steps > self.limits.patience_steps:
                break
        return rows

    def check_integrity(self) -> None:
        """Blocks and pins are owned by those who run, and by nobody else."""
        self.blocks.check_integrity(request.blocks for request in [*self.running, *self.waiting])
        assert not any(request.blocks or request.rank_rows for request in self.waiting)
        pins = Counter(use.digest for request in self.running for use in request.placed)
        self.pool.check_integrity(dict(pins))

    # ------------------------------------------------------------------------------------------------- admission
    def _admissible(self) -> list[Request]:
        """Waiting requests whose adapters are loaded, in fair order; who has waited beyond patience comes first."""
        ready = []
        for request in self.waiting:
            missing = [use for use in request.adapters if not self.pool.is_ready(use)]
            for use in missing:  # read before, but dropped from host memory since
                self.pool.want(use)
            if not missing:
                ready.append(request)
        ordered = self.fair.order(ready)
        patience = self.limits.patience_steps
        return sorted(ordered, key=lambda request: request.skipped_steps <= patience)

    def _admit(self, request: Request) -> bool:
        """Move a request to running, if there are KV blocks for all its tokens and room for its adapters.

        What the cache knows of its prefix is not computed again.
        """
        blocks, chain = self.blocks.match(request.identity, request.tokens)
        rank_rows = None
        if self.blocks.blocks_for(len(request.tokens) + 1) - len(blocks) <= self.blocks.free:
            rank_rows = self.pool.pin(request.placed)
        if rank_rows is None:
            self.blocks.give_back(blocks)
            request.skipped_steps += 1
            return False
        request.rank_rows = rank_rows
        request.router = self.pool.router(request.adapters[0]) if request.adapters else None
        request.blocks, request.chain = blocks, chain
        request.computed = request.cached_tokens = len(blocks) * self.blocks.block_tokens
        request.skipped_steps = 0
        if not request.charged_tokens:  # its first admission, not one after a preemption
            request.queue_seconds = time.monotonic() - request.queued_at
            self.prefix_queries += len(request.tokens)
            self.prefix_hits += request.cached_tokens
        self.waiting.remove(request)
        self.running.append(request)
        self.running.sort(key=lambda each: each.arrival)
        return True

    def _add_chunk(self, rows: list[Row], request: Request, budget: int) -> int:
        """Add the next chunk of a prompt; returns its tokens, 0 where the cache has no room for it now."""
        count = min(request.pending_tokens, budget)
        missing = self.blocks.blocks_for(request.computed + count) - len(request.blocks)
        taken = self.blocks.take(max(missing, 0))
        if taken is None:
            return 0
        request.blocks += taken
        rows.append(Row(request, count))
        return count

    # ------------------------------------------------------------------------------------------------- memory
    def _grow(self, request: Request, count: int) -> bool:
        """Give a running request blocks for `count` more tokens, preempting the youngest others if it must."""
        missing = self.blocks.blocks_for(request.computed + count) - len(request.blocks)
        while (taken := self.blocks.take(max(missing, 0))) is None:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is request:
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
