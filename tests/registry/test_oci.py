"""OCI layouts: what the image-spec demands of them, the way back, and layouts of an enemy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import registry
from registry import Principal
from registry.errors import ArchiveError, ConflictError
from registry.oci import ARTIFACT_TYPE, MANIFEST_TYPE, REF_NAME, TITLE, export_layout, import_layout
from tests.registry.adapter_folders import FINGERPRINT, write_adapter

Publish = Callable[..., registry.Version]
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")


@pytest.fixture
def other(tmp_path: Path, new_registry: Path) -> Iterator[registry.Registry]:
    shutil.copytree(new_registry, tmp_path / "other")
    with registry.open(tmp_path / "other") as opened:
        yield opened


def fill(reg: registry.Registry, publish: Callable[[str], object], layout: Path) -> Path:
    """Export two versions of acme/text2sql, the first of them in production."""
    operator = Principal.operator()
    publish("first")
    publish("second")
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    reg.promote("acme/text2sql@2", "v1", principal=operator)
    export_layout(reg, "acme/text2sql", layout, principal=operator, all_versions=True)
    return layout


@pytest.fixture
def fresh_layout(reg: registry.Registry, publish: Publish, tmp_path: Path) -> Path:
    return fill(reg, lambda message: publish(message=message), tmp_path / "layout")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, new_registry: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(new_registry, folder / "registry")
    with registry.open(folder / "registry") as reg:

        def publish(message: str) -> None:
            source = write_adapter(folder / message, seed=len(message))
            reg.publish(source, "acme/text2sql", principal=Principal.operator(), message=message)

        return fill(reg, publish, folder / "layout")


@pytest.fixture
def layout(exported: Path, tmp_path: Path) -> Path:
    """The layout, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "layout"))


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def blob_of(layout: Path, descriptor: dict[str, Any]) -> Path:
    algorithm, _, hexadecimal = descriptor["digest"].partition(":")
    return layout / "blobs" / algorithm / hexadecimal


