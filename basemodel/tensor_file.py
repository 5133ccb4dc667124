"""The tensors of a safetensors file, mapped: nothing is read before it is looked at.

It does: leave the judgement of the file to safetensors, and make the tensors of a file of one type in a few calls: an
adapter has hundreds of small ones, and one call each would keep the interpreter from the engine's loop for longer than
their values take.
It does not: know what the tensors are (`adapter_parts`).
"""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import load_file

# A file: 8 bytes with the header's length, the header, the tensors one after another without gaps.
LENGTH_BYTES = 8
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors by name. Raises OSError, SafetensorError."""
    with safe_open(path, framework="pt"):  # it refuses what is not such a file: offsets, sizes, names, types
        raw = map_values(path, path.stat().st_size, torch.uint8)
        begin = LENGTH_BYTES + int.from_bytes(raw[:LENGTH_BYTES].numpy().tobytes(), "little")
        entries: dict[str, Any] = msgspec.json.decode(raw[LENGTH_BYTES:begin].numpy().tobytes())
    entries.pop("__metadata__", None)
    ordered = sorted(entries.items(), key=lambda each: each[1]["data_offsets"])
    shapes = [entry["shape"] for _, entry in ordered]
    sizes = [math.prod(shape) for shape in shapes]
    dtypes = {entry["dtype"] for _, entry in ordered}
    dtype = DTYPES.get(dtypes.pop()) if len(dtypes) == 1 else None
    if dtype is None or begin + sum(sizes) * dtype.itemsize != len(raw) or begin % dtype.itemsize:
        return load_file(path)
    values = raw[begin:].view(dtype).split_with_sizes(sizes)
    return {name: part.view(shape) for (name, _), part, shape in zip(ordered, values, shapes, strict=True)}


def map_values(path: Path, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The first `count` values of a file. Raises OSError, where torch says RuntimeError: a file that has gone or shrunk
    since it was looked at, or no room for one more mapping.
    """
    try:
        return torch.from_file(str(path), shared=False, size=count, dtype=dtype)
    except RuntimeError as error:
        raise OSError(errno.EIO, "it cannot be mapped") from error
