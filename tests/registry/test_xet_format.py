"""Xorbs and shards: what real clients sent is read right, and whatever else arrives is refused, cheaply."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import InvalidValueError
from registry.hub.xet_format import (
    CHUNK_RAW_BYTES_LIMIT,
    XORB_CHUNKS_LIMIT,
    Scheme,
    check_terms,
    hash_to_hex,
    parse_shard,
    parse_xorb,
    unpack_chunk,
)
from tests.registry.golden_xet import FOLDER, originals
from tests.registry.xet_bytes import group, hex_to_hash, packed_chunk, shard, term, xorb

RELEASES = sorted(FOLDER.iterdir())
BROKEN_LENGTHS = [0, 1, 7, 8, 47, 48, 95, 96]


def read_release(folder: Path) -> list[bytes]:
    """Every file that the shards of a recorded upload describe, put together again."""
    xorbs = {path.name: path.read_bytes() for path in folder.iterdir() if len(path.name) == 64}
    files = []
    for path in sorted(folder.glob("shard-*")):
        for file in parse_shard(path.read_bytes()):
            parsed = {term.xorb: parse_xorb(xorbs[term.xorb]) for term in file.terms}
            check_terms(file, [parsed[term.xorb] for term in file.terms])
            content = b"".join(
                unpack_chunk(xorbs[term.xorb], chunk)
                for term in file.terms
                for chunk in parsed[term.xorb].chunks[term.first_chunk : term.end_chunk]
            )
            assert hashlib.sha256(content).hexdigest() == file.sha256
            assert len(content) == file.size
            files.append(content)
    return files


@pytest.mark.parametrize("folder", RELEASES, ids=lambda folder: folder.name)
def test_what_hf_xet_sent_gives_the_files_again(folder: Path) -> None:
    assert sorted(read_release(folder)) == sorted(originals().values())


def test_the_golden_uploads_use_every_scheme() -> None:
    for folder in RELEASES:
        packed = [parse_xorb(path.read_bytes()) for path in folder.iterdir() if len(path.name) == 64]
        assert {chunk.scheme for parsed in packed for chunk in parsed.chunks} == set(Scheme)
    assert len(RELEASES) >= 3


@given(st.binary(min_size=32, max_size=32))
def test_a_hash_and_its_printed_form_are_one(raw: bytes) -> None:
    assert hex_to_hash(hash_to_hex(raw)) == raw
    assert len(hash_to_hex(raw)) == 64


def test_a_hash_is_printed_as_four_little_endian_words() -> None:
    assert hash_to_hex(bytes(range(32))) == "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"


@given(st.binary(min_size=1, max_size=3000), st.sampled_from(Scheme))
def test_a_chunk_unpacks_to_what_was_packed(content: bytes, scheme: Scheme) -> None:
    data = packed_chunk(content, scheme)
    (chunk,) = parse_xorb(data).chunks
    assert unpack_chunk(data, chunk) == content


@given(st.binary(max_size=40))
def test_grouping_is_undone_at_every_length(content: bytes) -> None:
    grouped = group(content)
    plain = bytes(sorted(grouped))
    assert plain == bytes(sorted(content))
    for index, byte in enumerate(content):  # byte 4k + i lies at place k of group i
        before = sum((len(content) - earlier + 3) // 4 for earlier in range(index % 4))
        assert grouped[before + index // 4] == byte


def test_a_footer_ends_the_chunks() -> None:
    data = xorb([b"one", b"two"]) + b"XETBLOB" + b"\1" * 200
    assert [chunk.raw_bytes for chunk in parse_xorb(data).chunks] == [3, 3]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"XETBLOB", id="only a footer"),
        pytest.param(struct.pack("<BHBBHB", 0, 9, 0, 0, 9, 0) + b"short", id="ends in a chunk"),
        pytest.param(struct.pack("<BHBBHB", 0, 1, 0, 0, 1, 0)[:5], id="ends in a header"),
        pytest.param(struct.pack("<BHBBHB", 1, 1, 0, 0, 1, 0) + b"x", id="version 1"),
        pytest.param(struct.pack("<BHBBHB", 0, 1, 0, 3, 1, 0) + b"x", id="unknown scheme"),
        pytest.param(struct.pack("<BHBBHB", 0, 1, 0, 0, 0, 0) + b"x", id="no raw bytes"),
        pytest.param(struct.pack("<BHBBHB", 0, 1, 0, 0, 2, 0) + b"x", id="two sizes"),
        pytest.param(struct.pack("<BHBBHB", 0, 1, 0, 1, 1, 2) + b"x", id="more than 128 KiB"),
    ],
)
def test_a_xorb_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidValueError, match="xorb"):
        parse_xorb(data)


def test_a_xorb_has_bounds_on_chunks_and_on_raw_bytes() -> None:
    one = struct.pack("<BHBBHB", 0, 1, 0, 0, 1, 0) + b"x"
    assert len(parse_xorb(one * XORB_CHUNKS_LIMIT).chunks) == XORB_CHUNKS_LIMIT
    with pytest.raises(InvalidValueError, match="more than"):
        parse_xorb(one * (XORB_CHUNKS_LIMIT + 1))
    full = struct.pack("<BHBBHB", 0, 4, 0, 1, 0, 2) + b"lz4?"  # it says 128 KiB
    assert len(parse_xorb(full * 512).chunks) == 512
    with pytest.raises(InvalidValueError, match="more than"):
        parse_xorb(full * 513)


def test_a_chunk_never_unpacks_to_more_than_it_promised() -> None:
    bomb = lz4.frame.compress(bytes(20 << 20))
    data = struct.pack("<I", len(bomb) << 8) + bytes([Scheme.LZ4]) + CHUNK_RAW_BYTES_LIMIT.to_bytes(3, "little") + bomb
    (chunk,) = parse_xorb(data).chunks
    with pytest.raises(InvalidValueError, match="promises"):
        unpack_chunk(data, chunk)


@pytest.mark.parametrize("change", ["longer", "shorter", "garbage after", "cut", "no frame"])
def test_a_chunk_must_be_one_whole_frame(change: str) -> None:
    packed = lz4.frame.compress(b"some content" * 20)
    said = {"longer": 239, "shorter": 241}.get(change, 240)
    packed = {"garbage after": packed + b"!", "cut": packed[:-5], "no frame": b"?" * 40}.get(change, packed)
    data = struct.pack("<I", len(packed) << 8) + bytes([Scheme.LZ4]) + said.to_bytes(3, "little") + packed
    (chunk,) = parse_xorb(data).chunks
    with pytest.raises(InvalidValueError):
        unpack_chunk(data, chunk)


def test_terms_must_fit_their_xorb() -> None:
    packed = parse_xorb(xorb([b"12345", b"678", b"9"]))
    for first, end, size, is_right in [
        (0, 3, 9, True),
        (1, 2, 3, True),
        (0, 3, 8, False),
        (0, 4, 9, False),
        (2, 2, 0, False),
        (3, 1, 0, False),
        (0xFFFFFFFF, 0, 0, False),
    ]:
        (file,) = parse_shard(shard([("ab" * 32, [term("cd" * 32, size, first, end)])]))
        if is_right:
            check_terms(file, [packed])
        else:
            with pytest.raises(InvalidValueError, match="shard"):
                check_terms(file, [packed])


def test_a_shard_without_files_is_empty_and_what_follows_is_not_read() -> None:
    assert parse_shard(shard([])) == ()
    (file,) = parse_shard(shard([("12" * 32, [])]) + b"anything at all")
    assert file.sha256 == "12" * 32
    assert file.size == 0


@pytest.mark.parametrize("verified", [True, False])
def test_proofs_of_possession_are_stepped_over(verified: bool) -> None:
    files = [("ab" * 32, [term("cd" * 32, 5, 0, 1), term("ef" * 32, 6, 2, 3)]), ("34" * 32, [])]
    assert [file.size for file in parse_shard(shard(files, verified=verified))] == [11, 0]


def test_a_file_without_a_digest_is_refused() -> None:
    data = bytearray(shard([("ab" * 32, [term("cd" * 32, 5, 0, 1)])]))
    data[48 + 32 : 48 + 36] = struct.pack("<I", 0x80000000)
    with pytest.raises(InvalidValueError, match="SHA-256"):
        parse_shard(bytes(data))


def test_a_shard_that_announces_more_than_it_has_is_refused_at_once() -> None:
    data = bytearray(shard([("ab" * 32, [term("cd" * 32, 5, 0, 1)])]))
    data[48 + 36 : 48 + 40] = struct.pack("<I", 0xFFFFFFFF)
    with pytest.raises(InvalidValueError, match="ends before"):
        parse_shard(bytes(data))


@pytest.mark.parametrize("length", BROKEN_LENGTHS)
def test_a_cut_shard_is_refused(length: int) -> None:
    with pytest.raises(InvalidValueError, match="shard"):
        parse_shard(shard([("ab" * 32, [term("cd" * 32, 5, 0, 1)])])[:length])


def _readable(reader: object, data: bytes) -> bool:
    try:
        reader(data)  # type: ignore[operator]
    except InvalidValueError:
        return False
    return True


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(RELEASES), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=6), st.data())
def test_changed_bytes_are_read_or_refused_and_nothing_else(
    folder: Path, changes: Sequence[tuple[int, int]], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    content = bytearray((folder / name).read_bytes())
    for at, byte in changes:
        content[at % len(content)] = byte
    content = content[: data.draw(st.integers(0, len(content)))]

    def read_all(raw: bytes) -> None:
        for chunk in parse_xorb(raw).chunks:
            assert len(unpack_chunk(raw, chunk)) == chunk.raw_bytes

    _readable(parse_shard if name.startswith("shard") else read_all, bytes(content))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    _readable(parse_shard, content)
    _readable(parse_shard, shard([])[:48] + content)
    _readable(parse_xorb, content)
