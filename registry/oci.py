"""Export and import as an OCI image layout on disk (image-spec 1.1), for registries of containers and their tools.

    oci-layout                    {"imageLayoutVersion": "1.0.0"}
    index.json                    one manifest for each version, tagged v3; an alias is a further tag
    blobs/sha256/<hex>            manifests, configs and files, each under its digest

A version is an artifact: `artifactType` below, the files as layers whose titles are their names, and the version's
description as config. `oras copy --from-oci-layout` and `skopeo copy oci:` read it. Import accepts what export writes:
every blob is compared with its digest, every size is bounded before it is read, and each version is judged again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec

from registry.adapter_files import FILES_LIMIT, NOTES_SUFFIX, WEIGHTS_BYTES_LIMIT, WEIGHTS_FILE
from registry.archive_index import (
    INDEX_BYTES_LIMIT,
    VERSIONS_LIMIT,
    ArchivedVersion,
    ArchiveIndex,
    Imported,
    Importer,
    describe,
    pulled,
    write_file,
)
from registry.decoding import decode
from registry.errors import ArchiveError, ConflictError, StorageError
from registry.mixture_config import GATE_FILE
from registry.principal import Principal
from registry.registry import Registry
from registry.version import Version

LAYOUT = {"imageLayoutVersion": "1.0.0"}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.loraplex.adapter.v1"
CONFIG_TYPE = "application/vnd.loraplex.adapter.config.v1+json"
WEIGHTS_TYPE = "application/vnd.loraplex.weights.v1.safetensors"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
MANIFEST_BYTES_LIMIT = 4_000_000

_Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
_Size = Annotated[int, msgspec.Meta(ge=0, le=WEIGHTS_BYTES_LIMIT)]


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A reference to a blob by digest, with its type and size (image-spec, descriptor.md)."""

    media_type: Annotated[str, msgspec.Meta(max_length=255)]
    digest: _Digest
    size: _Size
    artifact_type: str | None = None
    annotations: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One version (image-spec, manifest.md). `config` describes the version; `layers` are its files."""

    schema_version: Annotated[int, msgspec.Meta(ge=2, le=2)]
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: Annotated[tuple[Descriptor, ...], msgspec.Meta(min_length=1, max_length=FILES_LIMIT)]
    annotations: dict[str, str] = {}


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """All versions of the layout (image-spec, image-index.md). Other tools leave its type out."""

    schema_version: Annotated[int, msgspec.Meta(ge=2, le=2)]
    manifests: Annotated[tuple[Descriptor, ...], msgspec.Meta(min_length=1, max_length=2 * VERSIONS_LIMIT)]
    media_type: str = INDEX_TYPE


def export_layout(
    reg: Registry, ref: str, destination: Path, *, principal: Principal, all_versions: bool = False
) -> ArchiveIndex:
    """Write what the reference means, or all versions of its adapter, into a new folder that appears when it is whole.

    Raises NotFoundError, ConflictError (the folder is there already), StorageError.
    """
    index, versions = describe(reg, ref, principal, all_versions=all_versions)
    if destination.exists():
        raise ConflictError(f"{destination} is there already. Choose another name.")
    partial = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.partial")
    try:
        blobs = partial / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        aliases = reg.aliases(index.adapter, principal)
        listed: list[Descriptor] = []
        for archived, version in zip(index.versions, versions, strict=True):
            described = _write_version(reg, index, archived, version, blobs, principal)
            tags = [f"v{version.number}"]
            tags += [alias for alias, number in aliases.items() if number == version.number and not _is_version(alias)]
            listed += [_tagged(described, tag) for tag in tags]
        (partial / "oci-layout").write_bytes(_json(LAYOUT))
        (partial / "index.json").write_bytes(_json(Index(2, tuple(listed))))
        partial.rename(destination)
    except OSError as error:
        raise StorageError(f"{destination} cannot be written ({error.strerror}).", path=destination) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return index


def import_layout(
    reg: Registry, source: Path, *, principal: Principal, name: str | None = None, register_bases: bool = False
) -> Imported:
    """Publish every version of a layout, under its own name or another.

    Tags move no alias here. Raises ArchiveError, RejectedAdapterError, PermissionDeniedError, StorageError.
    """
    layout = _decode(_read(source / "oci-layout", MANIFEST_BYTES_LIMIT), dict[str, Any], "oci-layout")
    if layout != LAYOUT:
        raise ArchiveError("its oci-layout is not version 1.0.0")
    listed = _decode(_read(source / "index.json", INDEX_BYTES_LIMIT), Index, "index.json").manifests
    digests = dict.fromkeys(each.digest for each in listed if each.media_type == MANIFEST_TYPE)
    sizes = {each.digest: each.size for each in listed}
    found = sorted((_described(source, digest, sizes[digest]) for digest in digests), key=lambda pair: pair[1].number)
    if not found:
        raise ArchiveError("it holds no adapter")
    first = found[0][0]
    index = ArchiveIndex(
        first.schema, first.adapter, first.visibility, tuple(pair[1] for pair in found), (), first.bases
    )
    index = ArchiveIndex.decode(index.encode())
    importer = Importer(reg, index, principal, name=name, register_bases=register_bases)
    for archived in index.versions:
        with tempfile.TemporaryDirectory(prefix="loraplex-import-") as scratch:
            folder = Path(scratch) / "version"
            folder.mkdir()
            for file in archived.files:
                with _blob(source, file.sha256, file.size) as stream:
                    write_file(folder / file.path, file.size, stream.read, sha256=file.sha256)
            importer.take(archived, folder)
    return importer.finish(with_aliases=False)


def _write_version(
    reg: Registry, index: ArchiveIndex, archived: ArchivedVersion, version: Version, blobs: Path, principal: Principal
) -> Descriptor:
    """The version's files, config and manifest as blobs, and the manifest's descriptor."""
    with pulled(reg, version, principal) as folder:
        for file in version.files:
            target = blobs / file.sha256
            if not target.exists():
                shutil.copyfile(folder / file.path, target)
    bases = tuple(base for base in index.bases if base["fingerprint"] == version.base_fingerprint)
    alone = ArchiveIndex(
        schema=index.schema, adapter=index.adapter, visibility=index.visibility, versions=(archived,), bases=bases
    )
    manifest = Manifest(
        schema_version=2,
        media_type=MANIFEST_TYPE,
        artifact_type=ARTIFACT_TYPE,
        config=_write_blob(blobs, CONFIG_TYPE, alone.encode()),
        layers=tuple(
            Descriptor(_media_type(file.path), f"sha256:{file.sha256}", file.size, annotations={TITLE: file.path})
            for file in archived.files
        ),
        annotations={
            "org.opencontainers.image.created": version.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "org.opencontainers.image.version": str(version.number),
            "org.opencontainers.image.title": version.adapter,
            "ai.loraplex.digest": version.digest,
            "ai.loraplex.base.fingerprint": version.base_fingerprint,
        },
    )
    return _write_blob(blobs, MANIFEST_TYPE, _json(manifest))


def _write_blob(blobs: Path, media_type: str, content: bytes) -> Descriptor:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return Descriptor(media_type, f"sha256:{digest}", len(content))


def _tagged(manifest: Descriptor, tag: str) -> Descriptor:
    return Descriptor(
        manifest.media_type, manifest.digest, manifest.size, artifact_type=ARTIFACT_TYPE, annotations={REF_NAME: tag}
    )


def _is_version(alias: str) -> bool:
    """Whether an alias looks like the tag of a version, which goes first."""
    return alias[:1] == "v" and alias[1:].isdecimal()


def _media_type(name: str) -> str:
    if name in (WEIGHTS_FILE, GATE_FILE):
        return WEIGHTS_TYPE
    return "text/markdown" if name.endswith(NOTES_SUFFIX) else "application/json"


def _described(source: Path, digest: str, size: int) -> tuple[ArchiveIndex, ArchivedVersion]:
    """What a manifest and its config say, if they agree with each other."""
    manifest = _decode(_read_blob(source, digest, size, MANIFEST_BYTES_LIMIT), Manifest, "a manifest")
    if manifest.artifact_type != ARTIFACT_TYPE or manifest.config.media_type != CONFIG_TYPE:
        raise ArchiveError(f"it holds an artifact that is no adapter of Loraplex ({manifest.artifact_type[:100]!r})")
    config = manifest.config
    index = ArchiveIndex.decode(_read_blob(source, config.digest, config.size, INDEX_BYTES_LIMIT))
    layers = [(layer.annotations.get(TITLE), layer.digest, layer.size) for layer in manifest.layers]
    files = [(file.path, f"sha256:{file.sha256}", file.size) for file in index.versions[0].files]
    if len(index.versions) != 1 or layers != files:
        raise ArchiveError("a manifest and its config do not fit together")
    return index, index.versions[0]


def _read_blob(source: Path, digest: str, size: int, limit_bytes: int) -> bytes:
    hexadecimal = digest.removeprefix("sha256:")
    if size > limit_bytes:
        raise ArchiveError(f"blob {hexadecimal} is larger than {limit_bytes} bytes")
    with _blob(source, hexadecimal, size) as stream:
        content = stream.read(size)
    if hashlib.sha256(content).hexdigest() != hexadecimal:
        raise ArchiveError(f"blob {hexadecimal} is damaged")
    return content


@contextmanager
def _blob(source: Path, hexadecimal: str, size: int) -> Iterator[BinaryIO]:
    """A blob of this size; its bytes are compared by the caller."""
    with _plain_file(source / "blobs" / "sha256" / hexadecimal) as stream:
        if os.fstat(stream.fileno()).st_size != size:
            raise ArchiveError(f"blob {hexadecimal} has another size than announced")
        yield stream


def _read(path: Path, limit_bytes: int) -> bytes:
    with _plain_file(path) as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise ArchiveError(f"{path.name} is larger than {limit_bytes} bytes")
    return content


@contextmanager
def _plain_file(path: Path) -> Iterator[BinaryIO]:
    """The file, if it is a plain one: no link is followed, no pipe is waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ArchiveError(f"{path.name} cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ArchiveError(f"{path.name} is not a plain file")
        yield stream


def _decode(raw: bytes, kind: Any, what: str) -> Any:
    try:
        return decode(raw, kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArchiveError(f"{what} cannot be read ({error})") from error


def _json(value: Any) -> bytes:
    return json.dumps(msgspec.to_builtins(value), sort_keys=True, separators=(",", ":")).encode()
