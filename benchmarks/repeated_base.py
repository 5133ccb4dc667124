"""A base of billions of weights for a benchmark: one quantized layer, written as often as the shape has layers.

It does: quantize a model of one layer as any base is, and write a snapshot whose layers are copies of it.
It does not: make a model that says anything. The time of a step does not depend on the values of the weights.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from basemodel.description import BaseDescription
from basemodel.snapshot import BASE_FILE, FILES_FILE, Snapshot, fingerprint_of, open_snapshot, prepare_snapshot
from basemodel.source import EMBEDDED_FOLDER

FIRST_LAYER = "model.layers.0."


def repeated_base(name: str, shape: LlamaConfig, folder: Path) -> Snapshot:
    """The snapshot of a model of `shape`, made once below `folder`."""
    target = folder / f"repeated-{name}"
    if not target.is_dir():
        source = folder / f"one-layer-{name}"
        torch.manual_seed(0)
        config = LlamaConfig(**(shape.to_dict() | {"num_hidden_layers": 1}))
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(source)
        AutoTokenizer.from_pretrained(EMBEDDED_FOLDER).save_pretrained(source)
        single = prepare_snapshot(str(source), cache_dir=folder / "bases")
        _write(single, target, name, shape.num_hidden_layers)
        shutil.rmtree(source)
        shutil.rmtree(single.folder)
    return open_snapshot(target)


def _write(single: Snapshot, target: Path, name: str, layers: int) -> None:
    fresh = target.with_suffix(".part")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(single.folder, fresh, ignore=shutil.ignore_patterns("*.safetensors*", BASE_FILE, FILES_FILE))
    tensors: dict[str, torch.Tensor] = {}
    for path in single.folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dictionary
    rest = {key: tensor for key, tensor in tensors.items() if not key.startswith(FIRST_LAYER)}
    save_file(rest, fresh / "model-rest.safetensors", metadata={"format": "pt"})
    index = dict.fromkeys(rest, "model-rest.safetensors")
    for layer in range(layers):
        copies = {
            key.replace(FIRST_LAYER, f"model.layers.{layer}."): tensor
            for key, tensor in tensors.items()
            if key.startswith(FIRST_LAYER)
        }
        file = f"model-{layer:03}.safetensors"
        save_file(copies, fresh / file, metadata={"format": "pt"})
        index |= dict.fromkeys(copies, file)
    (fresh / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config = json.loads((fresh / "config.json").read_text())
    (fresh / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    description = _described(single.description, name, layers)
    fingerprint = fingerprint_of(fresh, description.quantization)
    (fresh / BASE_FILE).write_text(json.dumps(replace(description, fingerprint=fingerprint).to_json()))
    sizes = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
    (fresh / FILES_FILE).write_text(json.dumps(sizes))
    fresh.rename(target)


def _described(single: BaseDescription, name: str, layers: int) -> BaseDescription:
    modules = {path: shape for path, shape in single.modules.items() if not path.startswith(FIRST_LAYER)}
    for layer in range(layers):
        modules |= {
            path.replace(FIRST_LAYER, f"model.layers.{layer}."): shape
            for path, shape in single.modules.items()
            if path.startswith(FIRST_LAYER)
        }
    return replace(single, name=name, modules=modules)
