"""A few named threads for calls that block: the registry, the disk, the tokenizer. Each kind has its own, so that
slow calls of one kind do not hold up another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Threads:
    """`count` threads called `loraplex-<name>`; `close` waits for none of them."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix=f"loraplex-{name}")

    async def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking call on one of the threads and give back what it returns or raises."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(call, *args, **kwargs))

    def close(self) -> None:
        """Take no further calls; those that wait are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
