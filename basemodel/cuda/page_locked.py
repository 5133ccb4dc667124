"""Tensors in page-locked memory, from which a GPU copies without the processor.

It does: copy tensors side by side into a few page-locked chunks.
It does not: copy to a device (`attach`), or free: torch keeps what a copy still reads.
"""

from __future__ import annotations

import torch

CHUNK_BYTES = 8 * 1024 * 1024
"""A power of two: torch rounds every page-locked allocation up to one."""
ALIGNMENT_BYTES = 16


class PageLocked:
    """Chunks that are filled one after the other. `is_pinned` False: plain memory, for a machine without a GPU."""

    def __init__(self, *, is_pinned: bool = True) -> None:
        self._is_pinned = is_pinned
        self._left = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values, contiguous."""
        if len(self._left) < tensor.nbytes:
            size = max(CHUNK_BYTES, tensor.nbytes)
            self._left = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_pinned)
        taken = self._left[: tensor.nbytes]
        self._left = self._left[-(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES :]
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)
