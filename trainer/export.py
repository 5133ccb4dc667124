"""Writes a finished adapter as a folder that stock PEFT loads and the registry accepts.

It does: save through PEFT in the wanted dtype, make the bytes a pure function of the weights and the config, add the
manifest and the card, and refuse to write a folder that shows anything of this machine. The dtype "int8" is bfloat16,
with each pair of factors rounded to the grid of `basemodel.eight_bits`.
It does not: choose the weights (`loop`) or publish (`cli`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from basemodel.description import BaseDescription
from basemodel.eight_bits import round_pair
from trainer.card import render_card
from trainer.checkpoint import adapter_tensors, is_of_gate
from trainer.errors import ExportError
from trainer.run_folder import replaced_folder, write_json
from trainer.tuners import DEFAULT, PeftModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MANIFEST_FILE = "loraplex.json"
CARD_FILE = "README.md"
TELLING_PARTS = 2  # "/run" is a word that any text may hold; "/run/user" is a path of somebody's machine
FACTOR_A, FACTOR_B = ".lora_A.", ".lora_B."  # in the names of a linear layer's pair, live and in the file
EIGHT_BITS = "int8"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    EIGHT_BITS: torch.bfloat16,  # it holds each value of the grid, and every framework reads it
}


def round_to_saved_dtype(model: PeftModel, dtype: str) -> None:
    """Give the live adapter the values that it will have when loaded from the folder; they stay in float32."""
    # A gate is float32 always.
    live = {name: parameter for name, parameter in adapter_tensors(model).items() if not is_of_gate(name)}
    saved = _as_saved({name: parameter.detach().cpu() for name, parameter in live.items()}, dtype)
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(saved[name])


def export_adapter(
    model: PeftModel,
    target: Path,
    *,
    dtype: str,
    base: BaseDescription,
    manifest: dict[str, Any],
    private_paths: Iterable[Path],
    adapter: str = DEFAULT,
) -> None:
    """Write the folder of one adapter of `model`, whole or not at all. None of `private_paths` may show in it.

    Raises ExportError.
    """
    with replaced_folder(target) as fresh:
        model.save_pretrained(
            str(fresh), safe_serialization=True, save_embedding_layers=False, selected_adapters=[adapter]
        )
        if adapter != DEFAULT:  # PEFT has put it into a folder of that name
            for file in (fresh / adapter).iterdir():
                file.rename(fresh / file.name)
            (fresh / adapter).rmdir()
        (fresh / CARD_FILE).unlink(missing_ok=True)
        _settle_weights(fresh / WEIGHTS_FILE, dtype)
        _settle_config(fresh / CONFIG_FILE, base)
        write_json(fresh / MANIFEST_FILE, manifest)
        config = json.loads((fresh / CONFIG_FILE).read_text(encoding="utf-8"))
        (fresh / CARD_FILE).write_text(render_card(manifest, config), encoding="utf-8")
        refuse_private(fresh, private_paths)


def refuse_private(folder: Path, private_paths: Iterable[Path]) -> None:
    """Raise ExportError where a file in `folder` shows one of these paths."""
    absolute = [path.expanduser().absolute() for path in private_paths]
    secrets = {str(path) for path in absolute if len(path.parts) > TELLING_PARTS}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for secret in sorted(secrets):
            if secret.encode() in content:
                raise ExportError(f"{file.name} would show the path {secret} of this machine; give the job plain names")


def _settle_weights(path: Path, dtype: str) -> None:
    """Save again in `dtype` and in the order of names, so that equal weights are equal bytes."""
    tensors = _as_saved(load_file(path), dtype)
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ExportError(f"the adapter does not fit into {dtype}: it has values that are not finite there")
    path.unlink()
    save_file({name: tensors[name].contiguous() for name in sorted(tensors)}, path, metadata={"format": "pt"})


def _as_saved(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The values and the type that the file has, of float32 tensors on the CPU; doing it twice changes nothing."""
    rounded = dict(tensors)
    if dtype == EIGHT_BITS:
        for name_a in [name for name in tensors if FACTOR_A in name]:
            name_b = name_a.replace(FACTOR_A, FACTOR_B)
            a, b = tensors[name_a], tensors[name_b]
            if bool(a.isfinite().all() and b.isfinite().all()):  # else export refuses it
                rounded[name_a], rounded[name_b] = round_pair(a, b)
    return {name: tensor.to(DTYPES[dtype]) for name, tensor in rounded.items()}


def _settle_config(path: Path, base: BaseDescription) -> None:
    """Sort what PEFT keeps as a set, and name the base as others know it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    config["base_model_name_or_path"] = base.name
    config["revision"] = base.revision
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
