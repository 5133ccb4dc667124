"""The identity of a quantized base: one SHA-256 over everything that decides what it computes.

It does: hash tensors (packed codes, scales, shapes, types), quantization settings, tokenizer and chat template.
It does not: hash file layout, so the same tensors in another order or split over other files have the same fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open

from basemodel.description import Quantization

QUANT_STATE_MARK = ".quant_state.bitsandbytes__"


def fingerprint_base(
    weight_files: Iterable[Path], quantization: Quantization, tokenizer_json: bytes, chat_template: str
) -> str:
    """The fingerprint, 64 hex digits, of the base stored in `weight_files` (safetensors)."""
    digest = hashlib.sha256()
    _add(digest, "quantization", json.dumps(asdict(quantization), sort_keys=True).encode())
    _add(digest, "tokenizer", tokenizer_json)
    _add(digest, "chat_template", chat_template.encode())
    where = {name: path for path in weight_files for name in _tensor_names(path)}
    for name in sorted(where):
        with safe_open(where[name], framework="pt") as tensors:
            tensor = tensors.get_tensor(name)
        _add(digest, f"{name} {tensor.dtype} {tuple(tensor.shape)}", _content(name, tensor))
    return digest.hexdigest()


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())


def _content(name: str, tensor: torch.Tensor) -> bytes:
    raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if QUANT_STATE_MARK in name:  # a JSON text: its spelling must not decide the identity
        return json.dumps(json.loads(raw), sort_keys=True).encode()
    return raw


def _add(digest: hashlib._Hash, label: str, content: bytes) -> None:
    head = label.encode()
    digest.update(len(head).to_bytes(8, "little") + head + len(content).to_bytes(8, "little"))
    digest.update(content)
