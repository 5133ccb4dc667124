"""Brings a quantized base into memory, the same way for the trainer and the server.

It does: load a snapshot with transformers, freeze it, and choose the one numeric path of its 4-bit layers.
It does not: quantize (`snapshot`), attach adapters (`attach`), or train.

The numeric path on the CPU: bitsandbytes would repack its weights for AVX512-BF16 at the first forward without
gradients. That path rounds scales to bfloat16, differs from training by about 0.3% a layer, and leaves a layer without
gradients. It is switched off on every layer: training, evaluation and serving dequantize the same bytes with the same
function, which is what lets the trainer's probes hold in the server. Measured costs are in docs/performance.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from basemodel.description import BaseDescription, Mode
from basemodel.four_bit import Linear4bit
from basemodel.snapshot import DTYPES, Snapshot, prepare_snapshot, quiet_transformers


@dataclass
class Base:
    """A base in memory. `model` is frozen and in eval mode; who trains switches modes, nobody changes its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    description: BaseDescription
    folder: Path


def load_base(
    source: str,
    *,
    mode: Mode = "nf4",
    compute_dtype: str | None = None,
    cache_dir: Path,
    device: str = "cpu",
) -> Base:
    """Load 'embedded', a folder or a Hub id as a quantized base, quantizing it first if that was not done yet.

    Raises BaseNotFoundError, BaseFormatError, SnapshotDamagedError.
    """
    snapshot = prepare_snapshot(source, mode=mode, compute_dtype=compute_dtype, cache_dir=cache_dir)
    return load_snapshot(snapshot, device=device)


def load_snapshot(snapshot: Snapshot, *, device: str = "cpu") -> Base:
    """Load an existing snapshot onto `device` ("cpu" or "cuda")."""
    quantization = snapshot.description.quantization
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            snapshot.folder,
            dtype=DTYPES[quantization.compute_dtype],
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
        )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    model.requires_grad_(False)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(snapshot.folder, trust_remote_code=False)
    return Base(model, tokenizer, snapshot.description, snapshot.folder)
