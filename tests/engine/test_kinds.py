"""Every kind of adapter that PEFT makes is served as PEFT computes it, in one batch with all others.

Each adapter is made and saved by PEFT over the quantized base, with random weights; the reference is PEFT's forward.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers.pytorch_utils import Conv1D

import registry
from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.messages import AdapterUse
from tests.engine.workbench import FAMILIES, VOCABULARY, Recorder, make_adapter, make_engine, make_snapshot

TOLERANCE = 2e-4
ADDED = 3
PROMPT = [5, 9, 20, 31, 7, 100, 44, 3, 17]
Kind = dict[str, Any]
ATTENTION = ["q_proj", "v_proj"]
KINDS: dict[str, Kind] = {
    "dora": {"use_dora": True, "target_modules": "all-linear"},
    "dora-rslora": {"use_dora": True, "use_rslora": True, "r": 3, "target_modules": ATTENTION},
    "lora-bias": {"lora_bias": True, "target_modules": ATTENTION},
    "bias-all": {"bias": "all", "target_modules": ATTENTION},
    "bias-lora-only": {"bias": "lora_only", "use_dora": True, "target_modules": ATTENTION},
    "norms": {"modules_to_save": ["norm", "input_layernorm"], "target_modules": ATTENTION},
    "head": {"modules_to_save": ["lm_head"], "target_modules": ATTENTION},
    "embedding-and-head": {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ATTENTION},
    "embedding": {"modules_to_save": ["embed_tokens"], "target_modules": ATTENTION},
    "lora-embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "dora-embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "embedding-alone": {"target_modules": ["embed_tokens"]},
    "lora-head": {"target_modules": ["lm_head", "q_proj"]},
    "dora-head": {"target_modules": ["lm_head"], "use_dora": True},
    "tokens": {"trainable_token_indices": [17, 5, 100], "target_modules": ATTENTION},
    "added-tokens": {"trainable_token_indices": [5, VOCABULARY, VOCABULARY + 1, VOCABULARY + 2], "added": ADDED},
    "added-whole": {"modules_to_save": ["embed_tokens", "lm_head"], "added": ADDED},
    "added-along": {"added": ADDED},
    "patterns": {"rank_pattern": {"q_proj": 7}, "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 31}},
}  # fmt: skip
# What the families call the modules.
NAMES = {
    "gpt2": {
        "q_proj": "c_attn",
        "v_proj": "c_fc",
        "embed_tokens": "wte",
        "norm": "ln_f",
        "input_layernorm": "ln_1",
        "^model.layers.0.self_attn.q_proj": "^transformer.h.0.attn.c_attn",
    }
}


SCALED = {"embedding", "lora-embedding", "dora-embedding", "tokens", "added-tokens"}
IN_BITS = {
    "llama": {
        "dora",
        "lora-bias",
        "norms",
        "embedding-and-head",
        "lora-embedding",
        "lora-head",
        "tokens",
        "added-tokens",
    },
    "qwen3": {"dora", "added-whole"},
}


def renamed(value: Any, family: str) -> Any:
    names = NAMES.get(family, {})
    if isinstance(value, list):
        return [renamed(each, family) for each in value]
    if isinstance(value, dict):
        return {names.get(key, key): each for key, each in value.items()}
    return names.get(value, value) if isinstance(value, str) else value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """PEFT advises against some of what is tried here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def grown(snapshot: Snapshot, added: int) -> Any:
    model = load_snapshot(snapshot).model
    if added:
        torch.manual_seed(11)  # the new rows are random: the same ones wherever the model is grown
        model.resize_token_embeddings(model.config.vocab_size + added, mean_resizing=False)
    return model


