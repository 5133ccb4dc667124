"""Uploads and downloads by plain HTTP: bounded, whole or not at all, by ranges."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import registry
from registry.byte_range import ByteRange, UnsatisfiableRangeError, parse_range
from registry.principal import OPERATOR
from registry.registry import Registry
from tests.registry.http.answers import SQL, WEIGHTS, code, parts_of


def test_an_upload(client: httpx.Client, make_adapter: Callable[..., Path], reg_sqlite: Registry) -> None:
    folder = make_adapter()
    made = client.post(f"{SQL}/versions", files=parts_of(folder), data={"message": "from curl", "visibility": "public"})
    assert made.status_code == 201
    assert made.json()["version"]["message"] == "from curl"
    assert reg_sqlite.resolve("acme/sql", principal=OPERATOR).visibility == "public"
    again = client.post(f"{SQL}/versions", files=parts_of(folder))
    assert (again.status_code, again.json()["is_new"]) == (200, False)
    assert list((reg_sqlite.folder or Path()).glob("blobs/staging/*")) == []


def test_uploads_that_are_refused(
    client: httpx.Client, make_adapter: Callable[..., Path], reg_sqlite: Registry
) -> None:
    sound = parts_of(make_adapter())

    def refused(**request: Any) -> dict[str, Any]:
        response = client.post(f"{SQL}/versions", **request)
        assert response.status_code in (400, 422), response.text
        assert len(response.content) < 2000
        found: dict[str, Any] = response.json()["error"]
        return found

    for name in ("model.py", "../x.md", "a/b.md", "pytorch_model.bin", ".hidden.md", "x" * 200 + ".md"):
        error = refused(files=[*sound, ("file", (name, b"x"))])
        assert error["reason"] == "file-not-allowed", name
    assert refused(files=[*sound, sound[0]])["why"] == "this file is given twice"
    assert refused(files=[*sound, ("file", ("README.md", b"x" * 1_000_001))])["reason"] == "file-too-large"
    notes = [("file", (f"{number}.md", b"x")) for number in range(20)]
    assert refused(files=[*sound, *notes])["reason"] == "file-too-large"
    assert refused(files=sound[1:])["reason"] == "missing-file"
    assert refused(files=sound, data={"force": "1"})["field"] == "force"
    assert refused(files=sound, data={"message": "x" * 2001})["field"] == "message"
    assert refused(files=sound, data={"message": "x" * 20_000})["field"] == "message"
    assert refused(files=sound, data={"visibility": "secret"})["field"] == "visibility"
    assert refused(json={})["field"] == "content-type"
    boundary = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x\r\n", b"no boundary", b"--x\r\nContent-Disposition: form-data; name=message\r\n\r\nabc"):
        assert refused(content=body, headers=boundary)["field"] == "body"
    assert reg_sqlite.list_adapters(OPERATOR) == []
    assert list((reg_sqlite.folder or Path()).glob("blobs/staging/*")) == []


def test_an_upload_without_the_right_ends_before_its_bytes(client: httpx.Client, reg_sqlite: Registry) -> None:
    reg_sqlite.create_tenant("acme")
    reader = reg_sqlite.create_token("acme", "reader").secret
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 200_000_000:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    headers = {"authorization": f"Bearer {reader}", "content-type": "multipart/form-data; boundary=x"}
    response = client.post(f"{SQL}/versions", content=endless(), headers=headers)
    assert (response.status_code, code(response)) == (403, "permission_denied")


def test_an_upload_that_breaks_off_leaves_nothing(
    client: httpx.Client, make_adapter: Callable[..., Path], reg_sqlite: Registry
) -> None:
    whole = httpx.Request("POST", "http://x/", files=parts_of(make_adapter())).read()
    boundary = whole[2 : whole.index(b"\r\n")].decode()

    def breaking() -> Iterator[bytes]:
        yield whole[: len(whole) // 2]
        raise RuntimeError("the network is gone")

    with pytest.raises(RuntimeError):
        client.post(
            f"{SQL}/versions", content=breaking(), headers={"content-type": f"multipart/form-data; boundary={boundary}"}
        )
    staging = (reg_sqlite.folder or Path()) / "blobs" / "staging"
    deadline = time.monotonic() + 20
    empty_since = time.monotonic()  # the server may not have begun yet: empty counts only once it has lasted
    while time.monotonic() < min(deadline, empty_since + 1):
        time.sleep(0.02)
        if list(staging.iterdir()):
            empty_since = time.monotonic()
    assert list(staging.iterdir()) == []
    assert reg_sqlite.list_adapters(OPERATOR) == []


def test_a_download(client: httpx.Client, version: registry.Version) -> None:
    entry = next(file for file in version.files if file.path == WEIGHTS)
    url = f"{SQL}/versions/{version.digest}/files/{WEIGHTS}"
    whole = client.get(url)
    assert (whole.status_code, len(whole.content)) == (200, entry.size)
    assert whole.headers["etag"] == f'"{entry.sha256}"'
    assert whole.headers["content-length"] == str(entry.size)
    part = client.get(url, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{entry.size}"
    tail = client.get(url, headers={"range": "bytes=-5", "if-range": whole.headers["etag"]})
    assert (tail.status_code, tail.content) == (206, whole.content[-5:])
    other = client.get(url, headers={"range": "bytes=0-1", "if-range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, entry.size)
    assert client.get(url, headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    beyond = client.get(url, headers={"range": f"bytes={entry.size}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{entry.size}")
    assert code(client.get(f"{SQL}/versions/1/files/absent")) == "not_found"
    assert client.get(f"{SQL}/versions/1/files/..%2F..%2Fcatalog.sqlite").status_code == 404
    assert [file["path"] for file in client.get(f"{SQL}/versions/1/files").json()] == [
        file.path for file in version.files
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, None),
        ("bytes=0-", ByteRange(0, 10)),
        ("bytes=3-5", ByteRange(3, 6)),
        ("bytes=3-99", ByteRange(3, 10)),
        ("bytes=-4", ByteRange(6, 10)),
        ("bytes=-40", ByteRange(0, 10)),
        ("bytes=5-3", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=" + "9" * 40 + "-", None),
    ],
)
def test_ranges(text: str | None, found: ByteRange | None) -> None:
    assert parse_range(text, size=10) == found


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_ranges_that_hold_nothing(text: str, size: int) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(text, size=size)