def check_descriptor(layout: Path, descriptor: dict[str, Any]) -> bytes:
    """image-spec 1.1, descriptor.md: the required properties, and content that is what they say."""
    assert MEDIA_TYPE.fullmatch(descriptor["mediaType"])
    content = blob_of(layout, descriptor).read_bytes()
    assert descriptor["size"] == len(content)
    assert descriptor["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
    assert all(isinstance(value, str) for value in descriptor.get("annotations", {}).values())
    return content


@pytest.mark.sqlite_only
def test_the_layout_is_what_the_specification_says(
    reg: registry.Registry, fresh_layout: Path, operator: Principal
) -> None:
    layout = fresh_layout
    assert read_json(layout / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = read_json(layout / "index.json")
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    tags = {}
    reached = set()
    for described in index["manifests"]:
        manifest = json.loads(check_descriptor(layout, described))
        tag = described["annotations"][REF_NAME]
        assert TAG.fullmatch(tag)
        assert tag not in tags
        tags[tag] = manifest["annotations"]["org.opencontainers.image.version"]
        assert described["mediaType"] == manifest["mediaType"] == MANIFEST_TYPE
        assert described["artifactType"] == manifest["artifactType"] == ARTIFACT_TYPE
        assert manifest["schemaVersion"] == 2
        check_descriptor(layout, manifest["config"])
        version = reg.resolve(f"acme/text2sql@{tags[tag]}", principal=operator)
        titles = {layer["annotations"][TITLE]: layer["digest"] for layer in manifest["layers"]}
        assert titles == {file.path: f"sha256:{file.sha256}" for file in version.files}
        for layer in manifest["layers"]:
            check_descriptor(layout, layer)
        assert manifest["annotations"]["ai.loraplex.base.fingerprint"] == FINGERPRINT
        assert manifest["annotations"]["ai.loraplex.digest"] == version.digest
        reached |= {described["digest"], manifest["config"]["digest"], *titles.values()}
    assert tags == {"v1": "1", "v2": "2", "prod": "1"}, "the alias v1 gives way to the version"
    assert {f"sha256:{path.name}" for path in (layout / "blobs" / "sha256").iterdir()} == reached


def test_there_and_back(
    reg: registry.Registry, other: registry.Registry, fresh_layout: Path, operator: Principal
) -> None:
    layout = fresh_layout
    done = import_layout(other, layout, principal=operator, name="globex/copy")
    assert [each.number for each in done.versions] == [1, 2]
    for number in (1, 2):
        version = reg.resolve(f"acme/text2sql@{number}", principal=operator)
        found = other.resolve(f"globex/copy@{number}", principal=operator)
        assert (found.digest, found.message) == (version.digest, version.message)
    assert other.aliases("globex/copy", operator) == {}


@pytest.mark.sqlite_only
def test_the_same_content_has_the_same_bytes(
    reg: registry.Registry, fresh_layout: Path, operator: Principal, tmp_path: Path
) -> None:
    layout = fresh_layout
    export_layout(reg, "acme/text2sql", tmp_path / "again", principal=operator, all_versions=True)
    first, second = (
        {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (layout, tmp_path / "again")
    )
    assert first == second
    with pytest.raises(ConflictError):
        export_layout(reg, "acme/text2sql", layout, principal=operator)


def test_a_layout_that_skopeo_has_copied(other: registry.Registry, layout: Path, operator: Principal) -> None:
    """It writes an index of its own, without its type and without what is artifacts' own."""
    index = read_json(layout / "index.json")
    kept = [
        {key: each[key] for key in ("mediaType", "digest", "size")} | {"annotations": {REF_NAME: "v2"}}
        for each in index["manifests"]
        if each["annotations"][REF_NAME] == "v2"
    ]
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": kept}))
    done = import_layout(other, layout, principal=operator)
    assert [(each.number, each.publication.version.number) for each in done.versions] == [(2, 1)]


def some_blob(layout: Path, kind: str) -> Path:
    manifest = read_json(blob_of(layout, read_json(layout / "index.json")["manifests"][0]))
    if kind == "manifest":
        return blob_of(layout, read_json(layout / "index.json")["manifests"][0])
    return blob_of(layout, manifest["config"] if kind == "config" else manifest["layers"][1])


@pytest.mark.parametrize("kind", ["manifest", "config", "layer"])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "remove", "link", "pipe"])
def test_damaged_blobs_are_found(
    other: registry.Registry, layout: Path, operator: Principal, tmp_path: Path, kind: str, damage: str
) -> None:
    blob = some_blob(layout, kind)
    content = blob.read_bytes()
    blob.unlink()
    if damage == "flip":
        blob.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "cut":
        blob.write_bytes(content[:-1])
    elif damage == "grow":
        blob.write_bytes(content + b" ")
    elif damage == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        blob.symlink_to(tmp_path / "elsewhere")
    elif damage == "pipe":
        os.mkfifo(blob)
    with pytest.raises(ArchiveError):
        import_layout(other, layout, principal=operator)
    assert other.list_adapters(operator) == []


def rewrite(layout: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the first manifest and its config, with digests that fit."""
    index = read_json(layout / "index.json")
    manifest = read_json(blob_of(layout, index["manifests"][0]))
    config = read_json(blob_of(layout, manifest["config"]))
    change(manifest, config)
    manifest["config"] |= put(layout, config)
    index["manifests"] = [index["manifests"][0] | put(layout, manifest)]
    (layout / "index.json").write_text(json.dumps(index))


def put(layout: Path, document: Any) -> dict[str, Any]:
    content = json.dumps(document).encode()
    digest = hashlib.sha256(content).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


ATTACKS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "path in a title": lambda manifest, config: (
        manifest["layers"][0]["annotations"].update({TITLE: "../evil.json"}),
        config["versions"][0]["files"][0].update(path="../evil.json"),
    ),
    "title that is not in the config": lambda manifest, config: manifest["layers"][0]["annotations"].update(
        {TITLE: "other.md"}
    ),
    "layer too many": lambda manifest, config: manifest["layers"].append(manifest["layers"][0]),
    "layer missing": lambda manifest, config: manifest["layers"].pop(),
    "path in a digest": lambda manifest, config: manifest["layers"][0].update(digest="sha256:../../etc/passwd"),
    "other algorithm": lambda manifest, config: manifest["layers"][0].update(digest="md5:" + "0" * 32),
    "giant layer": lambda manifest, config: manifest["layers"][0].update(size=9 * 1024**3),
    "another artifact": lambda manifest, config: manifest.update(artifactType="application/vnd.other"),
    "an image": lambda manifest, config: manifest["config"].update(
        mediaType="application/vnd.oci.image.config.v1+json"
    ),
    "two versions in a config": lambda manifest, config: config["versions"].append(
        config["versions"][0] | {"number": 2}
    ),
    "no layers": lambda manifest, config: manifest.update(layers=[]),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_layouts_of_an_enemy(other: registry.Registry, layout: Path, operator: Principal, attack: str) -> None:
    rewrite(layout, ATTACKS[attack])
    with pytest.raises(ArchiveError):
        import_layout(other, layout, principal=operator)
    assert other.list_adapters(operator) == []


@pytest.mark.parametrize("damage", ["version", "no layout", "no index", "index of nothing", "two of a layer's title"])
def test_folders_that_are_no_layout(other: registry.Registry, layout: Path, operator: Principal, damage: str) -> None:
    if damage == "version":
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    elif damage == "no layout":
        (layout / "oci-layout").unlink()
    elif damage == "no index":
        (layout / "index.json").unlink()
    elif damage == "index of nothing":
        (layout / "index.json").write_text('{"schemaVersion": 2, "mediaType": "x", "manifests": []}')
    else:
        rewrite(layout, lambda manifest, config: manifest["layers"][0].update(manifest["layers"][1]))
    with pytest.raises(ArchiveError):
        import_layout(other, layout, principal=operator)
