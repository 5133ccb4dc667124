"""The Hub face over plain HTTP: headers, ranges, raw paths, signed addresses, malformed and oversized bodies."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.hf_api import ExpandModelProperty_T

import registry
from registry.file_entry import Blob
from registry.hub.app import HubApp, create_hub_app
from registry.hub.commit import LINE_BYTES_LIMIT
from registry.hub.context import HubSettings
from registry.hub.routing import Access
from registry.hub.signed_links import UploadGrant
from registry.names import AdapterName
from tests.registry.hub.conftest import Server

OPERATOR = registry.Principal.operator()
REPO = "/api/models/acme/sql"
SAME_EVERY_TIME = {"date", "x-request-id"}


@pytest.fixture
def hub_settings() -> HubSettings:
    return HubSettings(part_bytes=1000, commit_bytes_limit=50_000, upload_bytes_limit=100_000)


@pytest.fixture
def repo(raw: httpx.Client) -> None:
    assert raw.post("/api/repos/create", json={"name": "sql", "organization": "acme"}).status_code == 200


def commit(client: httpx.Client, *operations: tuple[str, dict[str, Any]], revision: str = "main") -> httpx.Response:
    lines = [("header", {"summary": "change"}), *operations]
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines)
    return client.post(f"{REPO}/commit/{revision}", content=body)


def inline(path: str, content: bytes) -> tuple[str, dict[str, Any]]:
    return "file", {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}


def batch(client: httpx.Client, content: bytes, *transfers: str) -> dict[str, Any]:
    oid = hashlib.sha256(content).hexdigest()
    body = {"operation": "upload", "transfers": transfers, "objects": [{"oid": oid, "size": len(content)}]}
    answer = client.post("/acme/sql.git/info/lfs/objects/batch", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/vnd.git-lfs+json"
    document: dict[str, Any] = answer.json()["objects"][0]
    return document


@pytest.mark.usefixtures("repo")
def test_downloads_carry_what_clients_need(raw: httpx.Client) -> None:
    content = bytes(range(256)) * 10
    commit_id = commit(raw, inline("a b/c#1.json", content)).json()["commitOid"]
    address = "/acme/sql/resolve/main/a%20b/c%231.json"
    head, full = raw.head(address), raw.get(address)
    oid = hashlib.sha1(b"blob 2560\0" + content, usedforsecurity=False).hexdigest()
    for answer in (head, full):
        assert answer.status_code == 200
        assert answer.headers["etag"] == answer.headers["x-linked-etag"] == f'"{oid}"'
        assert answer.headers["x-linked-size"] == answer.headers["content-length"] == "2560"
        assert answer.headers["x-repo-commit"] == commit_id
        assert answer.headers["accept-ranges"] == "bytes"
        assert answer.headers["cache-control"] == "private, no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert full.content == content
    fixed = raw.get(f"/acme/sql/resolve/{commit_id}/a%20b/c%231.json")
    assert "immutable" in fixed.headers["cache-control"]
    assert raw.get(address, headers={"if-none-match": f'"{oid}"'}).status_code == 304
    for asked, expected in (("bytes=0-9", content[:10]), ("bytes=2550-", content[2550:]), ("bytes=-6", content[-6:])):
        part = raw.get(address, headers={"range": asked})
        assert (part.status_code, part.content) == (206, expected)
        assert part.headers["content-range"].endswith("/2560")
    stale = raw.get(address, headers={"range": "bytes=5-", "if-range": '"other"'})
    assert (stale.status_code, stale.content) == (200, content)
    beyond = raw.get(address, headers={"range": "bytes=2560-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */2560")
    missing = raw.head("/acme/sql/resolve/main/nothing.json")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    assert missing.headers["x-repo-commit"] == commit_id, "clients remember what a commit does not have"


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("repo")
def test_revisions_and_paths_are_decoded_after_they_are_split(raw: httpx.Client) -> None:
    assert raw.post(f"{REPO}/branch/release%2F1.0").status_code == 201
    assert commit(raw, inline("x/y.txt", b"1"), revision="release%2F1.0").status_code == 200
    assert raw.get("/acme/sql/resolve/release%2F1.0/x/y.txt").content == b"1"
    assert [item["path"] for item in raw.get(f"{REPO}/tree/release%2F1.0/x%2F").json()] == ["x/y.txt"]
    assert raw.get(f"{REPO}/tree/refs%2Fheads%2Frelease%2F1.0").status_code == 200
    assert raw.get("/acme/sql/resolve/release/1.0/x/y.txt").headers["x-error-code"] == "RevisionNotFound"
    for broken in ("%", "%zz", "%ff", "%00", "%0a"):
        assert raw.get(f"{REPO}/tree/{broken}").status_code == 404
    assert raw.get("/" + "a/" * 200).status_code == 404
    assert raw.get("/acme/sql/resolve/main/../../../etc/passwd").status_code in (400, 404)
    assert raw.get("/acme/sql/resolve/main/%2E%2E%2F%2E%2E%2Fetc%2Fpasswd").status_code == 404


def test_what_may_not_be_read_looks_like_what_is_not_there(server: Server, token: Callable[..., str]) -> None:
    server.reg.repositories.create(registry.AdapterName.parse("acme/secret"), visibility=None, principal=OPERATOR)
    batch_body = {"operation": "upload", "objects": [{"oid": "a" * 64, "size": 1}]}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/api/models/acme/NAME", {}),
        ("GET", "/api/models/acme/NAME/revision/main", {}),
        ("GET", "/api/models/acme/NAME/tree/main", {}),
        ("GET", "/api/models/acme/NAME/refs", {}),
        ("GET", "/api/models/acme/NAME/commits/main", {}),
        ("GET", "/api/models/acme/NAME/auth-check", {}),
        ("GET", "/api/models/acme/NAME/auth-check/write", {}),
        ("GET", "/api/models/acme/NAME/xet-write-token/main", {}),
        ("HEAD", "/acme/NAME/resolve/main/a.json", {}),
        ("GET", "/acme/NAME/resolve/main/a.json", {}),
        ("POST", "/api/models/acme/NAME/paths-info/main", {"data": {"paths": "a"}}),
        ("POST", "/api/models/acme/NAME/preupload/main", {"json": {"files": []}}),
        ("POST", "/api/models/acme/NAME/commit/main", {"content": '{"key":"header","value":{"summary":"x"}}'}),
        ("POST", "/acme/NAME.git/info/lfs/objects/batch", {"json": batch_body}),
        ("POST", "/acme/NAME.git/info/lfs/verify", {"json": {"oid": "a" * 64, "size": 1}}),
        ("POST", "/api/models/acme/NAME/branch/x", {}),
        ("DELETE", "/api/models/acme/NAME/branch/x", {}),
        ("POST", "/api/models/acme/NAME/tag/main", {"json": {"tag": "x"}}),
        ("PUT", "/api/models/acme/NAME/settings", {"json": {"visibility": "public"}}),
        ("POST", "/api/models/acme/NAME/super-squash/main", {"json": {}}),
        ("DELETE", "/api/repos/delete", {"json": {"name": "NAME", "organization": "acme"}}),
        ("POST", "/api/repos/move", {"json": {"fromRepo": "acme/NAME", "toRepo": "rival/x", "type": "model"}}),
    ]
    for headers, status in (({"authorization": f"Bearer {token('rival')}"}, 404), ({}, 401)):
        with httpx.Client(base_url=server.url, headers=headers) as client:
            for method, address, options in requests:
                seen = []
                for name in ("secret", "nowhere"):
                    filled = json.loads(json.dumps(options).replace("NAME", name)) if "json" in options else options
                    answer = client.request(method, address.replace("NAME", name), **filled)
                    seen.append(
                        (
                            answer.status_code,
                            answer.content,
                            [item for item in answer.headers.items() if item[0] not in SAME_EVERY_TIME],
                        )
                    )
                assert seen[0] == seen[1], address
                assert seen[0][0] == status, (address, seen[0])
                if status == 404:
                    assert dict(seen[0][2])["x-error-code"] == "RepoNotFound", address


@pytest.mark.usefixtures("repo")
def test_signed_addresses_open_one_upload_only(raw: httpx.Client, server: Server) -> None:
    content = b"weights" * 100
    action = batch(raw, content, "basic")["actions"]
    href = action["upload"]["href"]
    with httpx.Client() as nobody:
        for broken in (href.replace("size=700", "size=701"), href.replace("acme", "rival"), href[:-1] + "0" * 2):
            assert nobody.put(broken, content=content).status_code == 403, broken
        assert nobody.put(href, content=b"x" * 700).status_code == 400, "other bytes"
        assert nobody.put(href, content=content[:-1]).status_code == 400, "too few"
        assert nobody.put(href, content=content + b"x").status_code == 413, "too many"
        blob = Blob(hashlib.sha256(content).hexdigest(), len(content))
        late = UploadGrant("acme", blob, int(time.time()) - 1).link(server.url, server.reg.signing_secret.value())
        assert nobody.put(late, content=content).status_code == 403
        assert raw.post(action["verify"]["href"], json={"oid": blob.sha256, "size": 700}).status_code == 404
        assert "actions" in batch(raw, content, "basic"), "nothing of all that was kept"
        assert nobody.put(href, content=content).status_code == 200
    assert raw.post(action["verify"]["href"], json={"oid": blob.sha256, "size": 700}).status_code == 200
    assert "actions" not in batch(raw, content, "basic")


@pytest.mark.usefixtures("repo")
def test_uploads_in_parts(raw: httpx.Client, server: Server) -> None:
    content = bytes(range(250)) * 10
    oid = hashlib.sha256(content).hexdigest()
    upload = batch(raw, content, "basic", "multipart")["actions"]["upload"]
    parts = {int(key): href for key, href in upload["header"].items() if key.isdecimal()}
    assert (upload["header"]["chunk_size"], sorted(parts)) == ("1000", [1, 2, 3])
    with httpx.Client() as nobody:

        def complete(etags: dict[int, str]) -> int:
            body = {"oid": oid, "parts": [{"partNumber": part, "etag": etag} for part, etag in etags.items()]}
            return nobody.post(upload["href"], json=body).status_code

        etags = {}
        for part in (3, 1):
            answer = nobody.put(parts[part], content=content[(part - 1) * 1000 : part * 1000])
            etags[part] = answer.headers["etag"]
        assert complete(etags) == 400, "one is missing"
        assert nobody.put(parts[2], content=b"x" * 999).status_code == 400
        assert nobody.put(parts[2], content=b"x" * 1001).status_code == 413
        etags[2] = nobody.put(parts[2], content=b"x" * 1000).headers["etag"]
        assert complete(etags) == 400, "another content than was announced"
        etags[2] = nobody.put(parts[2], content=content[1000:2000]).headers["etag"]
        assert complete(etags | {2: '"other"'}) == 400
        assert complete(etags) == 200
        assert complete(etags) == 200, "a repeated answer"
    assert "actions" not in batch(raw, content, "basic", "multipart")
    assert not list(server.reg.blobs.scratch.glob("parts-*"))


@pytest.mark.usefixtures("repo")
def test_what_another_tenant_has_is_not_present(
    raw: httpx.Client, server: Server, make_adapter: Callable[..., Path]
) -> None:
    server.reg.publish(make_adapter(), "rival/adapter", principal=OPERATOR)
    file = next(
        file for file in server.reg.resolve("rival/adapter", principal=OPERATOR).files if file.path.endswith("tensors")
    )
    body = {"operation": "upload", "objects": [{"oid": file.sha256, "size": file.size}]}
    assert "actions" in raw.post("/acme/sql.git/info/lfs/objects/batch", json=body).json()["objects"][0]
    large = ("lfsFile", {"path": "w.safetensors", "algo": "sha256", "oid": file.sha256, "size": file.size})
    answer = commit(raw, large)
    assert answer.status_code == 400
    assert "was not uploaded to this tenant" in answer.headers["x-error-message"]


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("repo")
def test_a_disk_that_fails_is_no_internal_error(raw: httpx.Client, server: Server) -> None:
    scratch = server.reg.blobs.scratch
    scratch.rename(scratch.with_name("away"))
    refused = commit(raw, inline("a.txt", b"text"))
    assert (refused.status_code, "storage failed" in refused.text) == (503, True)
    scratch.with_name("away").rename(scratch)
    assert commit(raw, inline("a.txt", b"text")).status_code == 200


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("repo")
def test_malformed_bodies_are_refused(raw: httpx.Client) -> None:
    bodies = [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"[" * 20_000,
        b'{"key":"header"}',
        b'{"key":"header","value":{"summary":""}}',
        b'{"key":"header","value":{"summary":5}}',
        b'{"key":"header","value":{"summary":"' + b"x" * 501 + b'"}}',
        b'{"key":"header","value":{"summary":"x","parentCommit":"zz"}}',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"header","value":{"summary":"x"}}',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"magic","value":{}}',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"deletedFile","value":{"path":"../x"}}',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a","content":"%","encoding":"base64"}}',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"file","value":{"path":"a","content":"","mode":"755"}}',
        b'{"key":"header","value":{"summary":"x"}}\n{"key":"lfsFile","value":{"path":"a","oid":"../../x"}}',
    ]
    for body in bodies:
        answer = raw.post(f"{REPO}/commit/main", content=body)
        assert answer.status_code == 400, (body, answer.text)
        assert answer.headers["x-error-message"]
        assert answer.json()["error"]
    assert (
        commit(raw, inline("a.txt", b"x"), ("deletedFile", {"path": "nothing"})).headers["x-error-code"]
        == "EntryNotFound"
    )
    assert raw.get(f"{REPO}/tree/main").json() == [], "nothing of these was kept"
    for address, wrong in (("preupload/main", {"files": [{"path": "a", "size": -1}]}), ("tag/main", {"tag": 5})):
        assert raw.post(f"{REPO}/{address}", json=wrong).status_code == 400
    assert (
        raw.post(f"{REPO}/preupload/main", json={"files": [{"path": "a", "size": 1, "sample": "*"}]}).status_code == 400
    )
    assert raw.get(f"{REPO}/tree/main", params={"cursor": "%%"}).status_code == 400
    assert raw.get("/api/models", params={"cursor": "eHg="}).status_code == 400
    assert raw.get("/api/models", params={"inference": "warm"}).status_code == 400
    assert raw.post("/api/validate-yaml", json={"content": "---\na: &x [*x]\n---\n"}).status_code == 400
    assert raw.post("/api/validate-yaml", json={"content": "---\na: 1\n---\n"}).json() == {"errors": [], "warnings": []}


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("repo")
def test_every_field_that_a_client_can_name(raw: httpx.Client) -> None:
    fields = [*get_args(ExpandModelProperty_T), "xetEnabled"]  # the last one: releases before 1.0
    assert len(fields) > 20
    for address in (REPO, "/api/models"):
        answer = raw.get(address, params=[("expand", field) for field in fields])
        assert answer.status_code == 200, answer.text
        document = answer.json() if address == REPO else answer.json()[0]
        assert set(fields) <= set(document)
    assert document["xetEnabled"] is True
    assert raw.get(REPO, params={"expand": "nonsense"}).status_code == 400


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("repo")
def test_bodies_are_bounded(raw: httpx.Client) -> None:
    assert commit(raw, inline("a.txt", b"x" * 40_000)).status_code == 413
    assert raw.post(f"{REPO}/commit/main", content=(b"x" for _ in range(60_000))).status_code == 413, (
        "of unknown length"
    )
    assert raw.post("/api/repos/create", content=b" " * 4_000_001).status_code == 413
    assert LINE_BYTES_LIMIT < 16_000_000
    objects = [{"oid": "a" * 64, "size": 100_001}]
    answer = raw.post("/acme/sql.git/info/lfs/objects/batch", json={"operation": "upload", "objects": objects})
    assert answer.status_code == 413
    files = [{"path": f"{number}.json", "size": 1} for number in range(1_001)]
    assert raw.post(f"{REPO}/preupload/main", json={"files": files}).status_code == 400


@pytest.mark.usefixtures("repo")
def test_listings_go_by_pages(raw: httpx.Client, server: Server) -> None:
    for number in range(3):
        assert commit(raw, *(inline(f"{number}/{part}.txt", b"x") for part in range(3))).status_code == 200
        server.reg.repositories.create(registry.AdapterName("acme", f"m{number}"), visibility=None, principal=OPERATOR)

    def pages(address: str) -> list[list[Any]]:
        found = []
        while address:
            answer = raw.get(address)
            found.append(answer.json())
            address = answer.links.get("next", {}).get("url", "")
            assert not address or address.startswith(server.url)
        return found

    tree = pages(f"{REPO}/tree/main?recursive=true&limit=5")
    assert [len(page) for page in tree] == [5, 5, 2]
    assert len({item["path"] for page in tree for item in page}) == 12
    assert [[item["title"] for item in page] for page in pages(f"{REPO}/commits/main?limit=2")] == [
        ["change", "change"],
        ["change", "initial commit"],
    ]
    for query in ("", "&sort=lastModified", "&sort=createdAt", "&full=true"):
        assert sorted(item["id"] for page in pages(f"/api/models?limit=1{query}") for item in page) == [
            "acme/m0",
            "acme/m1",
            "acme/m2",
            "acme/sql",
        ]


@pytest.mark.sqlite_only
def test_every_route_asks_who_it_is(server: Server) -> None:
    app = create_hub_app(server.reg, authenticate=server.authenticator.principal_of_scope)
    lines = [(route.method, route.pattern) for route in app.table.routes]
    assert len(set(lines)) == len(lines)
    with httpx.Client(base_url=server.url) as nobody:
        server.reg.create_token("acme", "reader")
        for route in app.table.routes:
            address = route.pattern.replace("{", "").replace("...}", "").replace("}", "")
            answer = nobody.request(route.method, address)
            expected = (400, 401, 403) if route.access is not Access.PRINCIPAL else (401,)
            assert answer.status_code in expected, (route.method, route.pattern, answer.status_code)
            assert app.takes(address.encode()), address
        check = nobody.post("/api/validate-yaml", json={"content": "---\na: 1\n---\n"})
        assert check.json() == {"errors": [], "warnings": []}, "clients check a card without their token"
    assert [route.pattern for route in app.table.routes if route.access is Access.OPEN] == ["/api/validate-yaml"]
    app.close()


@pytest.mark.sqlite_only
def test_other_kinds_of_repositories_and_methods(raw: httpx.Client) -> None:
    for address in (
        "/api/datasets/acme/sql",
        "/datasets/acme/sql/resolve/main/a",
        "/api/spaces/acme/sql/tree/main",
        "/api/models/gpt2",
        "/gpt2/resolve/main/config.json",
    ):
        assert HubApp.takes(address.encode())
        answer = raw.get(address)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
    for other in (b"/v1/models", b"/registry/v1/adapters", b"/metrics", b"/", b"/v1/chat/completions"):
        assert not HubApp.takes(other)
    answer = raw.put("/api/whoami-v2")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert raw.get("/api/agent-harnesses").status_code == 404
    assert raw.head("/api/telemetry/x").status_code == 404


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("repo")
def test_damaged_bytes_are_not_handed_out(raw: httpx.Client, server: Server, tmp_path: Path) -> None:
    commit(raw, inline("a.txt", b"good"))
    path = server.reg.blobs.local_path(Blob(hashlib.sha256(b"good").hexdigest(), 4))
    assert path is not None
    path.chmod(0o600)
    path.write_bytes(b"evil")
    answer = raw.get("/acme/sql/resolve/main/a.txt")
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text
    assert b"evil" not in answer.content


@pytest.mark.usefixtures("repo")
def test_a_digest_is_a_digest_to_its_last_character(raw: httpx.Client) -> None:
    oid = "0" * 64
    for text in (oid + "\n", oid[:-1] + "\n", oid.upper().replace("0", "A"), oid + "0"):
        objects = {"operation": "upload", "objects": [{"oid": text, "size": 1}]}
        assert raw.post("/acme/sql.git/info/lfs/objects/batch", json=objects).status_code == 400, repr(text)
        large = {"path": "a.safetensors", "algo": "sha256", "oid": text, "size": 1}
        assert commit(raw, ("lfsFile", large)).status_code == 400, repr(text)


@pytest.mark.usefixtures("repo")
def test_publishes_over_the_hub_are_counted(
    raw: httpx.Client, server: Server, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_adapter()
    blobs = [server.reg.blobs.put_file(copy_of(path, server.reg.blobs.scratch)) for path in sorted(folder.iterdir())]
    server.reg.quotas.reserve("acme", [(blob.sha256, blob.size) for blob in blobs], principal=OPERATOR)
    server.reg.quotas.mark_stored("acme", [(blob.sha256, blob.size) for blob in blobs])
    files = [
        ("lfsFile", {"path": path.name, "algo": "sha256", "oid": blob.sha256, "size": blob.size})
        for path, blob in zip(sorted(folder.iterdir()), blobs, strict=True)
    ]
    assert commit(raw, inline("notes.txt", b"no adapter")).status_code == 200
    assert server.reg.tally.publishes == {"new": 0, "known": 0, "refused": 0}
    for _ in range(2):  # the second changes nothing
        assert commit(raw, *files).status_code == 200
        assert server.reg.tally.publishes == {"new": 1, "known": 0, "refused": 0}
    assert commit(raw, inline("notes.txt", b"beside it")).status_code == 200
    assert server.reg.tally.publishes == {"new": 1, "known": 1, "refused": 0}
    assert commit(raw, inline("adapter_config.json", b"{}")).status_code == 200
    assert server.reg.tally.publishes == {"new": 1, "known": 1, "refused": 1}


def copy_of(path: Path, folder: Path) -> Path:
    return Path(shutil.copy(path, folder / path.name))


def test_a_version_without_a_card_shows_the_generated_one(
    raw: httpx.Client, server: Server, make_adapter: Callable[..., Path]
) -> None:
    server.reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    tree = raw.get(f"{REPO}/tree/main").json()
    info = raw.get(REPO).json()
    assert info["cardData"]["library_name"] == "peft"
    assert info["cardData"]["tags"][:2] == ["lora", "loraplex"]
    assert "README.md" not in [file["rfilename"] for file in info["siblings"]]
    assert raw.get("/acme/sql/resolve/main/README.md").status_code == 404, "it is no file of the version"
    assert info["loraplex"]["card"] == "/registry/v1/card?ref=acme%2Fsql%401"
    shown = ModelCard(server.reg.card("acme/sql@1", OPERATOR)).data.to_dict()
    assert {name: shown[name] for name in info["cardData"]} == info["cardData"]
    assert commit(raw, inline("README.md", b"---\nlicense: mit\n---\n# Mine\n")).status_code == 200
    assert raw.get(REPO).json()["cardData"] == {"license": "mit"}, "whoever writes a card is not contradicted"
    assert raw.get(f"{REPO}/revision/v1").json()["cardData"] == info["cardData"]
    assert [file["path"] for file in tree] == [file["path"] for file in raw.get(f"{REPO}/tree/v1").json()]


def test_model_info_is_read_once_until_something_changes(
    raw: httpx.Client, server: Server, make_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    first = raw.get(REPO).json()
    opened = []
    monkeypatch.setattr(type(server.reg.blobs), "open", lambda *_, **__: opened.append("open"))
    monkeypatch.setattr(type(server.reg.blobs), "read", lambda *_: opened.append("read"))
    assert raw.get(REPO).json() == first
    assert opened == []
    server.reg.repositories.set_visibility(AdapterName.parse("acme/sql"), registry.Visibility.PUBLIC, OPERATOR)
    assert raw.get(REPO).json()["private"] is False
    assert opened == [], "what a digest's content says does not change"
