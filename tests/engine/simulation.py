"""A real engine (queues, blocks, pool, fairness) over a device and a disk that only keep account: thousands of steps a
second, counted in steps instead of seconds, and every step checked against what it may do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from basemodel.adapter_weights import AdapterWeights
from serving.engine.adapter_pool import AdapterPool
from serving.engine.adapter_reader import READING_THREADS
from serving.engine.engine import Engine
from serving.engine.grammar_pool import GrammarPool
from serving.engine.host_adapter import AdapterNature, HostAdapter
from serving.engine.kv_cache import KVBlocks
from serving.engine.request import Request, Row
from serving.engine.scheduler import LEAST_PROMPT_TOKENS, Scheduler, SchedulerLimits
from serving.messages import AdapterUse, Generate, Output, Sampling

VOCABULARY = 50
ADAPTER_BYTES_PER_RANK = 1000
NATURE = AdapterNature((), 0, VOCABULARY, VOCABULARY)  # LoRA on linear layers alone


class Disk:
    """In the place of `AdapterReader`: an adapter is there `slow_steps` steps after its turn among the threads."""

    def __init__(self, slow_steps: int = 0) -> None:
        self.slow_steps = slow_steps
        self.now = 0
        self.reads: list[str] = []
        self.broken: set[str] = set()
        self._reading: dict[str, int] = {}

    @property
    def is_full(self) -> bool:
        return len(self._reading) >= READING_THREADS

    @property
    def digests(self) -> list[str]:
        return list(self._reading)

    def start(self, use: AdapterUse) -> bool:
        assert not self.is_full, "more is read at once than there are threads"
        if use.digest in self._reading:
            return False
        self._reading[use.digest] = self.now + self.slow_steps
        self.reads.append(use.digest)
        return True

    def finished(self) -> list[tuple[str, HostAdapter]]:
        done = [digest for digest, ready in self._reading.items() if ready <= self.now]
        for digest in done:
            del self._reading[digest]
        return [(digest, HostAdapter(weights_of(digest), NATURE, (), 0.0)) for digest in done]

    def close(self) -> None:
        pass


def weights_of(digest: str) -> AdapterWeights:
    """An adapter's rank is the end of its name."""
    rank = int(digest.rsplit("r", 1)[1])
    return AdapterWeights(modules={digest: None}, rank=rank, adapter_bytes=rank * ADAPTER_BYTES_PER_RANK)


class Shelf:
    """In the place of `AdapterSites`: which adapter lies in which rank row."""

    def __init__(self, rows: int, *, copies: bool) -> None:
        self.rows = rows
        self.copies = copies
        self.factor_bytes = self.whole_bytes = 0
        self.lies: list[str | None] = [None] * rows
        self.placed = 0

    def place(self, start: int, adapter: AdapterWeights) -> None:
        (digest,) = adapter.modules
        assert set(self.lies[start : start + adapter.rank]) == {None}, "an adapter is put where another one lies"
        self.lies[start : start + adapter.rank] = [digest] * adapter.rank
        self.placed += 1

    def clear(self, start: int) -> None:
        digest = self.lies[start]
        assert digest is not None
        for row in range(start, self.rows):
            if self.lies[row] != digest:
                break
            self.lies[row] = None


class Device:
    """In the place of `Runner`: checks that a row has all that it needs; a next token depends on the tokens before."""

    def __init__(self, shelf: Shelf, block_tokens: int) -> None:
        self.sites = shelf
        self.base = SimpleNamespace(description=SimpleNamespace(vocabulary_size=VOCABULARY))
        self.rows: list[Row] = []
        self._block_tokens = block_tokens

    def run(self, rows: list[Row]) -> tuple[Any, torch.Tensor]:
        self.rows = rows
        assert len({row.request.request_id for row in rows}) == len(rows)
        for row in rows:
            request = row.request
            assert row.count >= 1
            assert request.computed + row.count <= len(request.blocks) * self._block_tokens, "a token without a block"
            assert len(request.rank_rows or ()) == len(request.adapters), "an adapter is not pinned"
            for use, where in zip(request.adapters, request.rank_rows or (), strict=True):
                assert self.sites.lies[where.start : where.start + where.rank] == [use.digest] * where.rank
        sampled = tuple(row for row in rows if row.samples)
        texts = [
            [*row.request.tokens, *row.draft[:drafted]] for row in sampled for drafted in range(len(row.draft) + 1)
        ]
        logits = torch.zeros(len(texts), VOCABULARY)
        for index, text in enumerate(texts):
            logits[index, next_token(text)] = 1.0
        return SimpleNamespace(sampled=sampled), logits


def next_token(tokens: list[int]) -> int:
    return (7 * sum(tokens) + len(tokens)) % (VOCABULARY - 1) + 1


