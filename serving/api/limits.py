"""What is let in: how many sequences may be in the server, and how long a prompt may be.

It does: count sequences (a request with n answers counts n) in total and per tenant, and refuse at once when full.
It does not: order those that wait (the engine's scheduler does).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serving.errors import ContextExceededError, InvalidFieldError, QueueFullError
from serving.served_base import ServedBase
from serving.settings import LimitSettings

FIRST_ESTIMATE_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60
MEMORY = 0.9
MARGIN = 4


class Gate:
    """Counts what is inside. Mutable; used on one event loop.

    At most `max_running` + `max_waiting` sequences are inside, and of one tenant `max_running` +
    `max_waiting_per_tenant`, so that no tenant fills the queue alone.
    """

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._inside: Counter[str | None] = Counter()
        self._empty = asyncio.Event()
        self._empty.set()
        self._seconds_each = FIRST_ESTIMATE_SECONDS

    @property
    def inside(self) -> int:
        """Sequences that run or wait."""
        return self._inside.total()

    @contextmanager
    def admit(self, tenant: str | None, sequences: int, *, max_running: int) -> Iterator[None]:
        """Let the sequences in while the block runs; None is the operator, who has no share of his own.

        Raises QueueFullError, and InvalidFieldError for more sequences than ever fit.
        """
        share = self._limits.max_waiting if tenant is None else self._limits.max_waiting_per_tenant
        if sequences > max_running + share:
            raise InvalidFieldError(
                f"The request asks for {sequences} answers at once; this server takes at most {max_running + share}.",
                param="n",
            )
        self._refuse_beyond("queue", self.inside + sequences, max_running, self._limits.max_waiting)
        own = self._inside[tenant] + sequences
        self._refuse_beyond("queue of your tenant", own, max_running, share)
        self._inside[tenant] += sequences
        self._empty.clear()
        try:
            yield
        finally:
            self._inside[tenant] -= sequences
            if not self._inside[tenant]:
                del self._inside[tenant]
            if not self._inside:
                self._empty.set()

    async def wait_empty(self) -> None:
        """Return when nothing is inside."""
        await self._empty.wait()

    def learn(self, seconds: float) -> None:
        """Remember how long a request took, for the advice when to try again."""
        self._seconds_each = MEMORY * self._seconds_each + (1 - MEMORY) * seconds

    def check_integrity(self) -> None:
        """No tenant is counted below one."""
        assert all(count > 0 for count in self._inside.values()), self._inside

    def _refuse_beyond(self, scope: str, wanted: int, max_running: int, max_waiting: int) -> None:
        if wanted > max_running + max_waiting:
            seconds = math.ceil(self._seconds_each * max(1, self.inside) / max(1, max_running))
            raise QueueFullError(
                scope=scope, limit=max_running + max_waiting, retry_after_seconds=min(seconds, LONGEST_RETRY_SECONDS)
            )


def refuse_hopeless(characters: int, base: ServedBase, *, param: str) -> None:
    """Refuse a text that is far beyond the context without tokenizing it, which would take seconds.

    No token stands for more characters than the longest of the vocabulary; MARGIN allows for normalization.
    Raises ContextExceededError with the least number of tokens that it can have.
    """
    least_tokens = characters // (base.tokenization.longest_token_characters * MARGIN)
    if least_tokens > base.context_tokens:
        raise ContextExceededError(
            context_tokens=base.context_tokens, prompt_tokens=least_tokens, answer_tokens=1, param=param
        )


def answer_tokens(
    wanted: int | None, *, prompt_tokens: int, context_tokens: int, default: int | None, param: str
) -> int:
    """How many tokens the answer may have: what was asked for, else `default`, else what the context leaves.

    Raises ContextExceededError.
    """
    room = context_tokens - prompt_tokens
    if wanted is None:
        wanted = room if default is None else min(default, room)
    if wanted > room or room < 1:
        raise ContextExceededError(
            context_tokens=context_tokens, prompt_tokens=prompt_tokens, answer_tokens=max(wanted, 1), param=param
        )
    return wanted
