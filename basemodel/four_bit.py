"""The one door to bitsandbytes.

It does: import bitsandbytes without letting it fetch anything, and name what is used of it; nobody else imports it.
It does not: compute. On CPUs with AVX512-BF16 bitsandbytes asks the `kernels` package, where that is installed, for a
kernel from the Hub while it is imported. Nothing is fetched here that the user did not ask for, so `kernels` is hidden
for the length of that import, together with the warning that it is missing.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _no_hub_kernels() -> Iterator[None]:
    missing = object()
    before = sys.modules.get("kernels", missing)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # makes `import kernels` an ImportError
    logger = logging.getLogger("bitsandbytes")
    loggers = [logger, logging.getLogger("bitsandbytes.backends.cpu.ops")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        if before is missing:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = before  # type: ignore[assignment]


with _no_hub_kernels():
    from bitsandbytes import functional
    from bitsandbytes.autograd._functions import matmul_4bit
    from bitsandbytes.nn.modules import Linear4bit

__all__ = ["Linear4bit", "functional", "matmul_4bit"]
