"""What is served equals what was trained, and batched equals alone: the spine.

Reference: transformers and PEFT on the same quantized snapshot. With float32 compute the only differences are the order
of sums, so the tolerance is tight; `test_the_tolerance_catches...` shows that it is tight enough.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.messages import AdapterUse
from tests.engine.workbench import (
    ADAPTERS,
    FAMILIES,
    Recorder,
    make_adapter,
    make_engine,
    make_snapshot,
    peft_logits,
)

TOLERANCE = 2e-4
PROMPTS = [
    [5, 9, 20, 31, 7, 100, 44, 3, 17],
    [8, 8, 150],
    [60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72],
    [11],
    [90, 4],
]


def _adapters(snapshot: Snapshot, folder: Path) -> dict[str, Path | None]:
    made: dict[str, Path | None] = {"none": None}
    for seed, (name, settings) in enumerate(ADAPTERS.items()):
        made[name] = make_adapter(snapshot, folder / name, seed=seed, **settings)
    return made


def _mixed(recorder: Recorder, adapters: dict[str, Path | None]) -> Recorder:
    for prompt, (name, adapter) in zip(PROMPTS, adapters.items(), strict=True):
        recorder.ask(name, prompt, adapter)
    recorder.run()
    return recorder


def _assert_equals_peft(snapshot: Snapshot, recorder: Recorder, adapters: dict[str, Path | None], tolerance: float):
    for prompt, (name, adapter) in zip(PROMPTS, adapters.items(), strict=True):
        generated = recorder.tokens[name]
        expected = peft_logits(snapshot, adapter, [*prompt, *generated[:-1]])[len(prompt) - 1 :]
        assert (torch.stack(recorder.logits[name]) - expected).abs().max() < tolerance, name
        assert expected.argmax(-1).tolist() == generated, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_peft_and_each_row_alone(family: str, workshop: Path) -> None:
    folder = workshop / f"family-{family}"
    snapshot = make_snapshot(FAMILIES[family], folder)
    adapters = _adapters(snapshot, folder)
    mixed = _mixed(make_engine(load_snapshot(snapshot)), adapters)
    _assert_equals_peft(snapshot, mixed, adapters, TOLERANCE)
    alone = make_engine(load_snapshot(snapshot))
    for prompt, (name, adapter) in zip(PROMPTS, adapters.items(), strict=True):
        alone.ask(name, prompt, adapter)
        alone.run()
        assert (torch.stack(mixed.logits[name]) - torch.stack(alone.logits[name])).abs().max() < TOLERANCE
        assert mixed.tokens[name] == alone.tokens[name]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_unquantized_base_equals_peft(family: str, workshop: Path) -> None:
    folder = workshop / f"plain-{family}"
    snapshot = make_snapshot(FAMILIES[family], folder, mode="fp32", compute_dtype=None)
    adapters = _adapters(snapshot, folder)
    _assert_equals_peft(snapshot, _mixed(make_engine(load_snapshot(snapshot)), adapters), adapters, TOLERANCE)


def test_bfloat16_serves_what_peft_computes_up_to_its_rounding(workshop: Path) -> None:
    """Each is off by 1% or more, in its own way (test_exactness.py): 1.6% apart at the most, as measured."""
    folder = workshop / "bf16"
    snapshot = make_snapshot(FAMILIES["llama"], folder, compute_dtype="bfloat16")
    adapters = _adapters(snapshot, folder)
    recorder = _mixed(make_engine(load_snapshot(snapshot)), adapters)
    for prompt, (name, adapter) in zip(PROMPTS, adapters.items(), strict=True):
        expected = peft_logits(snapshot, adapter, [*prompt, *recorder.tokens[name][:-1]])[len(prompt) - 1 :]
        found = torch.stack(recorder.logits[name])
        assert (found - expected).norm() / expected.norm() < 0.02, name


def test_prompts_read_in_chunks_equal_prompts_read_at_once(llama: Snapshot, llama_adapters: list[Path]) -> None:
    long = [(7 * index) % 190 for index in range(90)]
    whole, chunked = make_engine(load_snapshot(llama)), make_engine(load_snapshot(llama), step_budget_tokens=17)
    for recorder in (whole, chunked):
        recorder.ask("long", long, llama_adapters[0])
        recorder.ask("short", [4, 5], llama_adapters[1])
        recorder.run()
    for name in ("long", "short"):
        torch.testing.assert_close(
            torch.stack(whole.logits[name]), torch.stack(chunked.logits[name]), atol=TOLERANCE, rtol=0
        )
        assert whole.tokens[name] == chunked.tokens[name]


def test_weighted_adapters_equal_the_sum_of_their_deltas(llama: Snapshot, llama_adapters: list[Path]) -> None:
    uses = tuple(
        AdapterUse(digest=f"sha256:{path.name}", folder=str(path), weight=weight)
        for path, weight in zip(llama_adapters[:2], (0.7, -0.2), strict=True)
    )
    recorder = make_engine(load_snapshot(llama))
    recorder.ask_many("ensemble", PROMPTS[0], uses)
    recorder.ask("plain", PROMPTS[0], llama_adapters[0])
    recorder.run()
    model = PeftModel.from_pretrained(load_snapshot(llama).model, llama_adapters[0], adapter_name="a0")
    model.load_adapter(llama_adapters[1], adapter_name="a1")
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict) and "a1" in module.scaling:
            module.scaling["a0"] *= 0.7
            module.scaling["a1"] *= -0.2
    model.base_model.set_adapter(["a0", "a1"])
    with torch.no_grad():
        expected = model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    torch.testing.assert_close(recorder.logits["ensemble"][0], expected, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(recorder.logits["plain"][0], expected, atol=0.05)


@pytest.mark.parametrize("damage", ["scale", "module"])
def test_the_tolerance_catches_a_wrong_scale_and_a_missed_module(
    damage: str, llama: Snapshot, llama_adapters: list[Path], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(llama_adapters[0], wrong)
    weights = load_file(wrong / "adapter_model.safetensors")
    for name in weights:
        if damage == "scale" and "lora_B" in name:
            weights[name] *= 1.02  # one adapter's alpha off by two percent
        if damage == "module" and "layers.1.self_attn.v_proj.lora_B" in name:
            weights[name].zero_()
    save_file(weights, wrong / "adapter_model.safetensors", metadata={"format": "pt"})
    recorder = make_engine(load_snapshot(llama))
    recorder.ask("wrong", PROMPTS[0], wrong, max_tokens=1)
    recorder.run()
    expected = peft_logits(llama, llama_adapters[0], PROMPTS[0])[-1]
    assert (recorder.logits["wrong"][0] - expected).abs().max() > 10 * TOLERANCE
