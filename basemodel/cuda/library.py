"""Whether the GPU kernels can be asked here, and how: the one door to them for modules that run on every machine.

Triton is imported with the first call of a kernel, and comes with CUDA builds of torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

OUTPUT_BLOCK = 64
"""Outputs of one program of the LoRA kernel: where layers are joined, each but the last ends with one."""


def has_gpu_kernels(device: torch.device) -> bool:
    """Whether tensors on this device can be given to the kernels."""
    return device.type == "cuda" and _has_triton()


def add_lora_tiles(*operands: Any) -> None:
    """`lora_kernels.add_lora_tiles`."""
    _module("lora_kernels").add_lora_tiles(*operands)


def paged_attention(*operands: Any, **options: Any) -> torch.Tensor:
    """`attention_kernel.paged_attention`."""
    out: torch.Tensor = _module("attention_kernel").paged_attention(*operands, **options)
    return out


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _module(name: str) -> Any:
    return import_module(f"basemodel.cuda.{name}")
