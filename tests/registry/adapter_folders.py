"""Builds small adapter folders, sound or damaged on purpose, and the base that they fit.

The base has two layers with q_proj [64, 64], v_proj [32, 64] and down_proj [64, 128], an embedding, and lm_head.
Shapes are [out_features, in_features].
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FINGERPRINT = "ab" * 32
OTHER_FINGERPRINT = "cd" * 32
PREFIX = "base_model.model."
LAYERS = 2
SHAPES = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (32, 64), "mlp.down_proj": (64, 128)}
VOCABULARY = 96


def base_document(fingerprint: str = FINGERPRINT, name: str = "embedded") -> dict[str, Any]:
    """base.json of the tiny base."""
    modules: dict[str, Any] = {
        f"model.layers.{layer}.{part}": _module("linear", *shape, quantized=True)
        for layer in range(LAYERS)
        for part, shape in SHAPES.items()
    }
    modules["model.embed_tokens"] = _module("embedding", 64, VOCABULARY, quantized=False)
    modules["lm_head"] = _module("linear", VOCABULARY, 64, quantized=False)
    return {
        "schema": 1,
        "name": name,
        "revision": None,
        "fingerprint": fingerprint,
        "quantization": {
            "mode": "nf4",
            "block_size": 64,
            "double_quantization": True,
            "compute_dtype": "bfloat16",
        },
        "architecture": "LlamaForCausalLM",
        "vocabulary_size": VOCABULARY,
        "context_tokens": 128,
        "modules": modules,
        "vectors": {"model.norm.weight": 64, "model.layers.0.self_attn.v_proj.bias": 32},
    }


def modules_named(*endings: str) -> list[str]:
    """The base's linear modules that end so."""
    modules = base_document()["modules"]
    return [name for name, module in modules.items() if module["kind"] == "linear" and name.endswith(endings)]


def lora_tensors(
    modules: Sequence[str], *, rank: int = 4, ranks: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Random lora_A and lora_B in float32 for each module of the base; the same bits on every machine."""
    generator = np.random.default_rng(seed)
    shapes = base_document()["modules"]
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for module in modules:
        module_rank = (ranks or {}).get(module, rank)
        shape_a = (module_rank, shapes[module]["in_features"])
        shape_b = (shapes[module]["out_features"], module_rank)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = generator.random(shape_a, dtype=np.float32) - 0.5
        tensors[f"{PREFIX}{module}.lora_B.weight"] = generator.random(shape_b, dtype=np.float32) - 0.5
    return tensors


def config_document(**changes: Any) -> dict[str, Any]:
    """adapter_config.json as peft 0.21.2 writes it, with changes."""
    document: dict[str, Any] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "embedded",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "v_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    return document | changes


def manifest_document(fingerprint: str = FINGERPRINT, **changes: Any) -> dict[str, Any]:
    """loraplex.json as the trainer writes it, with changes."""
    document: dict[str, Any] = {
        "schema": 1,
        "base": {"name": "embedded", "revision": None, "fingerprint": fingerprint, "quantization": {"mode": "nf4"}},
        "training": {
            "method": "qlora",
            "data": {"digest": f"sha256:{'1' * 64}", "train_rows": 900, "validation_rows": 100},
            "job": {"adapter": {"rank": 4}},
            "seed": 7,
            "steps": 120,
            "seconds": 41.5,
            "hardware": "a processor, 2 cores",
            "versions": {"torch": "2.13.0"},
        },
        "metrics": {
            "base": {"validation_loss": 3.125, "perplexity": 22.76, "exact_match": 0.0},
            "adapter": {"validation_loss": 0.0625, "perplexity": 1.064, "exact_match": 0.94},
        },
        "parent": None,
        "probes": [{"prompt_token_ids": [1, 2, 3], "token_ids": [5, 9], "logits": [4.5, 3.25]}],
    }
    return document | changes


def write_adapter(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    manifest: Mapping[str, Any] | None = None,
    has_manifest: bool = True,
    seed: int = 0,
) -> Path:
    """Write an adapter folder; what is not given is sound. Folders of different seeds differ in their weights."""
    folder.mkdir(parents=True)
    if tensors is None:
        tensors = lora_tensors(modules_named("q_proj", "v_proj"), seed=seed)
    write_json(folder / "adapter_config.json", config_document() if config is None else config)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    if has_manifest:
        write_json(folder / "loraplex.json", manifest_document() if manifest is None else manifest)
    return folder


def write_json(path: Path, document: Any) -> None:
    """Write JSON as PEFT does."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True))


def write_raw_safetensors(path: Path, header: Any, data: bytes = b"") -> None:
    """Write a safetensors file with any header at all."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def write_bf16(path: Path, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write the tensors as BF16, which numpy does not have: the upper halves of their float32 values."""
    header: dict[str, Any] = {}
    data = b""
    for name, tensor in tensors.items():
        values = (tensor.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        data += values
    write_raw_safetensors(path, header, data)


def _module(kind: str, out_features: int, in_features: int, *, quantized: bool) -> dict[str, Any]:
    return {"kind": kind, "out_features": out_features, "in_features": in_features, "quantized": quantized}
