"""Archives: the same bytes for the same content, whole on the way back, and no trust in what somebody made of them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import registry
from registry import Principal, Role
from registry.archive import INDEX_NAME, export_archive, import_archive
from registry.errors import (
    ArchiveError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    RejectedAdapterError,
    StorageError,
)
from registry.file_entry import FileEntry, digest_of_files
from tests.registry.adapter_folders import FINGERPRINT, write_adapter

Publish = Callable[..., registry.Version]
Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def other(tmp_path: Path, new_registry: Path) -> Iterator[registry.Registry]:
    """A second registry that knows the base too."""
    shutil.copytree(new_registry, tmp_path / "other")
    with registry.open(tmp_path / "other") as opened:
        yield opened


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, new_registry: Path) -> Path:
    """An archive of one version of acme/text2sql."""
    folder = tmp_path_factory.mktemp("published")
    shutil.copytree(new_registry, folder / "registry")
    with registry.open(folder / "registry") as reg:
        source = write_adapter(folder / "adapter", seed=1)
        reg.publish(source, "acme/text2sql", principal=Principal.operator(), message="first")
        export_archive(reg, "acme/text2sql@1", folder / "one.tar", principal=Principal.operator())
    return folder / "one.tar"


@pytest.fixture
def archive(published: Path, tmp_path: Path) -> Path:
    """The archive, to be damaged."""
    return Path(shutil.copy(published, tmp_path / "one.tar"))


def test_one_version_there_and_back(
    reg: registry.Registry, other: registry.Registry, publish: Publish, operator: Principal, tmp_path: Path
) -> None:
    publish(message="first")
    archive = tmp_path / "one.tar"
    export_archive(reg, "acme/text2sql@1", archive, principal=operator)
    done = import_archive(other, archive, principal=operator)
    version = reg.resolve("acme/text2sql@1", principal=operator)
    found = other.resolve("acme/text2sql@1", principal=operator)
    assert (found.digest, found.files, found.message) == (version.digest, version.files, "first")
    assert (done.adapter, [each.number for each in done.versions]) == ("acme/text2sql", [1])
    again = import_archive(other, archive, principal=operator)
    assert not again.versions[0].publication.is_new


@pytest.mark.sqlite_only
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_the_same_content_has_the_same_bytes(
    reg: registry.Registry, publish: Publish, operator: Principal, tmp_path: Path, name: str
) -> None:
    publish()
    (tmp_path / "x").mkdir()
    export_archive(reg, "acme/text2sql", tmp_path / name, principal=operator)
    export_archive(reg, "acme/text2sql@1", tmp_path / "x" / name, principal=operator)
    assert (tmp_path / name).read_bytes() == (tmp_path / "x" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == [name], "nothing is left beside it"


def test_all_versions_with_their_aliases(
    reg: registry.Registry, other: registry.Registry, publish: Publish, operator: Principal, tmp_path: Path
) -> None:
    versions = [publish() for _ in range(3)]
    for number in (1, 2, 3):
        reg.promote(f"acme/text2sql@{number}", "prod", principal=operator, evidence=f"because {number}")
    reg.rollback("acme/text2sql", "prod", principal=operator)
    export_archive(reg, "acme/text2sql", tmp_path / "all.tar.gz", principal=operator, all_versions=True)
    done = import_archive(other, tmp_path / "all.tar.gz", principal=operator, name="globex/copy", with_aliases=True)
    assert done.aliases == {"prod": 2}
    digests = [version.digest for version in reversed(other.list_versions("globex/copy", operator))]
    assert digests == [version.digest for version in versions]
    history = other.alias_history("globex/copy", "prod", operator)
    assert "because 2" in history[0].evidence
    assert "imported from an archive of acme/text2sql" in history[0].evidence
    other.rollback("globex/copy", "prod", principal=operator)
    assert other.aliases("globex/copy", operator) == {"prod": 1}


@pytest.mark.sqlite_only
def test_aliases_stay_unless_they_are_wanted(
    reg: registry.Registry, other: registry.Registry, publish: Publish, operator: Principal, tmp_path: Path
) -> None:
    publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    export_archive(reg, "acme/text2sql", tmp_path / "all.tar", principal=operator, all_versions=True)
    assert import_archive(other, tmp_path / "all.tar", principal=operator).aliases == {}
    assert other.aliases("acme/text2sql", operator) == {}


@pytest.mark.sqlite_only
def test_an_unverified_base_stays_unverified(
    reg: registry.Registry,
    other: registry.Registry,
    make_adapter: Callable[..., Path],
    operator: Principal,
    tmp_path: Path,
) -> None:
    folder = make_adapter(has_manifest=False)
    reg.publish(folder, "acme/plain", principal=operator, base_fingerprint=FINGERPRINT)
    export_archive(reg, "acme/plain", tmp_path / "a.tar", principal=operator)
    import_archive(other, tmp_path / "a.tar", principal=operator)
    assert not other.resolve("acme/plain", principal=operator).base_verified


def test_the_base_must_be_known_or_be_registered_with_it(archive: Path, operator: Principal, tmp_path: Path) -> None:
    with registry.open(tmp_path / "empty") as empty:
        with pytest.raises(RejectedAdapterError):
            import_archive(empty, archive, principal=operator)
        import_archive(empty, archive, principal=operator, register_bases=True)
        assert empty.base(FINGERPRINT) is not None


def test_rights(other: registry.Registry, archive: Path, operator: Principal, tmp_path: Path) -> None:
    import_archive(other, archive, principal=operator)
    other.create_tenant("rival")
    rival = Principal(tenant="rival", role=Role.PUBLISHER, token_id="tok_r")
    with pytest.raises(NotFoundError):
        export_archive(other, "acme/text2sql", tmp_path / "b.tar", principal=rival)
    with pytest.raises(PermissionDeniedError):
        import_archive(other, archive, principal=rival)
    with pytest.raises(PermissionDeniedError):
        import_archive(other, archive, principal=rival, name="rival/x", register_bases=True)
    assert import_archive(other, archive, principal=rival, name="rival/x").adapter == "rival/x"


def test_destinations_and_sources(other: registry.Registry, archive: Path, operator: Principal, tmp_path: Path) -> None:
    reg = other
    import_archive(reg, archive, principal=operator)
    with pytest.raises(ConflictError):
        export_archive(reg, "acme/text2sql", archive, principal=operator)
    with pytest.raises(StorageError):
        export_archive(reg, "acme/text2sql", tmp_path / "no" / "a.tar", principal=operator)
    with pytest.raises(StorageError):
        import_archive(reg, tmp_path / "missing.tar", principal=operator)


def test_a_flipped_bit_anywhere_is_found(other: registry.Registry, archive: Path, operator: Principal) -> None:
    """Every part of the file is covered: headers by their sums, the index by its digests, files by the index."""
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        spots = [spot for member in tar.getmembers() for spot in (member.offset + 3, member.offset_data + 20)]
    for spot in spots:
        archive.write_bytes(whole[:spot] + bytes([whole[spot] ^ 1]) + whole[spot + 1 :])
        with pytest.raises((ArchiveError, RejectedAdapterError)):
            import_archive(other, archive, principal=operator)
    assert other.list_adapters(operator) == []


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_cut_anywhere_is_found(
    other: registry.Registry, archive: Path, operator: Principal, is_compressed: bool
) -> None:
    whole = archive.read_bytes()
    for kept in (0, 1, 100, 511, 512, 600, 2_000, len(whole) // 2):
        part = whole[:kept]
        archive.write_bytes(gzip.compress(whole)[: kept // 4] if is_compressed else part)
        with pytest.raises(ArchiveError):
            import_archive(other, archive, principal=operator)
    assert other.list_adapters(operator) == []


def read(archive: Path) -> Members:
    with tarfile.open(archive) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]


def write(archive: Path, members: Members, *, format: int = tarfile.USTAR_FORMAT) -> Path:  # noqa: A002
    with tarfile.open(archive, "w", format=format) as tar:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


def changed_index(members: Members, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(members[0][1])
    change(document)
    for version in document["versions"]:
        files = [FileEntry(**file) for file in version["files"]]
        version["digest"] = str(digest_of_files(files))
    with_index(members, json.dumps(document).encode())


def with_index(members: Members, content: bytes) -> None:
    members[0] = (members[0][0], content)
    members[1] = (members[1][0], f"{hashlib.sha256(content).hexdigest()}  {INDEX_NAME}\n".encode())


def link(kind: bytes, target: str) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        members[2][0].type, members[2][0].linkname = kind, target

    return change


def rename(name: str, *, in_index: bool = False) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        if in_index:
            changed_index(members, lambda index: index["versions"][0]["files"][0].update(path=name))
        members[2][0].name = f"versions/1/{name}" if in_index else name

    return change


def announce(size: int) -> Callable[[Members], None]:
    def change(members: Members) -> None:
        changed_index(members, lambda index: index["versions"][0]["files"][1].update(size=size))

    return change


ATTACKS: dict[str, Callable[[Members], None]] = {
    "symbolic link": link(tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": link(tarfile.LNKTYPE, "/etc/passwd"),
    "device": link(tarfile.CHRTYPE, ""),
    "pipe": link(tarfile.FIFOTYPE, ""),
    "folder": link(tarfile.DIRTYPE, ""),
    "absolute path": rename("/tmp/evil.json"),
    "path upwards": rename("versions/1/../../evil.json"),
    "path upwards in the index": rename("../evil.md", in_index=True),
    "dots in the index": rename("..", in_index=True),
    "code": rename("evil.py", in_index=True),
    "pickle": rename("adapter_model.bin", in_index=True),
    "negative size": announce(-1),
    "giant size": announce(9 * 1024**3),
    "more than is there": announce(1_000_000),
    "index is not first": lambda members: members.reverse(),
    "index is missing": lambda members: members.pop(0) and None,
    "member is missing": lambda members: members.pop(3) and None,
    "member twice": lambda members: members.insert(3, members[2]),
    "one member too many": lambda members: members.append((tarfile.TarInfo("versions/1/x.md"), b"x")),
    "index is no JSON": lambda members: with_index(members, b"{"),
    "index is nested": lambda members: with_index(members, b"[" * 100_000),
    "unknown schema": lambda members: changed_index(members, lambda index: index.update(schema=2)),
    "no versions": lambda members: changed_index(members, lambda index: index.update(versions=[])),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_archives_of_an_enemy(
    other: registry.Registry, archive: Path, operator: Principal, tmp_path: Path, attack: str
) -> None:
    members = read(archive)
    ATTACKS[attack](members)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ArchiveError):
        import_archive(other, write(archive, members), principal=operator)
    assert other.list_adapters(operator) == [] or attack == "one member too many"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_extended_header_is_not_read(other: registry.Registry, archive: Path, operator: Principal) -> None:
    members = read(archive)
    members[0][0].pax_headers = {"comment": "x" * 10_000}
    with pytest.raises(ArchiveError):
        import_archive(other, write(archive, members, format=tarfile.PAX_FORMAT), principal=operator)


def test_a_bomb_is_not_expanded(other: registry.Registry, operator: Principal, tmp_path: Path) -> None:
    """A header that announces gigabytes of index: refused by its size, with nothing read."""
    header = tarfile.TarInfo(INDEX_NAME)
    header.size = 4 * 1024**3
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb") as stream:
        stream.write(header.tobuf(tarfile.USTAR_FORMAT))
        stream.write(bytes(50_000_000))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ArchiveError, match="too large"):
        import_archive(other, bomb, principal=operator)


def test_what_is_imported_is_judged_again(other: registry.Registry, archive: Path, operator: Principal) -> None:
    """An enemy can make every digest fit; the content is still judged."""
    members = read(archive)
    names = [member.name for member, _ in members]
    at = names.index("versions/1/adapter_config.json")
    config = json.loads(members[at][1]) | {"use_dora": True}
    content = json.dumps(config).encode()
    members[at] = (members[at][0], content)

    def change(index: dict[str, Any]) -> None:
        (file,) = (each for each in index["versions"][0]["files"] if each["path"] == "adapter_config.json")
        file.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    changed_index(members, change)
    with pytest.raises(RejectedAdapterError, match="dora"):
        import_archive(other, write(archive, members), principal=operator)
    assert other.list_adapters(operator) == []
