"""What the engine promises: nobody waits for ever, nobody hurts a neighbour, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig

from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.engine.errors import UnsupportedModelError
from serving.messages import AdapterUse, Preload, encode
from tests.engine.workbench import (
    SMALL,
    Recorder,
    make_adapter,
    make_engine,
    make_snapshot,
    peft_logits,
    rewrite_config,
)

PROMPT = [5, 9, 20, 31, 7]
TOLERANCE = 2e-4  # float32: the order of sums, see test_parity.py
EngineMaker = Callable[..., Recorder]


def _use(path: Path) -> AdapterUse:
    return AdapterUse(digest=f"sha256:{path.name}", folder=str(path))


def _tokens_alone(llama: Snapshot, adapter: Path | None, prompt: list[int], **sampling: Any) -> list[int]:
    alone = make_engine(load_snapshot(llama))
    alone.ask("alone", prompt, adapter, **sampling)
    alone.run()
    return alone.tokens["alone"]


# ----------------------------------------------------------------------------------------------------- adapter pool
def test_more_adapters_than_slots_all_answer_rightly(
    engine: EngineMaker, llama: Snapshot, llama_adapters: list[Path]
) -> None:
    few = engine(adapter_slots=2)
    for index in range(18):
        few.ask(f"r{index}", [*PROMPT, index], llama_adapters[index % 6])
    few.run()
    assert few.engine.pool.device.evictions >= 4
    for index in (0, 4, 11, 17):
        expected = _tokens_alone(llama, llama_adapters[index % 6], [*PROMPT, index])
        assert few.tokens[f"r{index}"] == expected


def test_an_adapter_that_is_slow_to_load_holds_nobody_up(
    engine: EngineMaker, llama_adapters: list[Path], tmp_path: Path
) -> None:
    slow = tmp_path / "slow"
    shutil.copytree(llama_adapters[0], slow)
    config = (slow / "adapter_config.json").read_bytes()
    (slow / "adapter_config.json").unlink()
    os.mkfifo(slow / "adapter_config.json")  # reading it waits until somebody writes
    recorder = engine()
    recorder.ask("base", PROMPT)
    recorder.ask("slow", PROMPT, slow)
    recorder.ask("base too", PROMPT)
    for _ in range(8):
        recorder.step()
    assert recorder.last["base"].finish_reason == recorder.last["base too"].finish_reason == "length"
    assert "slow" not in recorder.last
    (slow / "adapter_config.json").write_bytes(config)
    recorder.run()
    assert recorder.last["slow"].finish_reason == "length"


def test_an_adapter_without_a_slot_is_not_starved_by_busy_ones(engine: EngineMaker, llama_adapters: list[Path]) -> None:
    """A stream of requests keeps the only slot busy; the one that waits must still come in within its patience."""
    recorder = engine(adapter_slots=1)
    recorder.ask("busy0", PROMPT, llama_adapters[0], max_tokens=20)
    recorder.step()
    while not recorder.engine.pool.resident_digests:
        recorder.step()
    recorder.ask("patient", PROMPT, llama_adapters[1])
    for index in range(1, 200):
        recorder.ask(f"busy{index}", PROMPT, llama_adapters[0], max_tokens=20)
        recorder.step()
        if "patient" in recorder.last:
            break
    assert "patient" in recorder.last, "starved"
    recorder.run()


def test_an_adapter_larger_than_the_pool_is_refused(engine: EngineMaker, llama: Snapshot, workshop: Path) -> None:
    large = make_adapter(llama, workshop / "large", seed=1, r=70, target_modules="all-linear")
    recorder = engine(adapter_slots=2)
    recorder.ask("large", PROMPT, large)
    recorder.ask("base", PROMPT)
    recorder.run()
    fault = recorder.last["large"].fault
    assert fault is not None
    assert fault.code == "adapter_rejected"
    assert "rank 70" in fault.message
    assert "--adapter-pool-mib" in fault.message
    assert recorder.last["base"].finish_reason == "length"


def test_a_preloaded_adapter_is_in_memory_before_the_first_request(
    engine: EngineMaker, llama_adapters: list[Path]
) -> None:
    recorder = engine()
    recorder.engine.preload(Preload(adapter=_use(llama_adapters[2])).adapter)
    while recorder.engine.pool.reading_digests:
        recorder.step()
    states = {state.digest: state.place for state in recorder.engine.stats().adapters}
    assert states == {"sha256:a2": "host"}
    assert recorder.engine.stats().host_bytes > 0


def test_the_host_cache_keeps_to_its_budget(engine: EngineMaker, llama_adapters: list[Path]) -> None:
    recorder = engine(adapter_slots=1, host_cache_bytes=1)
    for index, adapter in enumerate(llama_adapters):
        recorder.ask(f"r{index}", PROMPT, adapter)
    recorder.run()
    recorder.engine.pool.collect(list)
    assert recorder.engine.pool.host_digests == []
    assert all(output.finish_reason == "length" for output in recorder.last.values())


# ----------------------------------------------------------------------------------------------------- bad adapters
def _damaged(adapter: Path, folder: Path, damage: str) -> Path:
    shutil.copytree(adapter, folder)
    weights_file = folder / "adapter_model.safetensors"
    weights = load_file(weights_file)
    first = min(name for name in weights if "lora_A" in name)
    if damage == "truncated":
        weights_file.write_bytes(weights_file.read_bytes()[:-40])
        return folder
    if damage == "nan":
        weights[first][0, 0] = float("nan")
    elif damage == "shape":
        weights[first] = weights[first][:, :32].contiguous()
    elif damage == "half":
        del weights[first]
    elif damage == "unknown module":
        weights[first.replace("layers.0", "layers.9")] = weights.pop(first)
    elif damage == "config":
        rewrite_config(folder, lora_alpha="much")
    elif damage == "kind":
        rewrite_config(folder, use_dora=True)
    elif damage == "pattern":
        rewrite_config(folder, alpha_pattern={"(a+)+$": 4})
    elif damage == "missing":
        shutil.rmtree(folder)
        return folder
    save_file(weights, weights_file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "damage", ["truncated", "nan", "shape", "half", "unknown module", "config", "kind", "pattern", "missing"]
)
def test_a_bad_adapter_fails_its_own_requests_only(
    damage: str, engine: EngineMaker, llama_adapters: list[Path], tmp_path: Path
) -> None:
    quiet, disturbed = engine(), engine()
    for recorder in (quiet, disturbed):
        recorder.ask("neighbour", PROMPT, llama_adapters[1])
        recorder.ask("base", PROMPT)
    bad = _damaged(llama_adapters[0], tmp_path / "bad", damage)
    disturbed.ask("bad", PROMPT, bad)
    disturbed.ask("bad too", PROMPT, bad)
    quiet.run()
    disturbed.run()
    for name in ("bad", "bad too"):
        fault = disturbed.last[name].fault
        assert fault is not None
        assert fault.code == "adapter_rejected"
        assert str(tmp_path) not in fault.message, "a path of the server leaks"
    for name in ("neighbour", "base"):
        assert disturbed.tokens[name] == quiet.tokens[name]
    difference = torch.stack(disturbed.logits["base"]) - torch.stack(quiet.logits["base"])
    assert difference.abs().max() < TOLERANCE


def _write_probe(adapter: Path, logits: torch.Tensor, shift: float) -> None:
    best = logits.topk(8)
    probe = {
        "prompt_token_ids": PROMPT,
        "token_ids": best.indices.tolist(),
        "logits": [value + shift for value in best.values.tolist()],
    }
    (adapter / "loraplex.json").write_text(json.dumps({"schema": 1, "probes": [probe]}))


@pytest.mark.parametrize(("shift", "held"), [(0.0, True), (3.0, False)])
def test_probes_of_the_trainer_must_hold(
    shift: float, held: bool, engine: EngineMaker, llama: Snapshot, llama_adapters: list[Path], tmp_path: Path
) -> None:
    adapter = tmp_path / "probed"
    shutil.copytree(llama_adapters[0], adapter)
    _write_probe(adapter, peft_logits(llama, llama_adapters[0], PROMPT)[-1], shift)
    recorder = engine()
    recorder.ask("probed", PROMPT, adapter)
    recorder.ask("base", PROMPT)
    recorder.run()
    assert recorder.last["base"].finish_reason == "length"
    if held:
        assert recorder.last["probed"].finish_reason == "length"
    else:
        fault = recorder.last["probed"].fault
        assert fault is not None
        assert "recorded at training" in fault.message


def test_an_adapter_whose_output_overflows_fails_alone(
    engine: EngineMaker, llama_adapters: list[Path], tmp_path: Path
) -> None:
    """Every value is finite, their products are not: found when it runs, and its neighbours notice nothing."""
    wild = tmp_path / "wild"
    shutil.copytree(llama_adapters[0], wild)
    weights = {name: tensor.sign() * 1e30 for name, tensor in load_file(wild / "adapter_model.safetensors").items()}
    save_file(weights, wild / "adapter_model.safetensors", metadata={"format": "pt"})
    quiet, disturbed = engine(), engine()
    for recorder in (quiet, disturbed):
        recorder.ask("neighbour", PROMPT, llama_adapters[1], max_tokens=12)
    disturbed.ask("wild", PROMPT, wild, max_tokens=12)
    quiet.run()
    disturbed.run()
    fault = disturbed.last["wild"].fault
    assert fault is not None
    assert fault.code == "adapter_rejected"
    assert fault.message.startswith("with adapter sha256:wild the output for this prompt is not finite")
    assert disturbed.tokens["neighbour"] == quiet.tokens["neighbour"]


# ----------------------------------------------------------------------------------------------------- scheduling
def test_preemption_changes_no_token(engine: EngineMaker, llama_adapters: list[Path]) -> None:
    roomy, tight = engine(), engine(kv_cache_tokens=96, kv_block_tokens=4)
    for recorder in (roomy, tight):
        for index in range(6):
            recorder.ask(
                f"r{index}", [*PROMPT, index], llama_adapters[index % 3], max_tokens=40, temperature=0.8, seed=index
            )
        recorder.run()
    assert tight.engine.scheduler.preemptions > 0
    assert roomy.engine.scheduler.preemptions == 0
    assert tight.tokens == roomy.tokens


def test_an_aborted_request_frees_everything_at_once(engine: EngineMaker, llama_adapters: list[Path]) -> None:
    recorder = engine()
    recorder.ask("stays", PROMPT, llama_adapters[0], max_tokens=30)
    recorder.ask("leaves", PROMPT, llama_adapters[1], max_tokens=30)
    recorder.ask("queued", PROMPT, llama_adapters[1], max_tokens=30)
    while len(recorder.tokens.get("leaves", [])) < 3:
        recorder.step()
    used = recorder.engine.stats().kv_blocks_used
    recorder.engine.abort("leaves")
    recorder.engine.abort("queued")
    recorder.engine.abort("never came")
    recorder.engine.check_integrity()
    assert recorder.engine.stats().kv_blocks_used < used
    recorder.run()
    assert len(recorder.tokens["stays"]) == 30
    assert len(recorder.tokens["leaves"]) == 3
    assert recorder.engine.stats().kv_blocks_used == 0


def test_a_flood_of_one_tenant_does_not_hold_up_another(engine: EngineMaker) -> None:
    recorder = engine(max_running=2)
    for index in range(40):
        recorder.ask_many(f"flood{index}", PROMPT, (), tenant="flood", max_tokens=10)
    recorder.step()
    recorder.ask_many("modest", PROMPT, (), tenant="modest", max_tokens=3)
    for _ in range(15):  # the length of one flood request, and its own three tokens
        recorder.step()
    assert recorder.last["modest"].finish_reason == "length", "the flood was served first"
    recorder.run()


def test_a_long_prompt_does_not_stop_those_who_decode(engine: EngineMaker) -> None:
    recorder = engine(step_budget_tokens=16)
    recorder.ask("talks", PROMPT, max_tokens=30)
    recorder.step()
    recorder.ask("long", [3] * 100, max_tokens=2)
    for _ in range(7):
        before = len(recorder.tokens["talks"])
        recorder.step()
        assert len(recorder.tokens["talks"]) == before + 1
    recorder.run()


def test_the_time_in_the_queue_is_told_once(engine: EngineMaker) -> None:
    recorder = engine(max_running=1)
    recorder.ask("first", PROMPT, max_tokens=5)
    recorder.ask("second", PROMPT, max_tokens=5)
    told: dict[str, list[float]] = {"first": [], "second": []}
    begin = time.monotonic()
    while recorder.engine.has_work:
        for output in recorder.step():
            if output.queue_seconds is not None:
                told[output.request_id].append(output.queue_seconds)
    assert [len(values) for values in told.values()] == [1, 1]
    assert 0 <= told["first"][0] < told["second"][0] < time.monotonic() - begin + 0.01


# ----------------------------------------------------------------------------------------------------- how a text ends
def test_a_text_ends_at_end_tokens_stop_tokens_and_limits(engine: EngineMaker, llama: Snapshot) -> None:
    free = _tokens_alone(llama, None, PROMPT, max_tokens=6)
    recorder = engine()
    recorder.ask("stop", PROMPT, stop_token_ids=(free[2],))
    recorder.ask("bias", PROMPT, logit_bias={2: 1000.0}, ignore_eos=False)  # 2 is the end token
    recorder.ask("ignored", PROMPT, logit_bias={2: 1000.0}, max_tokens=4)
    recorder.ask("context", [4] * 120, max_tokens=1000)
    recorder.run()
    assert recorder.tokens["stop"] == free[: free.index(free[2])]
    assert recorder.last["stop"].stop_token_id == free[2]
    assert recorder.last["stop"].finish_reason == recorder.last["bias"].finish_reason == "stop"
    assert recorder.tokens["bias"] == []
    assert recorder.tokens["ignored"] == [2, 2, 2, 2]
    assert len(recorder.tokens["context"]) == 8
    assert recorder.last["context"].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "said"), [([], "empty"), ([4] * 128, "at most 127"), ([4, 192], "192"), ([-1], "vocabulary")]
)
def test_a_prompt_that_cannot_run_is_answered(prompt: list[int], said: str, engine: EngineMaker) -> None:
    recorder = engine()
    recorder.ask("bad", prompt)
    recorder.run()
    fault = recorder.last["bad"].fault
    assert fault is not None
    assert fault.code == "invalid_request"
    assert said in fault.message


def test_the_same_seed_gives_the_same_text_whoever_shares_the_batch(
    engine: EngineMaker, llama_adapters: list[Path]
) -> None:
    sampling: dict[str, Any] = {"temperature": 1.3, "max_tokens": 12}
    crowded, alone = engine(), engine()
    for index in range(5):
        crowded.ask(f"other{index}", [*PROMPT, index], llama_adapters[index], seed=index, **sampling)
    for recorder in (crowded, alone):
        recorder.ask("seeded", PROMPT, llama_adapters[0], seed=42, **sampling)
        recorder.ask("other seed", PROMPT, llama_adapters[0], seed=43, **sampling)
        recorder.run()
    assert crowded.tokens["seeded"] == alone.tokens["seeded"]
    assert alone.tokens["seeded"] != alone.tokens["other seed"]


def test_stats_can_be_sent_and_add_up(engine: EngineMaker, llama_adapters: list[Path]) -> None:
    recorder = engine()
    recorder.ask("a", PROMPT, llama_adapters[0])
    recorder.ask("b", PROMPT)
    recorder.run()
    stats = recorder.engine.stats()
    assert encode(stats)
    assert (stats.prompt_tokens, stats.generation_tokens) == (10, 12)
    assert (stats.running, stats.waiting, stats.slots_used, stats.adapter_loads) == (0, 0, 1, 1)
    assert stats.slot_bytes > 0


def test_a_model_whose_attention_is_not_known_is_refused_at_the_start(workshop: Path) -> None:
    config = GptOssConfig(**(SMALL | {"num_local_experts": 2, "num_experts_per_tok": 1}))
    snapshot = make_snapshot(config, workshop / "gptoss", mode="fp32", compute_dtype=None)
    with pytest.raises(UnsupportedModelError, match="s_aux"):
        make_engine(load_snapshot(snapshot)).engine.runner.warm_up()
