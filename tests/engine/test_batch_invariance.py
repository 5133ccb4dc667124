"""On the CPU kernels a request's logits are the same bits whatever shares its batch and however its prompt was cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig

from basemodel.factor_layout import Factors, LoraPair, lay_out_all
from basemodel.kernels import library
from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.engine.build import warm_up
from serving.messages import EngineSettings
from tests.engine.workbench import FAMILIES, SMALL, Recorder, make_adapter, make_engine, make_snapshot, round_adapter

pytestmark = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
PROMPT = [3 + (11 * index) % 150 for index in range(45)]


@pytest.fixture(scope="module", params=["llama", "mistral", "gemma2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    config = FAMILIES[request.param].__class__(**FAMILIES[request.param].to_dict() | {"head_dim": 32})
    folder = tmp_path_factory.mktemp(f"bf16-{request.param}")
    return make_snapshot(config, folder, compute_dtype="bfloat16")


@pytest.fixture(scope="module")
def adapters(base: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The second one is on the grid of 8 bits."""
    folder = tmp_path_factory.mktemp("adapters")
    made = [
        make_adapter(base, folder / f"a{seed}", seed=seed, r=4 + 4 * seed, lora_alpha=8, target_modules="all-linear")
        for seed in range(3)
    ]
    round_adapter(made[1])
    return made


def logits_of(recorder: Recorder, name: str) -> torch.Tensor:
    return torch.stack(recorder.logits[name])


def test_neighbours_and_chunks_do_not_change_a_bit(base: Snapshot, adapters: list[Path]) -> None:
    alone = make_engine(load_snapshot(base))
    alone.ask("it", PROMPT, adapters[1], max_tokens=12)
    alone.run()
    expected = logits_of(alone, "it")
    assert torch.isfinite(expected).all()
    dice = random.Random(5)
    for budget in (512, 24, 7):
        crowd = make_engine(load_snapshot(base), step_budget_tokens=budget)
        for index in range(3):
            neighbour = [dice.randrange(3, 150) for _ in range(dice.randrange(1, 60))]
            crowd.ask(f"before{index}", neighbour, dice.choice([None, *adapters]), max_tokens=dice.randrange(1, 20))
        crowd.step()
        crowd.ask("it", PROMPT, adapters[1], max_tokens=12)
        for index in range(3):
            neighbour = [dice.randrange(3, 150) for _ in range(dice.randrange(1, 60))]
            crowd.ask(f"after{index}", neighbour, dice.choice([None, *adapters]), max_tokens=dice.randrange(1, 20))
        crowd.run()
        assert torch.equal(logits_of(crowd, "it"), expected), f"with a budget of {budget} tokens a step"


def test_a_cached_prefix_and_a_preemption_do_not_change_a_bit(base: Snapshot, adapters: list[Path]) -> None:
    recorder = make_engine(load_snapshot(base), kv_cache_tokens=96)
    recorder.ask("first", PROMPT, adapters[0], max_tokens=12)
    recorder.run()
    recorder.ask("second", PROMPT, adapters[0], max_tokens=12)
    recorder.ask("other", PROMPT[::-1], None, max_tokens=30)
    recorder.run()
    assert recorder.engine.scheduler.prefix_hits
    assert recorder.tokens["second"] == recorder.tokens["first"]
    by_length = logits_of(recorder, "second")[-12:]
    assert torch.equal(by_length, logits_of(recorder, "first"))


def test_adapters_that_come_and_go_do_not_change_a_bit(base: Snapshot, adapters: list[Path]) -> None:
    """Rows are computed from the memory into which their adapter was read: it stays, whoever else lets go of it."""
    logits = []
    for options in ({}, {"adapter_slots": 2, "host_cache_bytes": 1}):
        recorder = make_engine(load_snapshot(base), **options)
        for turn in range(3):
            for index, adapter in enumerate(adapters):
                recorder.ask(f"{turn}/{index}", PROMPT[turn:], adapter, max_tokens=4 + 5 * index)
        while recorder.engine.has_work:
            recorder.step()
            recorder.engine.pool.collect(list)  # host memory lets go of what waits for nobody
            torch.full((1 << 20,), torch.nan)  # memory that was let go is soon another's
        logits.append({name: torch.stack(rows) for name, rows in recorder.logits.items()})
    assert recorder.engine.pool.device.evictions
    assert logits[0].keys() == logits[1].keys()
    for name, expected in logits[0].items():
        assert torch.equal(logits[1][name], expected), name


