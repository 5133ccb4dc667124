"""Captured steps on a GPU: CUDA's own graphs in the place of the tape. Not yet run on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from basemodel.cuda.graphs import CudaGraphs
from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.engine.graphed_step import graph_sizes
from tests.engine.workbench import make_engine

pytestmark = pytest.mark.cuda
PROMPTS = ([3, 5, 7, 9, 11], [4, 6], [8], [9, 10, 11, 12, 13, 14, 15])


def test_captured_steps_are_near_computed_ones(llama: Snapshot, llama_adapters: list[Path]) -> None:
    """Not the same bits: bitsandbytes chooses its kernel by the number of rows, and padding adds to it."""
    engines = [make_engine(load_snapshot(llama, device="cuda"), device="cuda") for _ in range(2)]
    device = torch.device("cuda")
    engines[1].engine.runner.warm_up()
    engines[1].engine.runner.capture_steps(CudaGraphs(device), most_rows=4, memory_bytes=1 << 30)
    graphs = engines[1].engine.runner.graphs
    assert graphs is not None
    assert graphs.sizes == sorted(graph_sizes(4))
    for engine in engines:
        for index, prompt in enumerate(PROMPTS):
            engine.ask(f"r{index}", prompt, [None, *llama_adapters][index], max_tokens=3 + index)
        engine.run()
    assert graphs.replays >= 3
    for name, logits in engines[0].logits.items():
        torch.testing.assert_close(torch.stack(engines[1].logits[name]), torch.stack(logits), rtol=1e-3, atol=1e-3)
