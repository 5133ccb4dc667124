"""Reads a safetensors file without trusting it: bounded header, offsets that cover the data exactly, finite values.

It does not know about LoRA (`adapter.py` does) and never loads more than one chunk of data at a time.
Format: 8 bytes little-endian header length, the JSON header, then the tensors' bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NoReturn

import msgspec
import numpy as np

from registry.decoding import convert
from registry.errors import RejectedAdapterError
from registry.json_document import parse_json_object
from registry.reasons import RejectReason

HEADER_BYTES_LIMIT = 1_000_000
LENGTH_FIELD_BYTES = 8
DIMENSIONS_LIMIT = 8
DIMENSION_LIMIT = 1 << 40
NAME_CHARACTERS_LIMIT = 512
CHUNK_BYTES = 1 << 20
"""Of values: what fits into a processor's own cache is read twice at little cost."""
METADATA_KEY = "__metadata__"

ELEMENT_BYTES: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})
_INTEGERS: Mapping[str, tuple[Any, Any, int]] = MappingProxyType(
    {
        "F32": (np.dtype("<i4"), np.dtype("<u4"), 0x7F80_0000),
        "F16": (np.dtype("<i2"), np.dtype("<u2"), 0x7C00),
        "BF16": (np.dtype("<i2"), np.dtype("<u2"), 0x7F80),
    }
)
"""Signed and unsigned integers as wide as the dtype, and infinity's bits: what is not below them is NaN or infinity."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its bytes are `begin` to `end` (exclusive), counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class _HeaderEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_tensors(path: Path) -> tuple[Tensor, ...]:
    """Read the header and check that it describes the file's bytes, all of them and none twice.

    Raises RejectedAdapterError. The tensors come in the order of their bytes.
    """
    with path.open("rb") as stream:
        file_bytes = path.stat().st_size
        header_bytes = _read_header_length(stream, file=path.name, file_bytes=file_bytes)
        header = parse_json_object(
            stream.read(header_bytes), file=f"{path.name} (header)", reason=RejectReason.BAD_SAFETENSORS
        )
    data_start = LENGTH_FIELD_BYTES + header_bytes
    _check_metadata(header.pop(METADATA_KEY, {}), file=path.name)
    tensors = sorted(
        (_read_entry(name, entry, data_start=data_start, file=path.name) for name, entry in header.items()),
        key=lambda tensor: (tensor.begin, tensor.end),
    )
    _check_cover(tensors, data_start=data_start, file_bytes=file_bytes, file=path.name)
    return tuple(tensors)


def check_finite(path: Path, tensors: tuple[Tensor, ...]) -> None:
    """Read every value once. Raises RejectedAdapterError naming the first tensor that holds NaN or infinity."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as stream:
        for tensor in tensors:
            stream.seek(tensor.begin)
            remaining_bytes = tensor.end - tensor.begin
            while remaining_bytes:
                chunk = buffer[: min(CHUNK_BYTES, remaining_bytes)]
                _fill(stream, chunk, file=path.name)
                remaining_bytes -= len(chunk)
                if not _is_finite(chunk, tensor.dtype):
                    raise RejectedAdapterError(
                        RejectReason.NOT_FINITE,
                        f"tensor {tensor.name!r} holds NaN or infinity",
                        file=path.name,
                        tensor=tensor.name,
                    )


def _fill(stream: RawIOBase, chunk: memoryview, *, file: str) -> None:
    rest = chunk
    while rest:
        count = stream.readinto(rest)
        if not count:
            _refuse("it became shorter while it was read", file=file)
        rest = rest[count:]


def _is_finite(chunk: memoryview, dtype: str) -> bool:
    """By two maxima, which make nothing for each value: the largest signed integer is the largest number with a plus
    sign, and the largest unsigned one (the sign is the highest bit) that with a minus sign, where there is any.
    """
    signed, unsigned, infinity = _INTEGERS[dtype]
    sign = 1 << (8 * unsigned.itemsize - 1)
    largest = int(np.frombuffer(chunk, dtype=signed).max())
    lowest = int(np.frombuffer(chunk, dtype=unsigned).max())
    return largest < infinity and lowest < sign + infinity


def _read_header_length(stream: BinaryIO, *, file: str, file_bytes: int) -> int:
    raw = stream.read(LENGTH_FIELD_BYTES)
    if len(raw) < LENGTH_FIELD_BYTES:
        _refuse(f"it has only {len(raw)} bytes", file=file)
    header_bytes = int.from_bytes(raw, "little")
    if header_bytes > file_bytes - LENGTH_FIELD_BYTES:
        _refuse(f"it says that its header has {header_bytes} bytes, and the file has {file_bytes}", file=file)
    if header_bytes > HEADER_BYTES_LIMIT:
        raise RejectedAdapterError(
            RejectReason.HEADER_TOO_LARGE,
            f"its header has {header_bytes:,} bytes, and the limit is {HEADER_BYTES_LIMIT:,}",
            file=file,
        )
    return header_bytes


def _check_metadata(metadata: Any, *, file: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(f"{METADATA_KEY} is not a map from text to text", file=file)


def _read_entry(name: str, raw: Any, *, data_start: int, file: str) -> Tensor:
    if not name or len(name) > NAME_CHARACTERS_LIMIT or not name.isprintable():
        _refuse(f"a tensor has the name {name[:80]!r}", file=file)
    try:
        entry = convert(raw, _HeaderEntry)
    except msgspec.ValidationError as error:
        _refuse(f"tensor {name!r} is not described ({error})", file=file, tensor=name)
    if entry.dtype not in ELEMENT_BYTES:
        raise RejectedAdapterError(
            RejectReason.UNSUPPORTED_DTYPE,
            f"tensor {name!r} has dtype {entry.dtype[:20]!r}",
            file=file,
            tensor=name,
        )
    if len(entry.shape) > DIMENSIONS_LIMIT or not all(0 <= length <= DIMENSION_LIMIT for length in entry.shape):
        _refuse(f"tensor {name!r} has the shape {list(entry.shape)}", file=file, tensor=name)
    begin, end = entry.data_offsets
    expected_bytes = math.prod(entry.shape) * ELEMENT_BYTES[entry.dtype]
    if begin < 0 or end - begin != expected_bytes:
        _refuse(
            f"tensor {name!r} has offsets {begin} to {end}, and its shape and dtype need {expected_bytes} bytes",
            file=file,
            tensor=name,
        )
    return Tensor(name, entry.dtype, entry.shape, data_start + begin, data_start + end)


def _check_cover(tensors: list[Tensor], *, data_start: int, file_bytes: int, file: str) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.begin != position:
            fault = "overlaps the one before it" if tensor.begin < position else "leaves a gap before it"
            _refuse(f"tensor {tensor.name!r} {fault}", file=file, tensor=tensor.name)
        position = tensor.end
    if position != file_bytes:
        fault = "the file is cut short" if position > file_bytes else "there are bytes that belong to no tensor"
        _refuse(f"{fault}: its tensors end at byte {position}, and the file has {file_bytes}", file=file)


def _refuse(detail: str, *, file: str, tensor: str | None = None) -> NoReturn:
    raise RejectedAdapterError(RejectReason.BAD_SAFETENSORS, detail, file=file, tensor=tensor)
