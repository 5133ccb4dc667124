"""What a request's answer must follow, token by token.

It does: keep a grammar's state for one request, and work out which tokens may come next on a thread beside the loop,
while the model computes. It does not: compile grammars (`grammar_pool`) or choose tokens (`sampler`).

The state is a function of the generated tokens alone: a request that is preempted and computed again keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher

from serving.engine.grammar_threads import GrammarThreads
from serving.grammars.compiler import problem_of

logger = logging.getLogger(__name__)
MASK_WORD_BITS = 32


@dataclass(frozen=True)
class Allowed:
    """What may come next.

    `forbidden` [V] is True for the tokens that may not; None where none is to be chosen: the text is complete
    (`is_complete`), or the grammar cannot go on (`problem`, written for the client).
    """

    forbidden: torch.Tensor | None
    is_complete: bool = False
    problem: str | None = None


class Constraint:
    """One request's grammar. The engine loop moves it on through `take`; its thread works on what was handed to it.

    `compiled` is a matcher at the beginning of the grammar, `idle` one for `GrammarThreads.take_token`.
    """

    def __init__(self, compiled: LLMatcher, idle: LLMatcher, vocabulary_tokens: int, threads: GrammarThreads) -> None:
        self._matcher = compiled.deep_copy()
        self._idle = idle
        self._vocabulary_tokens = vocabulary_tokens
        self._threads = threads
        self._next: Future[Allowed] = threads.submit(lambda: self._advance(None))

    def take(self, token: int) -> None:
        """The request's text goes on with this token: begin to work out what may follow it."""
        assert self._next.done(), "a token was chosen before it was known which are allowed"
        self._next = self._threads.submit(lambda: self._advance(token))

    @property
    def allowed(self) -> Allowed | None:
        """What may come next; None while that is being worked out."""
        return self._next.result() if self._next.done() else None

    def _advance(self, token: int | None) -> Allowed:
        """On a thread. Whatever goes wrong here ends this request and nothing else."""
        try:
            return self._worked_out(token)
        except Exception:
            logger.exception("a grammar failed unexpectedly")
            return Allowed(None, problem="the grammar failed unexpectedly")

    def _worked_out(self, token: int | None) -> Allowed:
        matcher = self._matcher
        if token is not None:
            self._threads.take_token(matcher, token, self._idle)
        words = np.empty(-(-self._vocabulary_tokens // MASK_WORD_BITS), dtype=np.uint32)
        if not matcher.is_stopped():
            matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            return Allowed(None, problem=problem_of(matcher))
        if matcher.is_stopped():
            return Allowed(None, is_complete=True)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: self._vocabulary_tokens]
        return Allowed(torch.from_numpy(bits == 0))


def wait_until_known(constraints: Sequence[Constraint], seconds: float) -> None:
    """Wait until it is known what may come next for each of them, at most so long for all together."""
    wait([each._next for each in constraints], timeout=seconds)
