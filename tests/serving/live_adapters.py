"""Random adapters for a server that runs: of its own base, and strong enough to be told apart by their answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import registry
from tests.registry.adapter_folders import config_document, write_json


def write_adapter(folder: Path, base: registry.BaseRecord, seed: int) -> Path:
    """Weights large enough to change the answer."""
    generator = np.random.default_rng(seed)
    rank = 2 + seed
    tensors = {}
    for name, module in base.modules.items():
        if name.endswith(("q_proj", "v_proj", "down_proj")):
            a = generator.standard_normal((rank, module.in_features), dtype=np.float32) / module.in_features**0.5
            b = generator.standard_normal((module.out_features, rank), dtype=np.float32)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b * 0.5
    folder.mkdir()
    targets = ["q_proj", "v_proj", "down_proj"]
    write_json(folder / "adapter_config.json", config_document(r=rank, lora_alpha=rank, target_modules=targets))
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "loraplex.json", manifest(base))
    return folder


def manifest(base: registry.BaseRecord) -> dict[str, Any]:
    named = {"name": base.name, "revision": None, "fingerprint": base.fingerprint, "quantization": {"mode": "nf4"}}
    return {"schema": 1, "base": named, "parent": None, "probes": []}
