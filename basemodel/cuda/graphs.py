"""CUDA graphs: work that was launched once, launched again as one thing.

It does: capture what a function does on the device, in one pool of memory for all graphs of an object.
It does not: know what is captured, or keep its inputs (`serving.engine.graphed_step`).
Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

WARM_UPS = 2
"""Runs before a capture: Triton compiles in the first, and libraries take their workspaces; nothing may do so later."""


class CudaGraphs:
    """Graphs that are never replayed at the same time, so that they share the memory of what they compute between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._free_bytes: int | None = None  # before the first capture

    @property
    def taken_bytes(self) -> int:
        """Device memory that was taken since the first capture began."""
        if self._free_bytes is None:
            return 0
        return self._free_bytes - torch.cuda.mem_get_info(self._device)[0]

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A function that does on the device what `work` did. Raises RuntimeError, torch.OutOfMemoryError.

        Other threads may go on: what they do to the device is not part of the graph.
        """
        if self._free_bytes is None:
            self._free_bytes = torch.cuda.mem_get_info(self._device)[0]
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay
