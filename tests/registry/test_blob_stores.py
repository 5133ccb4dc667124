"""The promises of a store of blobs, on the local disk and in S3: whole or absent, verified before a byte is used."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore, GCSStore

from registry.blobs import BlobStore, LocalBlobs, local_blobs
from registry.blobs.digest_behind import DigestBehind
from registry.blobs.object_address import ObjectAddress
from registry.blobs.object_blobs import ObjectBlobs
from registry.blobs.object_client import ObjectClient, Patience
from registry.errors import IntegrityError, InvalidValueError, StorageError, UploadMismatchError
from registry.file_entry import Blob, FileEntry
from tests.registry.azure_server import AzureServer, azure_server
from tests.registry.backends import S3Server
from tests.registry.google_server import GoogleServer, google_server

MANY_BYTES = (9 << 20) + 17
"""More than one range, one part, and one chunk."""


@dataclass
class Kept:
    """A store and what a test does behind its back."""

    store: BlobStore
    again: Callable[[], BlobStore]
    write: Callable[[str, bytes], None]
    names: Callable[[], list[str]]


def local(folder: Path) -> Kept:
    def write(sha256: str, raw: bytes) -> None:
        (folder / sha256[:2] / sha256).write_bytes(raw)

    def names() -> list[str]:
        return sorted(path.name for path in folder.rglob("*") if path.is_file())

    return Kept(LocalBlobs(folder), lambda: LocalBlobs(folder), write, names)


def objects(s3: S3Server | AzureServer | GoogleServer, scratch: Path, **options: str) -> Kept:
    prefix, bucket = secrets.token_hex(8), s3.bucket()

    def again() -> BlobStore:
        return ObjectBlobs(s3.url(prefix, **options), scratch)

    def write(sha256: str, raw: bytes) -> None:
        obstore.put(bucket, f"{prefix}/blobs/{sha256[:2]}/{sha256}", raw)

    def names() -> list[str]:
        return sorted(meta["path"].rpartition("/")[2] for meta in obstore.list(bucket, prefix=f"{prefix}/").collect())

    return Kept(again(), again, write, names)


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with pytest.MonkeyPatch.context() as patch, azure_server(tmp_path_factory.mktemp("azure")) as server:
        patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", server.key)
        yield server


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoogleServer]:
    with pytest.MonkeyPatch.context() as patch, google_server(tmp_path_factory.mktemp("google")) as server:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(server.account))
        yield server


@pytest.fixture(params=["local", "s3", *(pytest.param(name, marks=pytest.mark.long) for name in ("azure", "google"))])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "local":
        return local(tmp_path / "blobs")
    return objects(request.getfixturevalue(request.param), tmp_path / "scratch")


def blob_of(raw: bytes) -> Blob:
    return Blob(hashlib.sha256(raw).hexdigest(), len(raw))


def receive(store: BlobStore, raw: bytes, *, chunk_bytes: int = 1 << 20) -> Blob:
    with store.receive() as writer:
        for start in range(0, len(raw), chunk_bytes):
            writer.write(memoryview(raw)[start : start + chunk_bytes])
        assert writer.size == len(raw)
        return writer.finish()


def all_bytes(store: BlobStore, blob: Blob, start: int = 0, end: int | None = None) -> bytes:
    with store.open(blob, start=start, end=end) as reader:
        found = b"".join(reader)
        assert len(found) == reader.size
        return found


def flipped(raw: bytes) -> bytes:
    return raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize("size", [0, 1, 1 << 20, MANY_BYTES])
def test_what_is_received_is_read_whole_and_in_ranges(kept: Kept, size: int) -> None:
    raw = os.urandom(size)
    blob = receive(kept.store, raw)
    assert blob == blob_of(raw)
    assert kept.store.size_of(blob.sha256) == size
    assert kept.names() == [blob.sha256], "nothing else is left"
    for store in (kept.store, kept.again()):
        for start, end in ((0, None), (0, 0), (size // 3, size // 2), (size // 2, None), (max(0, size - 1), size)):
            assert all_bytes(store, blob, start, end) == raw[start:end], (start, end)
        assert store.read(blob) == raw
        store.verify(blob)
    assert not list(kept.store.scratch.iterdir())


def test_an_upload_that_is_not_what_was_announced_is_not_kept(kept: Kept) -> None:
    raw = b"some bytes"
    for expected in (Blob("0" * 64, len(raw)), Blob(blob_of(raw).sha256, len(raw) + 1)):
        with kept.store.receive() as writer:
            writer.write(raw)
            with pytest.raises(UploadMismatchError, match="announced"):
                writer.finish(expected)
    with kept.store.receive(limit_bytes=9) as writer:
        writer.write(raw[:5])
        with pytest.raises(UploadMismatchError, match="more than the 9 bytes"):
            writer.write(raw[5:])
    with kept.store.receive() as writer:
        writer.write(raw)
    path = kept.store.scratch / "mine"
    path.write_bytes(raw)
    with pytest.raises(UploadMismatchError):
        kept.store.put_file(path, Blob("0" * 64, len(raw)))
    assert path.is_file()
    path.unlink()
    assert kept.names() == []
    assert not list(kept.store.scratch.iterdir())


def test_a_file_of_the_scratch_folder_becomes_a_blob(kept: Kept) -> None:
    path = kept.store.scratch / "mine"
    path.write_bytes(b"some bytes")
    blob = kept.store.put_file(path, blob_of(b"some bytes"))
    assert not path.exists()
    assert kept.store.read(blob) == b"some bytes"


@pytest.mark.parametrize("damage", [flipped, lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_damage_is_found_at_the_first_read_before_a_byte_is_used(
    kept: Kept, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    raw = os.urandom(100_000)
    blob = receive(kept.store, raw)
    kept.write(blob.sha256, damage(raw))
    entry = FileEntry("sub/file.json", blob.size, blob.sha256)
    reads: list[Callable[[BlobStore], object]] = [
        lambda store: store.open(blob, start=0, end=1),
        lambda store: store.read(blob),
        lambda store: store.verify(blob),
        lambda store: store.copy_to(blob, tmp_path / "copy"),
        lambda store: store.laid_out([entry]).__enter__(),
        lambda store: store.local_path(blob) or store.verify(blob),
    ]
    for read in reads:
        for store in (kept.store, kept.again()):
            with pytest.raises(IntegrityError) as caught:
                read(store)
            assert caught.value.expected == blob.sha256
            assert caught.value.found == blob_of(damage(raw)).sha256
    assert not (tmp_path / "copy").exists()
    assert receive(kept.store, raw) == blob, "writing it again heals it"
    assert all_bytes(kept.store, blob) == raw


def test_damage_after_the_first_read_is_found_at_the_next(kept: Kept) -> None:
    raw = os.urandom(100_000)
    blob = receive(kept.store, raw)
    assert all_bytes(kept.store, blob) == raw
    time.sleep(0.01)  # a file system's clock is coarse
    kept.write(blob.sha256, flipped(raw))
    with pytest.raises(IntegrityError):
        kept.store.open(blob)


def test_a_missing_blob(kept: Kept, tmp_path: Path) -> None:
    blob = blob_of(b"nobody kept this")
    assert kept.store.size_of(blob.sha256) is None
    assert not kept.store.delete(blob.sha256)
    for read in (kept.store.open, kept.store.read, kept.store.verify):
        with pytest.raises(IntegrityError, match="is missing"):
            read(blob)
    with pytest.raises(IntegrityError, match="is missing"):
        kept.store.copy_to(blob, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_files_are_laid_out_in_their_folders(kept: Kept) -> None:
    one, two = receive(kept.store, b"one"), receive(kept.store, b"two")
    files = [FileEntry("a.json", 3, one.sha256), FileEntry("deep/down/b.md", 3, two.sha256)]
    with kept.store.laid_out(files) as folder:
        assert (folder / "a.json").read_bytes() == b"one"
        assert (folder / "deep" / "down" / "b.md").read_bytes() == b"two"
    assert not folder.exists()
    assert kept.store.read(one) == b"one"


def test_every_blob_is_listed_with_its_age(kept: Kept) -> None:
    blobs = {receive(kept.store, bytes([number])) for number in range(20)}
    found = list(kept.store.all())
    assert {Blob(stored.sha256, stored.size) for stored in found} == blobs
    now = datetime.now(UTC)
    assert all(timedelta(-1) < now - stored.modified_at < timedelta(minutes=5) for stored in found)
    gone = found[0].sha256
    assert kept.store.delete(gone)
    assert not kept.store.delete(gone)
    assert kept.store.size_of(gone) is None
    assert len(list(kept.store.all())) == 19


def test_one_blob_is_placed_by_many_at_once(kept: Kept) -> None:
    raw = os.urandom(50_000)
    stores = [kept.again() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda store: receive(store, raw), stores)) == {blob_of(raw)}
    assert kept.names() == [blob_of(raw).sha256]
    assert all_bytes(kept.store, blob_of(raw)) == raw


def test_a_blob_that_is_replaced_while_it_is_read_is_read_rightly_or_not_at_all(kept: Kept) -> None:
    raw = os.urandom(MANY_BYTES)
    blob = receive(kept.store, raw)
    assert kept.store.size_of(blob.sha256) == len(raw)
    with kept.store.open(blob) as reader:
        chunks = iter(reader)
        first = next(chunks)
        if isinstance(kept.store, LocalBlobs):  # a blob is replaced by renaming, never in place
            other = kept.store.scratch / "other"
            other.write_bytes(flipped(raw))
            other.replace(kept.store.path_of(blob.sha256))
            assert first + b"".join(chunks) == raw
        else:
            kept.write(blob.sha256, flipped(raw))
            with pytest.raises(IntegrityError):
                b"".join(chunks)


def test_a_blob_that_is_deleted_while_it_is_read(tmp_path: Path) -> None:
    kept = local(tmp_path / "blobs")
    raw = os.urandom(MANY_BYTES)
    blob = receive(kept.store, raw)
    with kept.store.open(blob) as reader:
        assert kept.store.delete(blob.sha256)
        assert b"".join(reader) == raw, "whoever reads, reads on"


@pytest.fixture(params=["s3", pytest.param("google", marks=pytest.mark.long)])
def direct(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    return objects(request.getfixturevalue(request.param), tmp_path / "scratch", direct="true")


def put(url: str, raw: bytes) -> None:
    request = urllib.request.Request(url, data=raw, method="PUT", headers={"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200


def test_direct_transfers_are_verified_before_a_blob_is_there(direct: Kept) -> None:
    raw = os.urandom(10_000)
    blob = blob_of(raw)
    url = direct.store.upload_url(blob, scope="tenant-1", seconds=60)
    assert url is not None
    assert not direct.store.adopt(blob, scope="tenant-1"), "nothing was put yet"
    put(url, flipped(raw))
    assert direct.store.size_of(blob.sha256) is None
    with pytest.raises(UploadMismatchError):
        direct.store.adopt(blob, scope="tenant-1")
    assert direct.names() == [], "the wrong bytes are gone"
    put(url, raw + b"more")
    with pytest.raises(UploadMismatchError, match="10004 bytes, and 10000 were announced"):
        direct.store.adopt(blob, scope="tenant-1")
    put(url, raw)
    assert not direct.store.adopt(blob, scope="tenant-2"), "another tenant has put nothing"
    assert direct.store.adopt(blob, scope="tenant-1")
    assert direct.names() == [blob.sha256]
    put(url, flipped(raw))
    assert direct.store.read(blob) == raw, "the address reaches no blob that is adopted"
    read_url = direct.store.download_url(blob, seconds=60)
    assert read_url is not None
    with urllib.request.urlopen(read_url, timeout=10) as response:
        assert response.read() == raw
    direct.write(blob.sha256, flipped(raw))
    with pytest.raises(IntegrityError):
        direct.store.download_url(blob, seconds=60)


def test_direct_transfers_are_off_unless_asked_for(kept: Kept) -> None:
    blob = receive(kept.store, b"some bytes")
    assert kept.store.upload_url(blob, scope="a", seconds=60) is None
    assert kept.store.download_url(blob, seconds=60) is None
    assert not kept.store.adopt(blob, scope="a")


def test_what_a_crash_left_in_the_store_is_removed_after_a_day(s3: S3Server, tmp_path: Path) -> None:
    kept = objects(s3, tmp_path / "scratch", direct="true")
    blob = blob_of(b"abandoned")
    url = kept.store.upload_url(blob, scope="a", seconds=60)
    assert url is not None
    put(url, b"abandoned")
    store = kept.again()
    assert isinstance(store, ObjectBlobs)
    assert kept.names() == [blob.sha256]
    store.remove_stale(now=datetime.now(UTC) + timedelta(hours=25))
    assert kept.names() == []


def test_a_store_that_is_not_there(s3: S3Server, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="bucket exists"):
        ObjectBlobs(f"s3://no-such-bucket/x?endpoint={s3.endpoint}", tmp_path)


@pytest.mark.long
def test_google_is_asked_in_the_name_of_the_service_account(google: GoogleServer, tmp_path: Path) -> None:
    """What the other tests of Google rest on: who has another account's key, or none, gets nothing."""
    blob = receive(objects(google, tmp_path / "scratch", direct="true").store, b"some bytes")
    for request in (
        urllib.request.Request(f"{google.endpoint}/adapters?list-type=2"),
        urllib.request.Request(f"{google.endpoint}/adapters/x", b"x", {"Authorization": "Bearer x.y.z"}, method="PUT"),
    ):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=30)
    (tmp_path / "other").mkdir()
    with google_server(tmp_path / "other") as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(other.account))
        with pytest.raises(StorageError, match="credentials"):
            objects(google, tmp_path / "scratch")
        signed = ObjectClient(ObjectAddress.parse(google.url("x")), Patience()).sign("GET", f"blobs/{blob.sha256}", 60)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(signed, timeout=30)


