"""Captured decode steps equal computed ones, bit for bit, whoever joins and leaves; and what does not fit is computed.

Without a GPU: Triton's interpreter, and a tape in the place of a graph (`tape`). The base's products are computed row
by row here, because torch's own choose another order of sums for another number of rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from basemodel.load import load_snapshot
from basemodel.lora_ops import ChangedTokens
from basemodel.snapshot import Snapshot
from serving.engine import batch, runner, step_plans
from serving.engine.graphed_step import GraphedSteps, GraphLimits, GraphSize, graph_sizes
from serving.engine.request import Request, Row
from serving.engine.step_tables import StepTables
from serving.messages import AdapterUse, Sampling
from tests.engine.tape import TapeBackend
from tests.engine.workbench import SMALL, Recorder, make_adapter, make_engine, make_snapshot

pytest.importorskip("triton")
MOST_ROWS = 3
SCRATCH = 40
ENOUGH = 1 << 30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A Llama whose q, k and v can be joined."""
    return make_snapshot(
        LlamaConfig(**(SMALL | {"head_dim": 32, "num_hidden_layers": 1})), tmp_path_factory.mktemp("wide")
    )


@pytest.fixture(scope="module")
def adapters(base: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> list[Path | None]:
    folder = tmp_path_factory.mktemp("adapters")
    targets = ["all-linear", "attention", "all-linear"]
    made = [
        make_adapter(base, folder / f"a{seed}", seed=seed, r=4 + 14 * seed, lora_alpha=8, target_modules=target)
        for seed, target in enumerate(targets)
    ]
    return [None, *made]


@pytest.fixture(autouse=True)
def _gpu_path(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (step_plans, runner):
        monkeypatch.setattr(module, "has_gpu_kernels", lambda device: True)
    monkeypatch.setattr(batch, "has_cpu_kernels", lambda: False)

    def by_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        out = (x.unsqueeze(-2) * weight).sum(-1)
        return out if bias is None else out + bias

    monkeypatch.setattr(torch.nn.functional, "linear", by_rows)


def make(base: Snapshot, **settings: Any) -> Recorder:
    return make_engine(load_snapshot(base), **({"max_running": MOST_ROWS, "kv_cache_tokens": 256} | settings))


def capture(engine: Recorder, backend: TapeBackend, memory_bytes: int = ENOUGH) -> GraphedSteps:
    engine.engine.runner.capture_steps(backend, most_rows=MOST_ROWS, memory_bytes=memory_bytes)
    found = engine.engine.runner.graphs
    assert found is not None
    return found


def play(engine: Recorder, adapters: list[Path | None], seed: int) -> None:
    """Requests that come, go on for a while, and end or are aborted; the same ones for the same seed."""
    chance = random.Random(seed)
    for number in range(6):
        prompt = [chance.randrange(3, 190) for _ in range(chance.choice([1, 2, 5, 18]))]
        engine.ask(f"r{number}", prompt, chance.choice(adapters), max_tokens=chance.randrange(2, 8))
        for _ in range(chance.randrange(3)):
            engine.step()
        if chance.random() < 0.2:
            engine.engine.abort(f"r{number}")
    engine.run()


@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.long)])
def test_captured_steps_equal_computed_ones(
    base: Snapshot, adapters: list[Path | None], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    eager, graphed = make(base), make(base)
    graphs = capture(graphed, TapeBackend(monkeypatch))
    assert graphs.sizes == sorted(graph_sizes(MOST_ROWS))
    for engine in (eager, graphed):
        preload(engine, adapters)
        play(engine, adapters, seed)
    assert graphs.replays >= 8
    assert graphed.tokens == eager.tokens
    for name, logits in eager.logits.items():
        assert torch.equal(torch.stack(graphed.logits[name]), torch.stack(logits)), name


def test_steps_that_do_not_fit_are_computed(base: Snapshot, adapters: list[Path | None]) -> None:
    graphs = fake(lambda batch: batch.input_ids[0][:, None].float())
    graphs.capture()
    one, two = decoding(1), decoding(2)
    assert graphs.size_for(one) == GraphSize(1, 0)
    assert graphs.size_for(two) == GraphSize(2, 0)
    assert graphs.size_for(decoding(MOST_ROWS + 1)) is None
    assert graphs.size_for(replace(one, ids=np.array([1, 2]))) is None, "a prompt is read"
    assert graphs.size_for(replace(one, starts=frozenset([7]))) is None, "a layer without rank rows is touched"
    assert graphs.size_for(replace(one, blocks=np.zeros(100, dtype=np.int32))) is None, "a text is too long"
    changed = ChangedTokens(((slice(0, 1), 0),), frozenset([0]), torch.zeros(1, dtype=torch.int32))
    assert graphs.size_for(replace(one, changed=changed)) is None


def test_what_is_not_the_step_s_own_is_padding() -> None:
    seen = []
    graphs = fake(
        lambda batch: torch.stack([batch.input_ids[0], batch.positions[0], batch.attention.write_slots], 1) * 1.0
    )
    graphs.capture()
    step = decoding(3, ids=[5, 6, 7], positions=[1, 2, 3])
    for wanted in ([0, 1, 2], [0, 2]):
        _, logits = graphs.run(replace(step, wanted=np.array(wanted)), GraphSize(3, 0))
        seen.append(logits[:, :2].tolist())
    assert seen == [[[5, 1], [6, 2], [7, 3]], [[5, 1], [7, 3]]]
    one = decoding(1, ids=[9], positions=[4])
    graphs.run(one, GraphSize(3, 0))
    assert graphs._logits is not None
    assert graphs._logits[1:].tolist() == [[0, 0, SCRATCH]] * 2


def test_memory_is_bounded_and_the_smallest_steps_are_captured_first() -> None:
    graphs = fake(lambda batch: batch.input_ids[0][:, None].float(), bytes_each=10, memory_bytes=25)
    graphs.capture()
    assert graphs.sizes == [GraphSize(1, 0), GraphSize(1, 1), GraphSize(1, 2)]


def test_a_model_that_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    graphs = fake(lambda batch: batch.input_ids[0][:, None] * float(batch.positions.max()))
    graphs.capture()
    assert graphs.sizes == []
    assert "cannot be captured" in caplog.text


def fake(forward: Any, *, bytes_each: int = 0, memory_bytes: int = ENOUGH) -> GraphedSteps:
    """Captured steps of a model that is one function; adapters whose rank rows begin at 7 touch a bare layer."""
    limits = GraphLimits(MOST_ROWS, block_tokens=4, blocks_per_row=3, scratch_slot=SCRATCH, memory_bytes=memory_bytes)
    backend = TapeBackend(pytest.MonkeyPatch(), bytes_each=bytes_each)
    return GraphedSteps(forward, backend, limits, torch.device("cpu"), covers=frozenset([7]).isdisjoint)


def decoding(rows: int, ids: Sequence[int] = (), positions: Sequence[int] = ()) -> StepTables:
    """A step of rows that decode, without adapters."""
    request = Request("r", "", [1], Sampling(max_tokens=1), (), arrival=0)
    return StepTables(
        rows=(Row(request, 1),) * rows,
        sampled=(Row(request, 1),) * rows,
        ids=np.array(ids or range(rows)),
        positions=np.array(positions or range(rows)),
        write_slots=np.arange(rows),
        wanted=np.arange(rows),
        attention=np.zeros((rows, 4), dtype=np.int32),
        blocks=np.arange(rows, dtype=np.int32),
        lora=None,
        head=None,
        starts=frozenset(),
        changed=None,
        changed_head=None,
    )


def preload(engine: Recorder, adapters: list[Path | None]) -> None:
    """Read all adapters: what is read before or after a step is not the same in two runs."""
    uses = [AdapterUse(digest=f"sha256:{folder.name}", folder=str(folder)) for folder in adapters if folder]
    for use in uses:
        engine.engine.preload(use)
    engine.run()
    assert all(engine.engine.pool.is_loaded(use.digest) for use in uses)
