"""fsck: every damaged byte is found, every broken invariant is named, and what can be mended safely is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import registry
from registry.errors import IntegrityError, StorageError
from registry.fsck_report import FaultKind
from tests.registry.backends import FolderPlace, RegistryPlace

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()
A = "acme/text2sql"
PATHS = ("adapter_config.json", "adapter_model.safetensors", "loraplex.json")


def blob_of(version: registry.Version, path: str) -> str:
    return next(file.sha256 for file in version.files if file.path == path)


@pytest.mark.sqlite_only
def test_a_sound_registry(reg: registry.Registry, publish: Publish) -> None:
    publish()
    publish()
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    seen: list[tuple[int, int]] = []
    report = reg.fsck(on_blob=lambda done, total: seen.append((done, total)))
    assert report.is_sound
    assert (report.blobs, report.orphans) == (4, 0)
    assert seen == [(number, 4) for number in range(1, 5)]
    assert report.blob_bytes == reg.usage("acme").used_bytes


@pytest.mark.parametrize("damage", ["flip-first", "flip-last", "cut-short", "empty", "longer", "other-blob", "missing"])
@pytest.mark.sqlite_only
def test_damage_to_each_file_is_found_with_what_it_hurts(
    reg: registry.Registry, publish: Publish, place: RegistryPlace, damage: str, tmp_path: Path
) -> None:
    version = publish()
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    reg.pull(version, tmp_path / "warm")  # which this process has verified: it is found all the same
    for path in PATHS:
        blob = blob_of(version, path)
        raw = place.read_blob(blob)
        if damage == "missing":
            place.remove_blob(blob)
        else:
            other = place.read_blob(blob_of(version, PATHS[(PATHS.index(path) + 1) % 3]))
            changed = {
                "flip-first": bytes([raw[0] ^ 1]) + raw[1:],
                "flip-last": raw[:-1] + bytes([raw[-1] ^ 0x80]),
                "cut-short": raw[:-1],
                "empty": b"",
                "longer": raw + b"\0",
                "other-blob": other,
            }
            place.write_blob(blob, changed[damage])
        (fault,) = reg.fsck().faults
        assert fault.kind is (FaultKind.MISSING_BLOB if damage == "missing" else FaultKind.DAMAGED_BLOB)
        assert fault.hurts == (f"{A}@1 (prod)",)
        assert blob in fault.detail
        with pytest.raises(IntegrityError):
            reg.check_integrity()
        assert len(reg.fsck(repair=True).faults) == 1, "bytes are not made up"
        place.write_blob(blob, raw)
        assert reg.fsck().is_sound


def test_damage_in_either_store_is_found(reg: registry.Registry, publish: Publish, place: RegistryPlace) -> None:
    version = publish()
    flipped, lost = blob_of(version, PATHS[1]), blob_of(version, PATHS[0])
    raw = bytearray(place.read_blob(flipped))
    raw[len(raw) // 2] ^= 4
    place.write_blob(flipped, bytes(raw))
    place.remove_blob(lost)
    kinds = {fault.detail.split()[1]: fault.kind for fault in reg.fsck().faults}
    assert kinds == {flipped: FaultKind.DAMAGED_BLOB, lost: FaultKind.MISSING_BLOB}


@pytest.mark.sqlite_only
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_found(
    reg: registry.Registry, publish: Publish, place: FolderPlace, data: st.DataObject
) -> None:
    version = reg.list_versions(A, OPERATOR)[0] if reg.list_adapters(OPERATOR) else publish()
    blob = blob_of(version, data.draw(st.sampled_from(PATHS)))
    raw = place.read_blob(blob)
    damaged = bytearray(raw)
    damaged[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    place.write_blob(blob, bytes(damaged))
    try:
        assert [fault.kind for fault in reg.fsck().faults] == [FaultKind.DAMAGED_BLOB]
    finally:
        place.write_blob(blob, raw)


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE adapters SET last_number = 3", "has given 3 numbers, and version 3 is not either there or deleted"),
        ("UPDATE adapters SET last_number = 1", "has given 1 numbers, and version 2 is not"),
        ("UPDATE versions SET number = 7 WHERE number = 1", "version 1 is not"),
        ("UPDATE version_files SET size = size + 1 WHERE path = 'loraplex.json'", "which its files do not have"),
        ("DELETE FROM version_files WHERE path = 'loraplex.json'", "which its files do not have"),
        ("UPDATE aliases SET version_id = (SELECT id FROM versions WHERE number = 2)", "its last move did not take it"),
        ("DELETE FROM aliases", "alias prod of adapter 1 was moved and is not there"),
        ("DELETE FROM alias_moves", "its last move did not take it"),
        ("DELETE FROM commit_files WHERE path = 'loraplex.json'", "its loraplex.json is another"),
        ("DELETE FROM tenant_blobs", "acme has no record of blob"),
        ("UPDATE tenants SET used_bytes = used_bytes + 1", "Correct it with `loraplex fsck --repair`"),
        ("UPDATE tenants SET used_versions = 0", "Correct it with `loraplex fsck --repair`"),
        ("UPDATE audit_events SET actor = 'nobody' WHERE id = 1", "row 1 was changed"),
        ("UPDATE commits SET version_id = (SELECT id FROM versions WHERE number = 1)", "is said to be a version"),
    ],
)
@pytest.mark.sqlite_only
def test_a_broken_invariant_is_named(
    reg: registry.Registry, publish: Publish, place: RegistryPlace, statement: str, fault: str
) -> None:
    publish()
    publish()
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    place.execute(statement, triggers=False)
    faults = reg.fsck().faults
    assert any(fault in found.detail for found in faults), faults
    with pytest.raises(StorageError):
        reg.check_integrity()


def test_what_can_be_mended_is(reg: registry.Registry, publish: Publish, place: RegistryPlace) -> None:
    publish()
    place.execute("DELETE FROM tenant_blobs WHERE size > 2000", triggers=False)
    place.execute("UPDATE tenants SET used_versions = 9", triggers=False)
    assert not reg.fsck().is_sound
    report = reg.fsck(repair=True)
    assert report.is_sound, report.faults
    assert len(report.repaired) == 2
    assert reg.usage("acme").used_versions == 1
    again = reg.fsck(repair=True)
    assert again.repaired == []
    reg.check_integrity()


@pytest.mark.sqlite_only
def test_an_orphan_is_waste_and_no_fault(reg: registry.Registry, publish: Publish) -> None:
    publish()
    with reg.blobs.receive() as writer:
        writer.write(b"nobody's")
        writer.finish()
    report = reg.fsck()
    assert report.is_sound
    assert (report.orphans, report.orphan_bytes) == (1, 8)
    assert reg.fsck(repair=True).orphans == 1, "the grace period holds it"