@pytest.mark.long
def test_azure_signs_addresses_for_reading_only(azure: AzureServer, tmp_path: Path) -> None:
    store = objects(azure, tmp_path, direct="true").store
    blob = receive(store, b"read from the store itself")
    address = store.download_url(blob, seconds=60)
    assert address is not None
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.read() == b"read from the store itself"
    assert store.upload_url(blob, scope="acme", seconds=60) is None
    signed = ObjectClient(ObjectAddress.parse(azure.url("x")), Patience()).sign("PUT", "uploads/x", 60)
    with pytest.raises(urllib.error.HTTPError):  # as clients send it, without the header
        urllib.request.urlopen(urllib.request.Request(signed, b"x", method="PUT"), timeout=30)


@pytest.mark.parametrize(
    ("text", "root", "prefix"),
    [
        ("s3://bucket", "s3://bucket", ""),
        ("s3://bucket//a///b/", "s3://bucket", "a/b/"),
        ("gs://bucket/a?direct=true", "gs://bucket", "a/"),
        ("az://account/container/a/b", "az://account/container", "a/b/"),
    ],
)
def test_addresses(text: str, root: str, prefix: str) -> None:
    address = ObjectAddress.parse(text)
    assert (address.root, address.prefix) == (root, prefix)
    assert address.direct == ("direct=true" in text)


