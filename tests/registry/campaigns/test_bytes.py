"""Torn, flipped, swapped and lost bytes: each is found before it is used, by pull and by fsck, on each store."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import registry
from registry.errors import IntegrityError, RegistryError
from tests.registry.adapter_folders import config_document, lora_tensors, modules_named
from tests.registry.backends import FolderPlace, RegistryPlace
from tests.registry.campaigns.state import OPERATOR

WEIGHTS = "adapter_model.safetensors"
CHUNK_BYTES = 1 << 20
PAGE_BYTES = 4096
RANK = 600
"""Weights of more than two chunks, so that boundaries lie inside."""

Damage = Callable[[bytes], bytes]


def flip(position: int, bit: int = 0) -> Damage:
    def apply(raw: bytes) -> bytes:
        changed = bytearray(raw)
        changed[position] ^= 1 << bit
        return bytes(changed)

    return apply


def damages(size: int, *, seed: int, flips: int) -> dict[str, Damage]:
    """Bits at the edges of the file and of each chunk, and anywhere; cuts at the same places; more bytes; zeros."""
    chance = random.Random(seed)
    edges = [0, 1, 7, 8, size // 2, size - 2, size - 1]
    edges += [edge + step for edge in range(CHUNK_BYTES, size, CHUNK_BYTES) for step in (-1, 0)]
    places = edges + [chance.randrange(size) for _ in range(flips)]
    made: dict[str, Damage] = {f"bit of byte {place}": flip(place, chance.randrange(8)) for place in places}
    made |= {f"cut at {place}": lambda raw, place=place: raw[:place] for place in edges}
    made["a byte more"] = lambda raw: raw + b"\0"
    made["a page of zeros"] = lambda raw: raw[:PAGE_BYTES] + bytes(PAGE_BYTES) + raw[2 * PAGE_BYTES :]
    made["two pages swapped"] = lambda raw: raw[PAGE_BYTES : 2 * PAGE_BYTES] + raw[:PAGE_BYTES] + raw[2 * PAGE_BYTES :]
    made["nothing"] = lambda raw: b""
    return made


def is_found(place: RegistryPlace, version: registry.Version, destination: Path) -> None:
    """A registry that was opened after the damage delivers nothing of it, and fsck names it."""
    with place.open() as opened:
        with pytest.raises(IntegrityError):
            opened.pull(version, destination)
        assert not destination.exists()
        assert [fault.kind.value for fault in opened.fsck().faults] in (["damaged-blob"], ["missing-blob"])


def check_all(
    place: RegistryPlace,
    reg: registry.Registry,
    make_adapter: Callable[..., Path],
    tmp_path: Path,
    *,
    flips: int,
    stride: int,
) -> int:
    tensors = lora_tensors(modules_named("q_proj", "v_proj"), rank=RANK)
    version = reg.publish(make_adapter(tensors=tensors, config=config_document(r=RANK)), "acme/a", principal=OPERATOR)
    other = reg.publish(make_adapter(seed=1), "acme/a", principal=OPERATOR)
    found = 0
    for file in version.files:
        sound = place.read_blob(file.sha256)
        for what, damage in list(damages(file.size, seed=file.size, flips=flips).items())[::stride]:
            damaged = damage(sound)
            if damaged == sound:
                continue
            place.write_blob(file.sha256, damaged)
            is_found(place, version, tmp_path / "out")
            found += 1
            assert what
        place.remove_blob(file.sha256)
        is_found(place, version, tmp_path / "out")
        place.write_blob(file.sha256, sound)
    weights = {v.number: next(file.sha256 for file in v.files if file.path == WEIGHTS) for v in (version, other)}
    sound = [place.read_blob(weights[number]) for number in (1, 2)]
    place.write_blob(weights[1], sound[1])
    is_found(place, version, tmp_path / "out")
    place.write_blob(weights[1], sound[0])
    with place.open() as opened:
        assert opened.fsck().faults == []
        opened.pull(version, tmp_path / "sound")
    return found + len(version.files) + 1


def test_damaged_blobs_are_found(
    place: RegistryPlace, reg: registry.Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    assert check_all(place, reg, make_adapter, tmp_path, flips=1, stride=5) > 12


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_very_many_damaged_blobs_are_found(
    place: RegistryPlace, reg: registry.Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    print(place.name, check_all(place, reg, make_adapter, tmp_path, flips=200, stride=1))


def test_damage_after_the_first_read_is_found_when_a_folder_is_pulled(
    place: RegistryPlace, reg: registry.Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """A pull verifies what it writes each time, however often the blob was read before."""
    version = reg.publish(make_adapter(), "acme/a", principal=OPERATOR)
    reg.pull(version, tmp_path / "before")
    for file in version.files:
        sound = place.read_blob(file.sha256)
        place.write_blob(file.sha256, flip(file.size // 2)(sound))
        with pytest.raises(IntegrityError):
            reg.pull(version, tmp_path / "after")
        place.write_blob(file.sha256, sound)
    reg.pull(version, tmp_path / "after")


def test_a_damaged_catalog_answers_nothing_wrong(
    sqlite_place: FolderPlace, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Pages overwritten and the file cut: an error of ours or the right answer, never another one, never a crash."""
    with sqlite_place.open() as opened:
        versions = [opened.publish(make_adapter(seed=seed), "acme/a", principal=OPERATOR) for seed in range(3)]
        digests = {version.digest for version in versions}
    catalog = sqlite_place.where / "catalog.sqlite"
    sound = catalog.read_bytes()
    chance = random.Random(8)
    refused = 0
    for turn in range(24):
        raw = bytearray(sound)
        if turn % 3 == 0:
            del raw[chance.randrange(100, len(raw)) :]
        else:
            page = PAGE_BYTES * chance.randrange(len(raw) // PAGE_BYTES)
            raw[page : page + PAGE_BYTES] = chance.randbytes(PAGE_BYTES) if turn % 3 == 1 else bytes(PAGE_BYTES)
        catalog.write_bytes(raw)
        for suffix in ("-wal", "-shm"):
            catalog.with_name(catalog.name + suffix).unlink(missing_ok=True)
        try:
            with registry.open(sqlite_place.where) as opened:
                for version in opened.list_versions("acme/a", OPERATOR):
                    assert version.digest in digests
                    opened.pull(version, tmp_path / f"out-{turn}-{version.number}")
        except RegistryError:
            refused += 1
    assert refused > 0
