"""Blobs and pulls: verified when read, whole or absent, healed by publishing again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import registry
from registry.blobs import STALE_STAGING_SECONDS
from registry.errors import ConflictError, IntegrityError, StorageError
from tests.registry.backends import RegistryPlace

Publish = Callable[..., registry.Version]


def digest_of(version: registry.Version, path: str) -> str:
    return next(file.sha256 for file in version.files if file.path == path)


def flip_bit(raw: bytes) -> bytes:
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1 :]


def cut_short(raw: bytes) -> bytes:
    return raw[:-1]


def lengthen(raw: bytes) -> bytes:
    return raw + b"\0"


def lose(raw: bytes) -> None:
    return None


def test_a_pulled_folder_is_the_published_one(
    reg: registry.Registry, make_adapter: Callable[..., Path], operator: registry.Principal, tmp_path: Path
) -> None:
    folder = make_adapter()
    version = reg.publish(folder, "acme/a", principal=operator)
    destination = tmp_path / "deep" / "down" / "here"
    assert reg.pull(version, destination) == destination
    assert {path.name: path.read_bytes() for path in destination.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    reg.check_integrity()


def test_a_pull_into_what_is_there(
    reg: registry.Registry, publish: Publish, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    version, other = publish(), publish()
    destination = tmp_path / "out"
    destination.mkdir()
    reg.pull(version, destination)
    assert reg.pull(version, destination) == destination, "the same version again is verified and left"
    with pytest.raises(ConflictError, match="other files than acme/text2sql@2"):
        reg.pull(other, destination)
    weights = destination / "adapter_model.safetensors"
    weights.write_bytes(flip_bit(weights.read_bytes()))
    with pytest.raises(ConflictError):
        reg.pull(version, destination)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConflictError, match="not a folder"):
        reg.pull(version, tmp_path / "file")
    (tmp_path / "below").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConflictError, match="not a folder"):
        reg.pull(version, tmp_path / "below")
    with pytest.raises(StorageError, match="cannot be written"):
        reg.pull(version, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list(tmp_path.glob(".*.partial"))


def test_the_working_directory_is_not_replaced(
    reg: registry.Registry, publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = publish()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConflictError, match="working directory"):
        reg.pull(version, Path())
    reg.pull(version, Path("below"))


def test_pulls_into_one_folder_at_once_all_succeed(reg: registry.Registry, publish: Publish, tmp_path: Path) -> None:
    version = publish()
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(lambda _: reg.pull(version, tmp_path / "cache" / "digest"), range(8)))
    assert set(folders) == {tmp_path / "cache" / "digest"}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["digest"]


@pytest.mark.parametrize("damage", [flip_bit, cut_short, lengthen, lose])
@pytest.mark.parametrize("path", ["adapter_config.json", "adapter_model.safetensors", "loraplex.json"])
def test_a_damaged_blob_is_never_handed_out(
    reg: registry.Registry,
    place: RegistryPlace,
    publish: Publish,
    tmp_path: Path,
    path: str,
    damage: Callable[[bytes], bytes | None],
) -> None:
    version = publish()
    sha256 = digest_of(version, path)
    sound = place.read_blob(sha256)
    damaged = damage(sound)
    if damaged is None:
        place.remove_blob(sha256)
    else:
        place.write_blob(sha256, damaged)
    with pytest.raises(IntegrityError) as caught:
        reg.pull(version, tmp_path / "out")
    assert caught.value.expected == sha256
    assert (caught.value.found is None) == (damaged is None)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.partial"))
    with pytest.raises(IntegrityError):
        reg.check_integrity()
    place.write_blob(sha256, sound)
    reg.check_integrity()


def test_swapped_blobs_are_found(
    reg: registry.Registry, place: RegistryPlace, publish: Publish, tmp_path: Path
) -> None:
    one, two = publish(), publish()
    path = "adapter_model.safetensors"
    place.write_blob(digest_of(one, path), place.read_blob(digest_of(two, path)))
    with pytest.raises(IntegrityError):
        reg.pull(one, tmp_path / "out")
    reg.pull(two, tmp_path / "out")


def test_publishing_again_heals_a_damaged_blob(
    reg: registry.Registry,
    place: RegistryPlace,
    make_adapter: Callable[..., Path],
    operator: registry.Principal,
    tmp_path: Path,
) -> None:
    folder = make_adapter()
    version = reg.publish(folder, "acme/a", principal=operator)
    sha256 = digest_of(version, "adapter_model.safetensors")
    place.write_blob(sha256, flip_bit(place.read_blob(sha256)))
    assert reg.publish(folder, "acme/a", principal=operator) == version
    reg.pull(version, tmp_path / "out")
    reg.check_integrity()


def test_equal_files_are_kept_once(reg: registry.Registry, place: RegistryPlace, publish: Publish) -> None:
    publish()
    publish()
    assert len(place.blob_names()) == 4, "two weights, one config, one manifest"


def test_an_old_staging_folder_is_removed_when_the_registry_is_opened(tmp_path: Path) -> None:
    registry.open(tmp_path / "registry").close()
    staging = tmp_path / "registry" / "blobs" / "staging"
    for name, age_seconds in (("old", STALE_STAGING_SECONDS + 60), ("young", 60)):
        (staging / name).mkdir()
        (staging / name / "file").write_text("left by a crash")
        os.utime(staging / name, (time.time() - age_seconds,) * 2)
    registry.open(tmp_path / "registry").close()
    assert [path.name for path in staging.iterdir()] == ["young"]


@pytest.mark.sqlite_only
def test_a_full_disk_is_an_error_that_changes_nothing(
    reg: registry.Registry, publish: Publish, make_adapter: Callable[..., Path], operator: registry.Principal
) -> None:
    """A file stands where the blobs' folder of a digest must be made, as if the file system had refused it."""
    before = publish()
    folder = make_adapter(seed=99)
    version = reg.publish(folder, "acme/probe", principal=operator)
    sha256 = digest_of(version, "adapter_model.safetensors")
    assert reg.folder is not None
    weights = reg.folder / "blobs" / sha256[:2] / sha256
    weights.unlink()
    weights.parent.rmdir()
    weights.parent.write_text("in the way")
    with pytest.raises(StorageError, match="Check that the disk has room"):
        reg.publish(folder, "acme/text2sql", principal=operator)
    assert reg.list_versions("acme/text2sql", operator) == [before]
    weights.parent.unlink()
    assert reg.publish(folder, "acme/text2sql", principal=operator).number == 2
    reg.check_integrity()