def test_an_address_of_azure_names_an_account_and_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"key").decode())
    address = ObjectAddress.parse("az://team/adapters/prod?endpoint=http://127.0.0.1:9/team")
    store = ObjectClient(address, Patience())._store
    assert isinstance(store, AzureStore)
    assert (store.config["account_name"], store.config["container_name"]) == ("team", "adapters")
    assert store.config["endpoint"] == "http://127.0.0.1:9/team"
    google = ObjectClient(ObjectAddress.parse("gs://adapters/prod?endpoint=http://127.0.0.1:9"), Patience())._store
    assert isinstance(google, GCSStore)
    assert (google.config["bucket"], google.config["base_url"]) == ("adapters", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    "text",
    ["s3://", "s3:///x", "file:///x", "s3://b?direct=maybe", "s3://b?nope=1", "s3://b#x", "az://a", "gs://b?region=x"],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(InvalidValueError, match="blobs"):
        ObjectAddress.parse(text)


def test_bytes_and_names_are_on_the_disk_before_a_blob_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced before it is renamed, and each folder that has a new name in it afterwards."""
    store, done = LocalBlobs(tmp_path / "blobs"), []
    fsync, replace = os.fsync, Path.replace

    def syncing(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def renaming(path: Path, target: Path) -> Path:
        done.append(("rename", path.stat().st_ino))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", renaming)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(os.urandom(100))

    def kept(way: str) -> list[Blob]:
        if way == "keep":
            with store.staged(source, ["a", "b"]) as staging:
                store.keep(staging)
            return [Blob(file.sha256, file.size) for file in staging.files]
        if way == "receive":
            return [receive(store, os.urandom(100))]
        (store.scratch / "x").write_bytes(os.urandom(100))
        return [store.put_file(store.scratch / "x")]

    for way in ("keep", "receive", "put_file"):
        done.clear()
        for blob in kept(way):
            path = store.path_of(blob.sha256)
            renamed = done.index(("rename", path.stat().st_ino))
            assert ("sync", path.stat().st_ino) in done[:renamed], way
            for folder in (path.parent, tmp_path / "blobs"):
                assert ("sync", folder.stat().st_ino) in done[renamed:], (way, folder.name)
    done.clear()
    again = kept("keep")
    assert {entry for kind, entry in done if kind == "sync"} == {
        place.stat().st_ino
        for blob in again
        for place in (store.path_of(blob.sha256), store.path_of(blob.sha256).parent)
    }, "the folder of folders is durable already"


def test_who_wrote_a_blob_reads_it_at_once_and_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, hashed, hash_stream = local(tmp_path), [], local_blobs._hash

    def counted(stream: Any, path: Path) -> Blob:
        hashed.append(path.name)
        return hash_stream(stream, path)

    monkeypatch.setattr(local_blobs, "_hash", counted)
    raw = os.urandom(100)
    blob = receive(kept.store, raw)
    assert all_bytes(kept.store, blob) == raw
    assert hashed == []
    assert all_bytes(kept.again(), blob) == raw
    assert hashed == [blob.sha256], "a process that starts looks at the disk"
    kept.write(blob.sha256, flipped(raw))
    with pytest.raises(IntegrityError):
        kept.store.open(blob)


@pytest.mark.parametrize("sizes", [[], [0], [1], [1 << 20], [(1 << 20) - 1, 2, 3 << 20, 5], [1000] * 4000])
def test_a_digest_that_is_computed_behind_is_the_same(sizes: list[int]) -> None:
    pieces, plain = [os.urandom(size) for size in sizes], hashlib.sha256()
    with closing(DigestBehind()) as digest:
        for number, piece in enumerate(pieces):
            buffer = bytearray(piece)
            digest.update(memoryview(buffer) if number % 2 else piece)
            buffer[:] = bytes(len(buffer))  # a view's owner may go on with it
            plain.update(piece)
            if number % 1000 == 7:
                assert digest.hexdigest() == plain.hexdigest()
        assert digest.hexdigest() == plain.hexdigest()
