"""The two binary forms that Xet clients upload: xorbs (packed chunks) and shards (which chunks make which file).

Pure functions on bytes; no disk, no HTTP, no trust: every number is checked against what is really there before it is
used. What is wrong raises InvalidValueError. Source: checked against hf_xet 1.1, 1.2, 1.5 and 1.8.

    xorb   n x { u8 version 0, u24 packed bytes, u8 scheme, u24 raw bytes, packed data }   [footer that begins XETBLOB]
    shard  header, n x file, bookend, [parts about xorbs, lookup tables and a footer: not needed, not read]
    file   { hash 32, u32 flags, u32 terms, 8 }
           n x { xorb 32, u32 flags, u32 raw bytes, u32 first chunk, u32 end chunk }
           [n x 48 bytes that prove possession] [sha256 32, 16]

All numbers are little-endian. A hash is four little-endian u64, each of which is printed as 16 hexadecimal digits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate

import lz4.frame
import numpy as np

from registry.errors import InvalidValueError

XORB_RAW_BYTES_LIMIT = 64 << 20
XORB_CHUNKS_LIMIT = 8192
CHUNK_RAW_BYTES_LIMIT = 128 << 10
XORB_BYTES_LIMIT = XORB_RAW_BYTES_LIMIT + (2 << 20)  # chunk headers and a footer come on top of the data
SHARD_BYTES_LIMIT = 64 << 20
SHARD_FILES_LIMIT = 100_000

_CHUNK_HEADER_BYTES = 8
_FOOTER_MARK = b"XETBLOB"
_SHARD_TAG = b"HFRepoMetaData\0UigEj{\x81W\x83\xa5\xbd\xd9\\\xcd\xd1J\xa9"
_SHARD_HEADER = struct.Struct("<32sQQ")
_SHARD_VERSION = 2
_FILE_HEADER = struct.Struct("<32sII8x")
_TERM = struct.Struct("<32sIIII")
_ENTRY_BYTES = 48
_BOOKEND = b"\xff" * 32
_HAS_VERIFICATION = 0x80000000
_HAS_SHA256 = 0x40000000


class Scheme(IntEnum):
    """How a chunk is packed."""

    NONE = 0
    LZ4 = 1
    GROUPED_LZ4 = 2


@dataclass(frozen=True)
class Chunk:
    """Where a chunk's packed data lies in its xorb, and how many bytes it stands for."""

    offset: int
    packed_bytes: int
    scheme: Scheme
    raw_bytes: int


@dataclass(frozen=True)
class Xorb:
    """The chunks of a xorb, in their order. `raw_offsets[i]` is the sum of the raw bytes before chunk i."""

    chunks: tuple[Chunk, ...]
    raw_offsets: tuple[int, ...]

    def raw_bytes(self, first: int, end: int) -> int:
        """The raw size of a range of chunks. Raises InvalidValueError where the xorb has no such range."""
        if not 0 <= first < end <= len(self.chunks):
            raise InvalidValueError("shard", f"it names the chunks {first} to {end} of a xorb of {len(self.chunks)}")
        return self.raw_offsets[end] - self.raw_offsets[first]


@dataclass(frozen=True)
class Term:
    """A run of chunks of one xorb."""

    xorb: str
    raw_bytes: int
    first_chunk: int
    end_chunk: int


@dataclass(frozen=True)
class ShardFile:
    """A file as the terms that make it up, and the SHA-256 that it must have."""

    sha256: str
    terms: tuple[Term, ...]

    @property
    def size(self) -> int:
        """How many bytes the terms say the file has."""
        return sum(term.raw_bytes for term in self.terms)