def test_8_bits_give_the_logits_of_16(
    base: Snapshot, adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bit: alpha / r is a power of two here, so bfloat16 holds the scaled values too."""

    def in_16_bits(factors: Mapping[str, Factors]) -> tuple[dict[str, LoraPair], str | None]:
        pairs = {path: each.layout.lay_out_reference(each.a, each.b, each.scale) for path, each in factors.items()}
        return {path: pair for path, pair in pairs.items() if pair is not None}, None

    seen, held = [], []
    for lay_out in (lay_out_all, in_16_bits):
        monkeypatch.setattr("basemodel.adapter_weights.lay_out_all", lay_out)
        recorder = make_engine(load_snapshot(base))
        recorder.ask("it", PROMPT, adapters[1], max_tokens=12)
        recorder.ask("beside", PROMPT[3:], adapters[1], max_tokens=6)
        recorder.run()
        seen.append(logits_of(recorder, "it"))
        held.append(recorder.engine.runner.sites.factor_bytes)
    assert torch.equal(*seen)
    assert 0.5 * held[1] <= held[0] < 0.55 * held[1]


def test_the_same_seed_gives_the_same_text_under_load(base: Snapshot, adapters: list[Path]) -> None:
    texts = []
    for crowd_size in (0, 5):
        recorder = make_engine(load_snapshot(base))
        for index in range(crowd_size):
            recorder.ask(f"r{index}", PROMPT[index:], adapters[index % 3], max_tokens=20, temperature=1.0, seed=index)
        recorder.ask("it", PROMPT, adapters[2], max_tokens=20, temperature=1.0, seed=77)
        recorder.run()
        texts.append(recorder.tokens["it"])
    assert texts[0] == texts[1]


def test_everything_runs_on_the_kernels(base: Snapshot, adapters: list[Path]) -> None:
    """Were a width or a head size no longer one that the kernels take, the tests above would prove nothing."""
    recorder = make_engine(load_snapshot(base))
    recorder.ask("it", PROMPT, adapters[0], max_tokens=2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        recorder.run()
    names = {event.key for event in profile.key_averages()}
    used = ("attention_inputs", "paged_attention", "after_attention", "rms_norm", "bf16_linear")
    assert {f"loraplex::{name}" for name in used} <= names
    assert not names & {"aten::mm", "aten::addmm", "aten::bmm", "aten::scaled_dot_product_attention"}


def test_where_a_bit_may_change_the_log_says_so(
    base: Snapshot, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def is_said() -> bool:
        caplog.clear()
        warm_up(make_engine(load_snapshot(base)).engine, EngineSettings(socket="", base="", bases_folder=""))
        return "the last bits of a request's logits may change" in caplog.text

    assert not is_said()
    monkeypatch.setattr(library, "library_path", lambda: tmp_path / "not-built.so")
    has_cpu_kernels.cache_clear()
    try:
        assert is_said()
    finally:
        monkeypatch.undo()
        has_cpu_kernels.cache_clear()


def test_experts_are_not_the_kernels(tmp_path: Path) -> None:
    config = MixtralConfig(**SMALL | {"head_dim": 32}, num_local_experts=4, num_experts_per_tok=2)
    base = load_snapshot(make_snapshot(config, tmp_path, compute_dtype="bfloat16"))
    runner = make_engine(base).engine.runner
    runner.warm_up()
    assert runner.attention.is_on_cpu_kernels
    assert not runner.sites.copies
    assert not runner.is_on_cpu_kernels


def test_a_served_step_computes_all_layers_in_one_call(base: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each decoding step computes no layer by itself; Gemma 2, which is not walked, does."""
    recorder = make_engine(load_snapshot(base))
    recorder.engine.runner.warm_up()
    calls: dict[str, int] = {}

    def counted(name: str, operator: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            calls[name] = calls.get(name, 0) + 1
            return operator(*arguments)

        return call

    for name in ("decode", "attention_inputs", "after_attention"):
        monkeypatch.setattr(torch.ops.loraplex, name, counted(name, getattr(torch.ops.loraplex, name)))
    recorder.ask("it", PROMPT, max_tokens=5)
    recorder.run()
    is_walked = recorder.engine.runner.base.model.config.model_type != "gemma2"
    assert set(calls) == ({"decode"} if is_walked else {"attention_inputs", "after_attention"})
