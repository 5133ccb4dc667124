"""Quantizes a base once and keeps the bytes: the snapshot that the trainer and the server both load.

It does: load a source with transformers, quantize its linear layers on the CPU (so that every machine gets the same
bytes), write a folder in the Hugging Face layout with `base.json` beside the weights, and find it again.
It does not: keep models in memory (`load`).

A snapshot folder is written to a temporary name and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from basemodel.description import BaseDescription, Mode, ModuleShape, Quantization
from basemodel.errors import BaseFormatError, SnapshotDamagedError
from basemodel.fingerprint import fingerprint_base
from basemodel.four_bit import Linear4bit
from basemodel.source import TOKENIZER_FILES, BaseSource, find_source

BASE_FILE = "base.json"
FILES_FILE = "snapshot.json"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Snapshot:
    """A quantized base on disk. `folder` is a model folder that stock transformers loads."""

    folder: Path
    description: BaseDescription


def quantization_for(mode: Mode, compute_dtype: str | None = None) -> Quantization:
    """The settings of a mode. Compute type: bfloat16, or float32 for "fp32" and where asked for with "nf4"."""
    if mode not in ("nf4", "bf16", "fp32"):
        raise ValueError(f"mode is '{mode}'; it must be nf4, bf16 or fp32")
    wanted = {"nf4": compute_dtype or "bfloat16", "bf16": "bfloat16", "fp32": "float32"}[mode]
    if wanted not in DTYPES or (compute_dtype is not None and compute_dtype != wanted):
        raise ValueError(f"compute_dtype '{compute_dtype}' does not go with mode {mode}")
    return Quantization(mode=mode, compute_dtype="bfloat16" if wanted == "bfloat16" else "float32")


def prepare_snapshot(source: str, *, mode: Mode = "nf4", compute_dtype: str | None = None, cache_dir: Path) -> Snapshot:
    """The snapshot of `source`, made now if the cache has none. Raises BaseNotFoundError, BaseFormatError."""
    quantization = quantization_for(mode, compute_dtype)
    found = find_source(source)
    folder = cache_dir / _snapshot_name(found, quantization)
    if not folder.is_dir():
        _write_snapshot(found, quantization, folder)
    return open_snapshot(folder)


def open_snapshot(folder: Path) -> Snapshot:
    """Read a snapshot's description and check that its files are whole. Raises SnapshotDamagedError."""
    try:
        sizes = json.loads((folder / FILES_FILE).read_text())
        description = BaseDescription.from_json(json.loads((folder / BASE_FILE).read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotDamagedError(folder, f"{error.__class__.__name__}: {error}") from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise SnapshotDamagedError(folder, f"{name} is missing or not {size} bytes long")
    if not description.vectors:  # written by a release that did not note them
        description = replace(description, vectors=vector_lengths(folder))
    return Snapshot(folder, description)


def fingerprint_of(folder: Path, quantization: Quantization) -> str:
    """Compute a snapshot's fingerprint anew from its bytes (for `doctor` and tests; reads every weight)."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return fingerprint_base(
        sorted(folder.glob("*.safetensors")), quantization, _tokenizer_bytes(folder), tokenizer.chat_template or ""
    )


def _snapshot_name(source: BaseSource, quantization: Quantization) -> str:
    key = hashlib.sha256(json.dumps([source.identity, quantization.mode, quantization.compute_dtype]).encode())
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", source.name)[-48:]
    return f"{readable}-{quantization.mode}-{key.hexdigest()[:16]}"


def _write_snapshot(source: BaseSource, quantization: Quantization, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=folder.parent))
    try:
        _fill(source, quantization, temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster: its snapshot has the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(source: BaseSource, quantization: Quantization, folder: Path) -> None:
    model = _load_source(source, quantization)
    with quiet_transformers():
        model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    description = BaseDescription(
        name=source.name,
        revision=source.revision,
        fingerprint=fingerprint_of(folder, quantization),
        quantization=quantization,
        architecture=(model.config.architectures or [type(model).__name__])[0],
        vocabulary_size=int(model.config.get_text_config().vocab_size),
        context_tokens=_context_tokens(model),
        modules=module_shapes(model),
        vectors=vector_lengths(folder),
    )
    (folder / BASE_FILE).write_text(json.dumps(description.to_json(), indent=1, sort_keys=True))
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / FILES_FILE).write_text(json.dumps(sizes, indent=1))
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _load_source(source: BaseSource, quantization: Quantization) -> PreTrainedModel:
    options: dict[str, Any] = {"dtype": DTYPES[quantization.compute_dtype]}
    if quantization.mode == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantization.double_quantization,
            bnb_4bit_compute_dtype=DTYPES[quantization.compute_dtype],
        )
        options["device_map"] = {"": "cpu"}
    try:
        if getattr(AutoConfig.from_pretrained(source.folder), "quantization_config", None) is not None:
            raise BaseFormatError(source.name, "it is already quantized; give the original 16-bit weights")
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                source.folder, use_safetensors=True, trust_remote_code=False, **options
            )
        AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseFormatError(source.name, str(error)) from error
    return model


def module_shapes(model: torch.nn.Module) -> dict[str, ModuleShape]:
    """Every linear layer and embedding of `model`, by its path."""
    shapes = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):  # Linear4bit is one too
            shapes[path] = ModuleShape(
                "linear", module.out_features, module.in_features, isinstance(module, Linear4bit)
            )
        elif isinstance(module, Conv1D):
            shapes[path] = ModuleShape("linear", int(module.weight.shape[1]), int(module.weight.shape[0]), False)
        elif isinstance(module, torch.nn.Embedding):
            shapes[path] = ModuleShape("embedding", module.embedding_dim, module.num_embeddings, False)
    return shapes


def vector_lengths(folder: Path) -> dict[str, int]:
    """The one-dimensional weights and biases of a snapshot, by name, with their lengths."""
    lengths = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a dict
                shape = file.get_slice(name).get_shape()
                if name.endswith((".weight", ".bias")) and len(shape) == 1:
                    lengths[name] = int(shape[0])
    return lengths


def _context_tokens(model: PreTrainedModel) -> int:
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise BaseFormatError(
        config.name_or_path or type(model).__name__, "its config names no context length (max_position_embeddings)"
    )


def _tokenizer_bytes(folder: Path) -> bytes:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return whole.read_bytes()
    names = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
    return b"\0".join((folder / name).read_bytes() for name in names if (folder / name).is_file())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No transformers progress bars inside: they would tear up the caller's own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