def hash_to_hex(raw: bytes) -> str:
    """32 bytes as Xet prints a hash."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def parse_xorb(data: bytes | memoryview) -> Xorb:
    """Find the chunks of a xorb, without unpacking any. Raises InvalidValueError."""
    chunks = tuple(_walk_chunks(memoryview(data)))
    if not chunks:
        raise InvalidValueError("xorb", "it has no chunks")
    return Xorb(chunks, tuple(accumulate((chunk.raw_bytes for chunk in chunks), initial=0)))


def unpack_chunk(data: bytes | memoryview, chunk: Chunk) -> bytes:
    """The raw bytes of a chunk; never more are made than its header promised. Raises InvalidValueError."""
    packed = memoryview(data)[chunk.offset : chunk.offset + chunk.packed_bytes]
    if chunk.scheme is Scheme.NONE:
        return bytes(packed)
    raw = _unpack_lz4(packed, chunk.raw_bytes)
    return raw if chunk.scheme is Scheme.LZ4 else _ungroup(raw)


def parse_shard(data: bytes | memoryview) -> tuple[ShardFile, ...]:
    """The files that a shard describes. Raises InvalidValueError."""
    view = memoryview(data)
    if len(view) < _SHARD_HEADER.size:
        raise InvalidValueError("shard", "it is shorter than its header")
    tag, version, _footer_bytes = _SHARD_HEADER.unpack_from(view)
    if tag != _SHARD_TAG or version != _SHARD_VERSION:
        raise InvalidValueError("shard", f"it does not begin as a shard of version {_SHARD_VERSION} does")
    files: list[ShardFile] = []
    at = _SHARD_HEADER.size
    while True:
        _require(view, at, 1)
        file_hash, flags, count = _FILE_HEADER.unpack_from(view, at)
        at += _ENTRY_BYTES
        if file_hash == _BOOKEND:
            return tuple(files)
        if len(files) == SHARD_FILES_LIMIT:
            raise InvalidValueError("shard", f"it describes more than {SHARD_FILES_LIMIT} files")
        has_verification, has_sha256 = bool(flags & _HAS_VERIFICATION), bool(flags & _HAS_SHA256)
        if not has_sha256:
            raise InvalidValueError("shard", "a file in it has no SHA-256")
        proof_entries = count if has_verification else 0
        _require(view, at, count + proof_entries + 1)
        terms = tuple(_parse_term(view, at + index * _ENTRY_BYTES) for index in range(count))
        at += (count + proof_entries) * _ENTRY_BYTES
        files.append(ShardFile(hash_to_hex(bytes(view[at : at + 32])), terms))
        at += _ENTRY_BYTES


def check_terms(file: ShardFile, xorbs: Sequence[Xorb]) -> None:
    """Check each term against its xorb (`xorbs[i]` is that of term i). Raises InvalidValueError."""
    for term, xorb in zip(file.terms, xorbs, strict=True):
        if xorb.raw_bytes(term.first_chunk, term.end_chunk) != term.raw_bytes:
            raise InvalidValueError("shard", f"a term says {term.raw_bytes} bytes, and its chunks have another size")


def _walk_chunks(view: memoryview) -> Iterator[Chunk]:
    at = raw_total = count = 0
    while at < len(view) and view[at : at + len(_FOOTER_MARK)] != _FOOTER_MARK:
        header = bytes(view[at : at + _CHUNK_HEADER_BYTES])
        if len(header) < _CHUNK_HEADER_BYTES or header[0] != 0:
            raise InvalidValueError("xorb", f"at byte {at} there is no chunk of version 0")
        packed_bytes, raw_bytes = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
        at += _CHUNK_HEADER_BYTES
        count += 1
        raw_total += raw_bytes
        _check_chunk(header[4], packed_bytes, raw_bytes, remaining=len(view) - at)
        if count > XORB_CHUNKS_LIMIT or raw_total > XORB_RAW_BYTES_LIMIT:
            limits = f"{XORB_CHUNKS_LIMIT} chunks or {XORB_RAW_BYTES_LIMIT} bytes"
            raise InvalidValueError("xorb", f"it holds more than {limits}")
        yield Chunk(at, packed_bytes, Scheme(header[4]), raw_bytes)
        at += packed_bytes


def _check_chunk(scheme: int, packed_bytes: int, raw_bytes: int, *, remaining: int) -> None:
    if scheme not in set(Scheme):
        raise InvalidValueError("xorb", f"a chunk is packed by the unknown scheme {scheme}")
    if not 0 < raw_bytes <= CHUNK_RAW_BYTES_LIMIT:
        raise InvalidValueError("xorb", f"a chunk of {raw_bytes} bytes is not from 1 to {CHUNK_RAW_BYTES_LIMIT}")
    if packed_bytes > remaining:
        raise InvalidValueError("xorb", "it ends inside of a chunk")
    if scheme == Scheme.NONE and packed_bytes != raw_bytes:
        raise InvalidValueError("xorb", "a chunk that is not packed has two sizes")


def _unpack_lz4(packed: memoryview, raw_bytes: int) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        raw: bytes = decompressor.decompress(packed, max_length=raw_bytes + 1)
    except (RuntimeError, EOFError) as error:
        raise InvalidValueError("xorb", "a chunk is no LZ4 frame") from error
    if len(raw) != raw_bytes or not decompressor.eof or decompressor.unused_data:
        raise InvalidValueError("xorb", f"a chunk does not unpack to the {raw_bytes} bytes that it promises")
    return raw


def _ungroup(grouped: bytes) -> bytes:
    """Undo BG4: the bytes at positions 0, 4, 8..., then those at 1, 5, 9..., then 2 and 3."""
    source = np.frombuffer(grouped, np.uint8)
    raw = np.empty_like(source)
    start = 0
    for position in range(4):
        length = (len(source) - position + 3) // 4
        raw[position::4] = source[start : start + length]
        start += length
    return raw.tobytes()


def _parse_term(view: memoryview, at: int) -> Term:
    xorb, _flags, raw_bytes, first_chunk, end_chunk = _TERM.unpack_from(view, at)
    return Term(hash_to_hex(xorb), raw_bytes, first_chunk, end_chunk)


def _require(view: memoryview, at: int, entries: int) -> None:
    if at + entries * _ENTRY_BYTES > len(view):
        raise InvalidValueError("shard", "it ends before all that it announces")
