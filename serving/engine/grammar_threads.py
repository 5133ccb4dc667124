"""The threads on which one tenant's grammars are worked on, beside the engine loop.

Each tenant has its own: a grammar that needs much work for each token slows the answers of its tenant, and nobody
else's. Nothing here keeps the interpreter from the loop: llguidance works without it, but for a token that is taken
alone (`LLMatcher.consume_token`), which a hostile grammar stretched to a second; so tokens go through `LLExecutor`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from llguidance import LLExecutor, LLMatcher

R = TypeVar("R")
THREADS = 2


class GrammarThreads:
    """Started with the first work. Any thread may use it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="loraplex-grammar")
        self._executor = LLExecutor(THREADS)

    def submit(self, work: Callable[[], R]) -> Future[R]:
        """Do this on one of the threads."""
        return self._pool.submit(work)

    def take_token(self, matcher: LLMatcher, token: int, idle: LLMatcher) -> None:
        """Move a matcher on by a token, without the interpreter. `idle` is another matcher that nobody uses meanwhile:
        the executor lets go of the interpreter for two matchers and more only.
        """
        self._executor.consume_token_par([(matcher, token), (idle, token)])

    def close(self) -> None:
        """Take no more work; what was taken is finished."""
        self._pool.shutdown(wait=False)
