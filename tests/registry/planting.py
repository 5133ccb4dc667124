"""Plants damage in a sound adapter folder: each function returns one that changes the folder it is given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.registry.adapter_folders import (
    PREFIX,
    config_document,
    lora_tensors,
    manifest_document,
    modules_named,
    write_adapter,
    write_bf16,
    write_json,
    write_raw_safetensors,
)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MANIFEST = "loraplex.json"
Q0 = "model.layers.0.self_attn.q_proj"
A0 = f"{PREFIX}{Q0}.lora_A.weight"
B0 = f"{PREFIX}{Q0}.lora_B.weight"
Damage = Callable[[Path], object]
Tensors = dict[str, np.ndarray[Any, Any]]


def config(**changes: Any) -> Damage:
    return lambda folder: write_json(folder / CONFIG, config_document(**changes))


def config_without(field: str) -> Damage:
    document = config_document()
    del document[field]
    return lambda folder: write_json(folder / CONFIG, document)


def text(file: str, content: str | bytes) -> Damage:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / file).write_bytes(raw)


def manifest(**changes: Any) -> Damage:
    return lambda folder: write_json(folder / MANIFEST, manifest_document(**changes))


def probe(**changes: Any) -> Damage:
    sound = {"prompt_token_ids": [1], "token_ids": [2], "logits": [0.5]}
    return manifest(probes=[sound, sound | changes])


def tensors(change: Callable[[Tensors], object], *, modules: tuple[str, ...] = ("q_proj", "v_proj")) -> Damage:
    """Write the weights again, after a change to the sound ones."""

    def damage(folder: Path) -> None:
        changed = lora_tensors(modules_named(*modules))
        change(changed)
        (folder / WEIGHTS).unlink()
        write_adapter(folder / "new", tensors=changed)
        (folder / "new" / WEIGHTS).rename(folder / WEIGHTS)
        for left in (folder / "new").iterdir():
            left.unlink()
        (folder / "new").rmdir()

    return damage


def added(name: str, *shape: int) -> Damage:
    return tensors(lambda held: held.update({name: np.ones(shape, np.float32)}))


def both(first: Damage, second: Damage) -> Damage:
    return lambda folder: (first(folder), second(folder))


def removed(*names: str) -> Damage:
    return tensors(lambda held: [held.pop(name) for name in names])


def renamed(change: Callable[[str], str]) -> Damage:
    def apply(held: Tensors) -> None:
        changed = {change(name): tensor for name, tensor in held.items()}
        held.clear()
        held.update(changed)

    return tensors(apply)


def reshaped(name: str, *shape: int) -> Damage:
    return tensors(lambda held: held.update({name: np.ones(shape, np.float32)}))


def poisoned(value: float, position: int = 5, dtype: Any = np.float32) -> Damage:
    def apply(held: Tensors) -> None:
        for name in held:
            held[name] = held[name].astype(dtype)
        held[B0].flat[position] = value

    return tensors(apply)


def poisoned_bf16(folder: Path) -> None:
    held = lora_tensors(modules_named("q_proj", "v_proj"))
    held[A0].flat[-1] = np.nan
    write_bf16(folder / WEIGHTS, held)


def header(change: Callable[[dict[str, Any]], object], data_bytes: int | None = None) -> Damage:
    """Edit the header of the sound weights; the data stay, or get another length."""

    def damage(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        document = json.loads(raw[8 : 8 + length])
        change(document)
        data = raw[8 + length :]
        if data_bytes is not None:
            data = data.ljust(len(data) + data_bytes, b"\0") if data_bytes > 0 else data[:data_bytes]
        write_raw_safetensors(folder / WEIGHTS, document, data)

    return damage


def raw_header(raw: bytes, data: bytes = b"") -> Damage:
    return lambda folder: write_raw_safetensors(folder / WEIGHTS, raw, data)


def as_dtype(dtype: Any) -> Damage:
    return tensors(lambda held: held.update({name: held[name].astype(dtype) for name in held}))


def replace_by_file(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("a file")


def link_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def many_notes(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.md").write_text("")


def truncated(count: int) -> Damage:
    return lambda folder: os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - count)


def without_a_base(folder: Path) -> None:
    """Nothing says its base, and its shapes fit none."""
    (folder / MANIFEST).unlink()
    config(base_model_name_or_path=None)(folder)
    reshaped(B0, 65, 4)(folder)
