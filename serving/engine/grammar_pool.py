"""Compiles grammars beside the engine loop, and keeps what is compiled.

It does: compile, give each request its own state of a compiled grammar, and bound what is kept.
It does not: judge what a client sent: the API's workers have compiled it before, within limits of time and memory.

Compiled grammars are kept per tenant: how soon a request starts tells nobody what others' grammars are.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from llguidance import LLMatcher

from serving.engine.constraint import Constraint
from serving.engine.errors import RequestRefusedError
from serving.engine.grammar_threads import GrammarThreads
from serving.grammars.compiler import GrammarCompiler
from serving.grammars.errors import GrammarRefusedError

KEPT_GRAMMARS = 64
KEPT_PER_TENANT = 16
COMPILE_SECONDS = 60.0

Key = tuple[str, bytes]


@dataclass(frozen=True)
class Compilation:
    """A grammar on its way. `begun_at` is on time.monotonic's clock."""

    key: Key
    future: Future[LLMatcher]
    begun_at: float


class GrammarPool:
    """Only the engine loop calls it.

    `vocabulary_tokens` are the bits of a mask: as many as the model has logits. The tokenizer is read with the first
    grammar.
    """

    def __init__(self, tokenizer_file: Path, *, vocabulary_tokens: int, end_token_ids: frozenset[int]) -> None:
        self._tokenizer_file = tokenizer_file
        self._vocabulary_tokens = vocabulary_tokens
        self._end_token_ids = end_token_ids
        self._compiler: Future[GrammarCompiler] | None = None
        self._threads: dict[str, GrammarThreads] = {}
        self._kept: OrderedDict[Key, Future[LLMatcher]] = OrderedDict()

    def want(self, tenant: str, grammar: str) -> Compilation:
        """Begin to compile a grammar, unless it is kept or on its way."""
        key = (tenant, hashlib.sha256(grammar.encode()).digest())
        future = self._kept.get(key)
        if future is None:
            threads = self._threads_of(tenant)
            if self._compiler is None:
                self._compiler = threads.submit(self._load)
            compiler = self._compiler
            future = self._kept[key] = threads.submit(lambda: compiler.result().compile(grammar))
            self._forget_beyond_budget(tenant)
        self._kept.move_to_end(key)
        return Compilation(key, future, time.monotonic())

    def constraint(self, compilation: Compilation) -> Constraint | None:
        """A new request's own state of the grammar; None while it is compiled. Raises RequestRefusedError."""
        if not compilation.future.done():
            if time.monotonic() - compilation.begun_at > COMPILE_SECONDS:
                raise RequestRefusedError(f"the grammar was not compiled within {COMPILE_SECONDS:.0f} s; simplify it")
            return None
        tenant, _ = compilation.key
        try:
            compiled = compilation.future.result()
        except GrammarRefusedError as error:
            self._kept.pop(compilation.key, None)
            raise RequestRefusedError(f"the grammar cannot be followed: {error.reason}") from None
        assert self._compiler is not None
        idle = self._compiler.result().idle_matcher()
        return Constraint(compiled, idle, self._vocabulary_tokens, self._threads_of(tenant))

    def rest(self, tenant: str) -> None:
        """A tenant has no request with a grammar now: its threads end when what they do is done."""
        if (threads := self._threads.pop(tenant, None)) is not None:
            threads.close()

    def close(self) -> None:
        """End all threads."""
        for tenant in list(self._threads):
            self.rest(tenant)

    def _threads_of(self, tenant: str) -> GrammarThreads:
        if tenant not in self._threads:
            self._threads[tenant] = GrammarThreads()
        return self._threads[tenant]

    def _load(self) -> GrammarCompiler:
        return GrammarCompiler.load(
            self._tokenizer_file,
            vocabulary_tokens=self._vocabulary_tokens,
            end_token_ids=sorted(self._end_token_ids),
        )

    def _forget_beyond_budget(self, tenant: str) -> None:
        """The oldest of this tenant's beyond its share, then the oldest of all."""
        held = Counter(owner for owner, _ in self._kept)
        if held[tenant] > KEPT_PER_TENANT:
            del self._kept[next(key for key in self._kept if key[0] == tenant)]
        elif len(self._kept) > KEPT_GRAMMARS:
            self._kept.popitem(last=False)
