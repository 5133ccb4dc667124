"""Adapters that must be accepted, judged as PEFT would build them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.adapter import AdapterFolder, Verdict
from registry.base import BaseRecord
from registry.errors import RejectedAdapterError
from tests.registry.adapter_folders import (
    base_document,
    config_document,
    lora_tensors,
    modules_named,
    write_bf16,
)

MakeAdapter = Callable[..., Path]


def judge(folder: Path) -> Verdict:
    return AdapterFolder.open(folder).judge(BaseRecord.from_json(base_document()))


def test_a_plain_adapter_is_accepted(make_adapter: MakeAdapter) -> None:
    verdict = judge(make_adapter())
    assert verdict.rank == 4
    assert verdict.target_modules == ("q_proj", "v_proj")
    assert verdict.module_count == 4
    assert verdict.adapter_bytes == 2 * 4 * (4 * (64 + 64) + 4 * (64 + 32))
    assert verdict.base_verified


def test_notes_are_accepted(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    (folder / "README.md").write_text("# what it is for")
    judge(folder)


def test_what_hub_clients_leave_behind_is_passed_over(make_adapter: MakeAdapter, tmp_path: Path) -> None:
    """`hf download --local-dir` keeps its notes in the folder, which is then published."""
    folder = make_adapter()
    names = AdapterFolder.open(folder).file_names
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    assert AdapterFolder.open(folder).file_names == names
    (folder / ".cache" / "huggingface").rmdir()
    (folder / ".cache").rmdir()
    (folder / ".cache").symlink_to(tmp_path)
    with pytest.raises(RejectedAdapterError, match=r"\.cache"):
        AdapterFolder.open(folder)


def test_without_a_manifest_the_base_is_not_verified(make_adapter: MakeAdapter) -> None:
    assert not judge(make_adapter(has_manifest=False)).base_verified


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": True},
        {"lora_alpha": 3.5},
        {"fan_in_fan_out": True},
        {"lora_dropout": 0.05},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"target_modules": r".*\.(q|v)_proj$"},
        {"exclude_modules": ["lm_head"]},
        {"task_type": None},
        {"some_field_of_peft_1": None, "another": [], "a_third": False, "a_fourth": {}},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "transformers.models.llama.modeling_llama"}},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "transformers", "unsloth_fixed": True}},
    ],
)
def test_configs_that_mean_plain_lora_are_accepted(make_adapter: MakeAdapter, changes: dict[str, Any]) -> None:
    judge(make_adapter(config=config_document(**changes)))


def test_a_config_of_only_the_needed_fields_is_accepted(make_adapter: MakeAdapter) -> None:
    judge(make_adapter(config={"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}))


def test_some_layers_only(make_adapter: MakeAdapter) -> None:
    tensors = lora_tensors(["model.layers.1.self_attn.q_proj"])
    config = config_document(target_modules=["q_proj"], layers_to_transform=[1])
    assert judge(make_adapter(config=config, tensors=tensors)).module_count == 1
    config = config_document(target_modules=["model.layers.1.self_attn.q_proj"])
    assert judge(make_adapter(config=config, tensors=tensors)).module_count == 1
    config = config_document(target_modules=["q_proj"], exclude_modules=["layers.0.self_attn.q_proj"])
    assert judge(make_adapter(config=config, tensors=tensors)).module_count == 1
    config = config_document(target_modules=["q_proj"], exclude_modules=r".*layers\.0.*")
    assert judge(make_adapter(config=config, tensors=tensors)).module_count == 1


def test_lm_head_is_a_linear_layer(make_adapter: MakeAdapter) -> None:
    tensors = lora_tensors(["lm_head", *modules_named("q_proj")])
    config = config_document(target_modules=["lm_head", "q_proj"])
    assert judge(make_adapter(config=config, tensors=tensors)).target_modules == ("lm_head", "q_proj")


def test_ranks_per_module(make_adapter: MakeAdapter) -> None:
    modules = modules_named("q_proj", "v_proj")
    ranks = {"model.layers.0.self_attn.q_proj": 7, "model.layers.0.self_attn.v_proj": 2, modules[-1]: 2}
    config = config_document(rank_pattern={"layers.0.self_attn.q_proj": 7, "v_proj": 2}, alpha_pattern={"v_proj": 5})
    folder = make_adapter(config=config, tensors=lora_tensors(modules, ranks=ranks))
    assert judge(folder).rank == 7
    read = AdapterFolder.open(folder).config
    assert read.scale_of("model.layers.0.self_attn.q_proj") == 8 / 7
    assert read.scale_of("model.layers.1.self_attn.q_proj") == 8 / 4
    assert read.scale_of("model.layers.1.self_attn.v_proj") == 5 / 2


def test_the_scale_of_rslora(make_adapter: MakeAdapter) -> None:
    folder = make_adapter(config=config_document(use_rslora=True))
    assert AdapterFolder.open(folder).config.scale_of("model.layers.0.self_attn.q_proj") == 8 / 2


def test_half_precision(make_adapter: MakeAdapter) -> None:
    tensors = lora_tensors(modules_named("q_proj", "v_proj"))
    assert judge(make_adapter(tensors={name: tensor.astype(np.float16) for name, tensor in tensors.items()})).rank == 4
    folder = make_adapter()
    write_bf16(folder / "adapter_model.safetensors", tensors)
    assert judge(folder).adapter_bytes == 2 * sum(tensor.size for tensor in tensors.values())


def test_the_largest_finite_values_are_accepted(make_adapter: MakeAdapter) -> None:
    for dtype in (np.float32, np.float16):
        limits = np.finfo(dtype)
        tensors = {
            name: tensor.astype(dtype) for name, tensor in lora_tensors(modules_named("q_proj", "v_proj")).items()
        }
        next(iter(tensors.values())).flat[:3] = [limits.max, limits.min, limits.smallest_subnormal]
        judge(make_adapter(tensors=tensors))


def test_judging_changes_nothing(make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    judge(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


EMBEDDING = "base_model.model.model.embed_tokens"
Q0, V0 = (f"base_model.model.model.layers.0.self_attn.{name}" for name in ("q_proj", "v_proj"))
KINDS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], tuple[str, ...], int]] = {
    "dora": (
        {"use_dora": True, "target_modules": ["layers.0.self_attn.q_proj"]},
        {f"{Q0}.lora_magnitude_vector": (64,)},
        ("use_dora",),
        96,
    ),
    "biases": (
        {"bias": "all", "lora_bias": True, "target_modules": ["layers.0.self_attn.q_proj"]},
        {f"{V0}.bias": (32,), f"{Q0}.lora_B.bias": (64,)},
        ("bias", "lora_bias"),
        96,
    ),
    "modules to save": (
        {"modules_to_save": ["norm", "lm_head"], "target_modules": ["layers.0.self_attn.q_proj"]},
        {"base_model.model.model.norm.weight": (64,), "base_model.model.lm_head.weight": (96, 64)},
        ("modules_to_save",),
        96,
    ),
    "an embedding": (
        {"target_modules": ["layers.0.self_attn.q_proj", "embed_tokens"]},
        {
            f"{EMBEDDING}.lora_embedding_A": (4, 96),
            f"{EMBEDDING}.lora_embedding_B": (64, 4),
            f"{EMBEDDING}.base_layer.weight": (96, 64),
        },
        ("lora_embedding",),
        96,
    ),
    "added tokens": (
        {"trainable_token_indices": [96, 7, 97], "target_modules": ["layers.0.self_attn.q_proj"]},
        {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": (3, 64)},
        ("trainable_token_indices",),
        98,
    ),
    "a larger vocabulary": (
        {"target_modules": ["layers.0.self_attn.q_proj"]},
        {f"{EMBEDDING}.weight": (100, 64), "base_model.model.lm_head.weight": (100, 64)},
        ("modules_to_save",),
        100,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_the_engine_serves_besides_lora_is_accepted_and_named(make_adapter: MakeAdapter, name: str) -> None:
    changes, shapes, kinds, vocabulary = KINDS[name]
    tensors = lora_tensors(["model.layers.0.self_attn.q_proj"])
    tensors |= {key: np.ones(shape, np.float32) for key, shape in shapes.items()}
    verdict = judge(make_adapter(config=config_document(**changes), tensors=tensors))
    assert (verdict.kinds, verdict.vocabulary_size) == (kinds, vocabulary)


def test_a_pattern_may_begin_at_the_root(make_adapter: MakeAdapter) -> None:
    first = "model.layers.0.self_attn.q_proj"
    config = config_document(rank_pattern={f"^{first}": 2, "^self_attn.v_proj": 9})
    modules = modules_named("q_proj", "v_proj")
    assert judge(make_adapter(config=config, tensors=lora_tensors(modules, ranks={first: 2}))).rank == 4
