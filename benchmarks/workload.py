"""What the benchmarks run on: bases of three sizes and random adapters for them.

It does: make the models and adapters, on disk, from a seed. It does not: measure.
Random weights cost what trained ones cost: the time of a step does not depend on their values.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config

from basemodel.description import BaseDescription
from basemodel.eight_bits import round_pair
from basemodel.load import Base, load_base, load_snapshot
from basemodel.source import EMBEDDED, EMBEDDED_FOLDER
from benchmarks.repeated_base import repeated_base
from serving.engine.build import engine_for, settle, warm_up
from serving.engine.engine import Engine
from serving.messages import EngineSettings

SHAPES = {
    "0.1b": LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
    "0.5b": Qwen2Config(  # the shape of Qwen2.5-0.5B with a vocabulary of 32k
        vocab_size=32_000,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    ),
}

LARGE = {
    "8b": LlamaConfig(  # the shape of Llama-3.1-8B
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}
"""Shapes for GPUs, made by `repeated_base`."""
MODELS = ("embedded", *SHAPES, *LARGE)


def open_base(model: str, folder: Path, *, device: str = "cpu") -> Base:
    """The base of one of MODELS in memory; what it needs on disk is made once, below `folder`."""
    if model in LARGE:
        return load_snapshot(repeated_base(model, LARGE[model], folder), device=device)
    return load_base(base_source(model, folder), cache_dir=folder / "bases", device=device)


def ready_engine(base: Base, settings: EngineSettings) -> Engine:
    """An engine around a base, settled as in its own process; on a GPU with the graphs that its settings allow."""
    engine = engine_for(base, settings)
    if settings.device != "cpu":
        warm_up(engine, settings)
    settle()
    return engine


def base_source(model: str, folder: Path) -> str:
    """What to give `load_base` for the embedded base or one of SHAPES, which is written to `folder` once."""
    if model == "embedded":
        return EMBEDDED
    source = folder / f"random-{model}"
    if not source.is_dir():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(SHAPES[model], dtype=torch.bfloat16).save_pretrained(source)
        AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(source)
    return str(source)


def random_adapters(
    base: BaseDescription, folder: Path, *, count: int, rank: int, adapter_bits: int = 16
) -> list[Path]:
    """`count` LoRA adapters of `rank` on every quantized layer, in PEFT's layout; on the grid of 8 bits if wanted."""
    kind = f"{base.fingerprint[:8]}-r{rank}" + ("-8-bits" if adapter_bits == 8 else "")
    return [_random_adapter(base, folder / f"{kind}-{seed}", seed, rank, adapter_bits) for seed in range(count)]


def _random_adapter(base: BaseDescription, folder: Path, seed: int, rank: int, adapter_bits: int) -> Path:
    if folder.is_dir():
        return folder
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for path, shape in base.modules.items():
        if shape.quantized:
            name = f"base_model.model.{path}"
            a = torch.randn(rank, shape.in_features, generator=generator) * shape.in_features**-0.5
            b = torch.randn(shape.out_features, rank, generator=generator) * 0.02
            if adapter_bits == 8:
                a, b = round_pair(a, b)
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    targets = sorted({path.rsplit(".", 1)[1] for path, shape in base.modules.items() if shape.quantized})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base.name}))
    return folder
