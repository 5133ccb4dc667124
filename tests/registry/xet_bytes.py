"""Writes small xorbs and shards, sound ones and others: the plain reference of what registry.hub.xet_format reads."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

import lz4.frame

from registry.hub.xet_format import Scheme

SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("556967456a7b815783a5bdd95ccdd14aa9")
Term = tuple[str, int, int, int]


def group(content: bytes) -> bytes:
    """BG4: the bytes at positions 0, 4, 8..., then those at 1, 5, 9..., then 2 and 3."""
    return b"".join(content[position::4] for position in range(4))


def packed_chunk(content: bytes, scheme: Scheme = Scheme.NONE) -> bytes:
    """One chunk with its header."""
    packed = content
    if scheme is not Scheme.NONE:
        packed = lz4.frame.compress(group(content) if scheme is Scheme.GROUPED_LZ4 else content)
    sizes = (len(packed).to_bytes(3, "little"), len(content).to_bytes(3, "little"))
    return b"\0" + sizes[0] + bytes([scheme]) + sizes[1] + packed


def xorb(chunks: Iterable[bytes], scheme: Scheme = Scheme.NONE) -> bytes:
    """A xorb of these chunks."""
    return b"".join(packed_chunk(chunk, scheme) for chunk in chunks)


def term(xorb_hash: str, raw_bytes: int, first: int, end: int) -> Term:
    """A run of chunks."""
    return (xorb_hash, raw_bytes, first, end)


def shard(files: Iterable[tuple[str, Sequence[Term]]], *, verified: bool = True) -> bytes:
    """A shard of files, each given by the SHA-256 it claims and its terms."""
    parts = [struct.pack("<32sQQ", SHARD_TAG, 2, 0)]
    for sha256, terms in files:
        flags = 0x40000000 | (0x80000000 if verified else 0)
        parts.append(struct.pack("<32sII8x", bytes(32), flags, len(terms)))
        parts += [struct.pack("<32sIIII", hex_to_hash(name), 0, size, first, end) for name, size, first, end in terms]
        if verified:
            parts += [bytes(48)] * len(terms)
        parts.append(hex_to_hash(sha256) + bytes(16))
    return b"".join([*parts, b"\xff" * 32 + bytes(16)])


def hex_to_hash(text: str) -> bytes:
    """The 32 bytes of a printed hash."""
    return struct.pack("<4Q", *(int(text[at : at + 16], 16) for at in range(0, 64, 16)))


def shard_of(contents: Iterable[tuple[bytes, Sequence[Term]]]) -> bytes:
    """A shard of files that claim the digests that they really have."""
    return shard([(hashlib.sha256(content).hexdigest(), terms) for content, terms in contents])