@dataclass
class Simulation:
    """`first_step` and `last_step` say in which step a request got its first and its last token."""

    max_running: int = 4
    step_tokens: int = 32
    mixed_tokens: int = 24
    patience: int = 8
    kv_blocks: int = 64
    block_tokens: int = 4
    context: int = 128
    slots: int = 4
    rank_rows: int = 32
    host_bytes: int = 10**9
    copies: bool = True
    slow_disk_steps: int = 0
    step_number: int = 0
    first_step: dict[str, int] = field(default_factory=dict)
    last_step: dict[str, int] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, list[int]] = field(default_factory=dict)
    most_host_bytes: int = 0

    def __post_init__(self) -> None:
        self.disk = Disk(self.slow_disk_steps)
        self.shelf = Shelf(self.rank_rows, copies=self.copies)
        self.device = Device(self.shelf, self.block_tokens)
        pool = AdapterPool(
            self.shelf,
            self.disk,  # type: ignore[arg-type]
            slots=self.slots,
            host_cache_bytes=self.host_bytes,
            whole_bytes=0,
        )
        limits = SchedulerLimits(self.max_running, self.step_tokens, self.mixed_tokens, patience_steps=self.patience)
        self.scheduler = Scheduler(KVBlocks(self.kv_blocks, self.block_tokens), pool, limits)
        self.engine = Engine(
            self.device,  # type: ignore[arg-type]
            self.scheduler,
            GrammarPool(Path("none"), vocabulary_tokens=VOCABULARY, end_token_ids=frozenset()),
            context_tokens=self.context,
            end_token_ids=frozenset(),
            check_probes=False,
        )

    def ask(
        self,
        name: str,
        tenant: str,
        prompt: int,
        answer: int,
        *adapters: str,
        priority: int = 0,
        salt: int = 0,
        drafts: int = 0,
    ) -> None:
        """A request of so many tokens; equal salts share prefixes."""
        ids = [1 + (salt + 3 * index) % (VOCABULARY - 1) for index in range(prompt)]
        self.prompts[name] = ids
        self.engine.add(
            Generate(
                request_id=name,
                tenant=tenant,
                prompt_token_ids=ids,
                sampling=Sampling(max_tokens=answer, temperature=0.0),
                adapters=tuple(AdapterUse(digest=digest, folder="") for digest in adapters),
                priority=priority,
                draft_tokens=drafts,
            )
        )

    def step(self) -> list[Row]:
        """One step, checked: everybody who decodes gets a token, the step is within its bound, the accounts add up."""
        self.step_number += 1
        self.disk.now = self.step_number
        self.device.rows = []
        decoding = [request for request in self.scheduler.running if request.pending_tokens == 1]
        outputs = self.engine.step()
        self.engine.check_integrity()
        rows = self.device.rows
        self._check(rows, decoding)
        self._note(outputs)
        self.most_host_bytes = max(self.most_host_bytes, self.engine.pool.host_bytes)
        return rows

    def run(self, most_steps: int = 5000) -> None:
        for _ in range(most_steps):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError(f"work is left after {most_steps} steps")

    def abort(self, name: str) -> None:
        self.engine.abort(name)
        self.engine.check_integrity()

    def inside(self, tenant: str) -> deque[Request]:
        """The requests of a tenant."""
        every = [*self.scheduler.running, *self.scheduler.waiting]
        return deque(request for request in every if request.tenant == tenant)

    def _check(self, rows: list[Row], decoding: list[Request]) -> None:
        by_request = {id(row.request): row for row in rows}
        for request in decoding:
            assert id(request) in by_request or not request.is_running, "somebody who decodes was left out of a step"
        drafted = sum(len(row.draft) for row in rows)
        count = sum(row.count for row in rows) - drafted
        kept = sum(id(request) in by_request for request in decoding)
        # Rows are counted before anybody gives way to one that waits, which one may do in a step.
        assert count <= max(self.mixed_tokens if kept else self.step_tokens, kept + 1 + LEAST_PROMPT_TOKENS)
        assert len(self.scheduler.running) <= self.max_running
        assert not drafted or count + drafted <= self.scheduler.limits.draft_step_tokens

    def _note(self, outputs: list[Output]) -> None:
        for output in outputs:
            name = output.request_id
            self.answers.setdefault(name, []).extend(output.token_ids)
            if output.token_ids:
                self.first_step.setdefault(name, self.step_number)
            if output.fault is not None:
                self.faults[name] = output.fault.message
            if output.finish_reason is not None:
                self.last_step[name] = self.step_number

    def expected(self, name: str) -> list[int]:
        """What a request answers however it was scheduled, as far as it came."""
        tokens = list(self.prompts[name])
        for _ in self.answers.get(name, []):
            tokens.append(next_token(tokens))
        return tokens[len(self.prompts[name]) :]