def make_kind(snapshot: Snapshot, folder: Path, seed: int, *, added: int = 0, **settings: Any) -> Path:
    """An adapter whose every trained parameter is moved at random."""
    model = grown(snapshot, added)
    if any(isinstance(module, Conv1D) for module in model.modules()):
        settings["fan_in_fan_out"] = True
    options = {"r": 4, "lora_alpha": 8, "target_modules": renamed(ATTENTION, model.config.model_type)} | settings
    with quiet():
        wrapped = get_peft_model(model, LoraConfig(**options, task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                if "magnitude" in name:
                    parameter *= 1 + 0.2 * torch.randn_like(parameter)
                else:
                    parameter += 0.1 * torch.randn_like(parameter)
    with quiet():
        wrapped.save_pretrained(folder)
    return folder


def expected_logits(snapshot: Snapshot, adapter: Path | None, tokens: list[int], added: int = 0) -> torch.Tensor:
    model = grown(snapshot, added)
    if adapter is not None:
        with quiet():
            model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def made_kinds(
    snapshot: Snapshot, family: str, folder: Path, kinds: Collection[str] = ()
) -> dict[str, tuple[Path | None, int]]:
    made: dict[str, tuple[Path | None, int]] = {"none": (None, 0)}
    plain = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    made["plain"] = make_adapter(snapshot, folder / "plain", seed=3, **plain), 0
    for seed, (name, kind) in enumerate(KINDS.items()):
        if name not in kinds:
            continue
        options = {key: renamed(value, family) for key, value in kind.items()}
        made[name] = make_kind(snapshot, folder / name, seed, **options), int(kind.get("added", 0))
    return made


def ask_all(recorder: Recorder, made: dict[str, tuple[Path | None, int]]) -> Recorder:
    for name, (adapter, added) in made.items():
        recorder.ask(name, [*PROMPT, *range(VOCABULARY, VOCABULARY + added)], adapter)
    recorder.run()
    return recorder


def room(made: dict[str, tuple[Path | None, int]]) -> dict[str, int]:
    return {"adapter_slots": len(made), "max_running": 64, "adapter_whole_bytes": 10_000_000}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma"])
def test_each_kind_equals_peft_in_one_batch(family: str, tmp_path: Path) -> None:
    """Untied and tied heads, biases, transposed weights and scaled embeddings; and the registry takes each of them."""
    snapshot = make_snapshot(FAMILIES[family], tmp_path)
    made = made_kinds(snapshot, family, tmp_path, KINDS if family != "gemma" else SCALED)
    recorder = ask_all(make_engine(load_snapshot(snapshot), **room(made)), made)
    differences = {}
    for name, (adapter, added) in made.items():
        assert recorder.last[name].fault is None, (name, recorder.last[name].fault)
        generated = recorder.tokens[name]
        asked = [*PROMPT, *range(VOCABULARY, VOCABULARY + added)]
        expected = expected_logits(snapshot, adapter, [*asked, *generated[:-1]], added)[len(asked) - 1 :]
        found = torch.stack([row[: expected.shape[1]] for row in recorder.logits[name]])
        differences[name] = float((found - expected).abs().max())
    assert max(differences.values()) < TOLERANCE, differences
    with registry.open(tmp_path / "registry") as opened:
        base = opened.register_base(snapshot.description.to_json())
        for name, (adapter, added) in made.items():
            if adapter is None:
                continue
            version = opened.publish(
                adapter, "acme/kind", principal=registry.Principal.operator(), base_fingerprint=base.fingerprint
            )
            assert version.serving is not None
            needs, nature = version.serving.loraplex.needs, recorder.engine.pool.nature(f"sha256:{name}")
            assert needs.get("vocabulary", VOCABULARY) == VOCABULARY + added == nature.vocabulary_size
            kinds = set(str(needs.get("kinds", "")).split())
            assert bool(kinds) == bool(nature.kinds), name
            assert set(nature.kinds) - kinds <= {"modules_to_save"}, name  # a table saved along: by its values alone


@pytest.mark.skipif(not has_cpu_kernels(), reason="the kernels need a C++ compiler, AVX512-BF16 and AMX")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_on_the_kernels_nobody_changes_a_bit_of_a_neighbour(family: str, tmp_path: Path) -> None:
    """Each kind equals PEFT up to bfloat16's rounding, and every row of the batch is what it is alone, by the bit."""
    config = FAMILIES[family].__class__(**FAMILIES[family].to_dict() | {"head_dim": 32})
    snapshot = make_snapshot(config, tmp_path, compute_dtype="bfloat16")
    made = made_kinds(snapshot, family, tmp_path, IN_BITS[family])
    if family == "qwen3":
        saved = make_kind(snapshot, tmp_path / "head-norms", 40, modules_to_save=["q_norm", "k_norm"])
        made["head-norms"] = saved, 0
    crowd = ask_all(make_engine(load_snapshot(snapshot), **room(made), step_budget_tokens=31), made)
    alone = make_engine(load_snapshot(snapshot), **room(made))
    for name, (adapter, added) in made.items():
        asked = [*PROMPT, *range(VOCABULARY, VOCABULARY + added)]
        alone.ask(name, asked, adapter)
        alone.run()
        width = crowd.engine.pool.nature(f"sha256:{name}").head_size if adapter else VOCABULARY
        rows = [torch.stack([row[:width] for row in each.logits[name]]) for each in (crowd, alone)]
        assert torch.equal(*rows), name
        assert crowd.tokens[name] == alone.tokens[name]
        expected = expected_logits(snapshot, adapter, [*asked, *crowd.tokens[name][:-1]], added)[len(asked) - 1 :]
        assert (rows[0] - expected).norm() / expected.norm() < 0.025, name


def test_added_tokens_are_for_their_adapter_alone(llama: Snapshot, tmp_path: Path) -> None:
    adapter = make_kind(llama, tmp_path / "added", 1, **KINDS["added-whole"])
    recorder = make_engine(load_snapshot(llama))
    new = VOCABULARY + 1
    bias = {new: 100.0}
    recorder.ask("own", [5, new], adapter, logit_bias=bias, logprobs=2)
    recorder.ask("base", [5, 6], None)
    recorder.ask("base-new", [5, new], None)
    recorder.ask("base-bias", [5, 6], None, logit_bias=bias)
    recorder.ask("beyond", [5, VOCABULARY + ADDED], adapter)
    recorder.run()
    assert set(recorder.tokens["own"]) == {new}
    assert recorder.last["own"].finish_reason == "length"
    assert max(recorder.tokens["base"]) < VOCABULARY
    for name in ("base-new", "base-bias"):
        fault = recorder.last[name].fault
        assert fault is not None
        assert fault.code == "invalid_request"
        assert f"the vocabulary of {VOCABULARY} tokens" in fault.message
    fault = recorder.last["beyond"].fault
    assert fault is not None
    assert f"the vocabulary of {VOCABULARY + ADDED} tokens" in fault.message


@pytest.mark.parametrize("kind", ["dora", "norms", "lora-bias"])
def test_what_is_not_a_sum_of_factors_is_neither_weighted_nor_combined(
    kind: str, llama: Snapshot, llama_adapters: list[Path], tmp_path: Path
) -> None:
    adapter = make_kind(llama, tmp_path / kind, 1, **KINDS[kind])
    recorder = make_engine(load_snapshot(llama))
    use = {"digest": f"sha256:{kind}", "folder": str(adapter)}
    other = AdapterUse(digest="sha256:a0", folder=str(llama_adapters[0]))
    recorder.ask_many("weighted", PROMPT, (AdapterUse(**use, weight=0.5),))
    recorder.ask_many("combined", PROMPT, (other, AdapterUse(**use)))
    recorder.ask_many("alone", PROMPT, (AdapterUse(**use),))
    recorder.ask_many("plain", PROMPT, (other,))
    recorder.run()
    for name in ("weighted", "combined"):
        fault = recorder.last[name].fault
        assert fault is not None
        assert fault.code == "invalid_request"
        assert "use it alone, with weight 1" in fault.message
    assert recorder.last["alone"].finish_reason == recorder.last["plain"].finish_reason == "length"


def test_bytes_beside_rank_rows_are_bounded(llama: Snapshot, tmp_path: Path) -> None:
    large = make_kind(llama, tmp_path / "large", 1, **KINDS["embedding-and-head"])
    small = [make_kind(llama, tmp_path / f"small-{seed}", seed, **KINDS["dora"]) for seed in range(3)]
    recorder = make_engine(load_snapshot(llama), adapter_whole_bytes=15_000)
    recorder.ask("large", PROMPT, large)
    for adapter in small:
        recorder.ask(adapter.name, PROMPT, adapter)
    recorder.run()
    fault = recorder.last["large"].fault
    assert fault is not None
    assert fault.code == "adapter_rejected"
    assert "raise --adapter-whole-mib" in fault.message
    assert all(recorder.last[adapter.name].finish_reason == "length" for adapter in small)
    pool = recorder.engine.pool
    assert sum(pool.nature(digest).whole_bytes for digest in pool.resident_digests) <= 15_000
    assert pool.device.evictions
