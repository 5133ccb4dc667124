"""Mirrors against a small real HTTP server with the few routes of a Hub, which can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import registry
from registry import Principal, RejectedAdapterError, Role
from registry.errors import InvalidValueError, NotFoundError, PermissionDeniedError, UpstreamError
from registry.upstream import Upstream
from tests.registry.adapter_folders import OTHER_FINGERPRINT, manifest_document
from tests.registry.web_peer import Received, Reply, WebPeer

MakeAdapter = Callable[..., Path]
PUBLISHER = Principal(tenant="acme", role=Role.PUBLISHER, token_id="tok_p")
READER = Principal(tenant="acme", role=Role.READER, token_id="tok_r")


class FakeHub:
    """Repositories by name, each a branch `main` of commits; a commit is files by path."""

    def __init__(self, peer: WebPeer) -> None:
        self.peer = peer
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.damage: Callable[[str, bytes], bytes] = lambda path, content: content
        self.files_at: str | None = None
        self.token: str | None = None
        peer.answer = self.answer

    def push(self, repository: str, folder: Path, **extra: bytes) -> str:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        files |= {name.replace("__", "."): content for name, content in extra.items()}
        commits = self.commits.setdefault(repository, {})
        commit = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit

    def answer(self, request: Received) -> Reply:
        path = unquote(urlsplit(request.path).path)
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, headers={"X-Error-Code": "RepoNotFound"})
        for repository, commits in self.commits.items():
            head = list(commits)[-1]
            if path == f"/api/models/{repository}/revision/main":
                return as_json({"id": repository, "sha": head, "siblings": []})
            for commit, files in commits.items():
                if path == f"/api/models/{repository}/tree/{commit}":
                    return as_json([entry_of(name, content) for name, content in files.items()])
                for name, content in files.items():
                    if path == f"/{repository}/resolve/{commit}/{name}":
                        return self.file(name, content)
        return Reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def file(self, name: str, content: bytes) -> Reply:
        if self.files_at is not None:
            return Reply(302, b"", {"Location": f"{self.files_at}/{name}"})
        xet = {"X-Xet-Hash": "0" * 64, "Link": '<https://cas.example/>; rel="xet-auth"'}
        return Reply(200, self.damage(name, content), xet)


def as_json(document: Any) -> Reply:
    return Reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def entry_of(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
    if name.endswith((".safetensors", ".bin")):
        entry["oid"] = hashlib.sha1(b"pointer").hexdigest()
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    else:
        entry["oid"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    return entry


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with WebPeer().running() as running:
        yield FakeHub(running)


def test_an_adapter_is_pulled_in_pinned(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal
) -> None:
    folder = make_adapter(seed=1)
    commit = hub.push("org/x", folder, README__md=b"# hello\n", tokenizer__json=b"{}", adapter_model__bin=b"pickle")
    done = reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)
    version = reg.resolve("acme/x", principal=operator)
    assert {file.path: file.sha256 for file in version.files} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in hub.commits["org/x"][commit].items()
        if name not in ("tokenizer.json", "adapter_model.bin")
    }
    assert version.message == f"mirrored from {hub.peer.url}/org/x at commit {commit}"
    assert (done.mirror.commit, done.mirror.revision) == (commit, "main")
    assert reg.list_mirrors(operator) == [done.mirror]
    asked = [request.path for request in hub.peer.received]
    assert not any("tokenizer" in path or ".bin" in path for path in asked), "only what can be an adapter's is fetched"
    assert not any("xet" in path or "cas" in path for path in asked)


def test_sync_follows_the_branch_and_nothing_else_does(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal
) -> None:
    hub.push("org/x", make_adapter(seed=1))
    reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)
    assert reg.sync_mirror("acme/x", principal=PUBLISHER).publication is None
    newer = hub.push("org/x", make_adapter(seed=2))
    asked = len(hub.peer.received)
    assert reg.resolve("acme/x", principal=operator).number == 1
    assert len(hub.peer.received) == asked, "reading never asks the upstream"
    done = reg.sync_mirror("acme/x", principal=PUBLISHER)
    assert done.publication is not None
    assert (done.publication.version.number, done.mirror.commit) == (2, newer)
    assert reg.sync_mirror("acme/x", principal=PUBLISHER).publication is None


def test_an_upstream_that_disappears_breaks_nothing(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal, tmp_path: Path
) -> None:
    hub.push("org/x", make_adapter(seed=1))
    reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)
    hub.commits.clear()
    with pytest.raises(NotFoundError):
        reg.sync_mirror("acme/x", principal=operator)
    hub.peer.answer = lambda request: Reply(500)
    with pytest.raises(UpstreamError):
        reg.sync_mirror("acme/x", principal=operator)
    version = reg.resolve("acme/x", principal=operator)
    reg.pull(version, tmp_path / "pulled")
    reg.remove_mirror("acme/x", operator)
    assert reg.list_mirrors(operator) == []
    assert reg.resolve("acme/x", principal=operator) == version


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "damage",
    [
        lambda name, content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda name, content: content[:-1],
        lambda name, content: content + b"x",
        lambda name, content: b"",
    ],
    ids=["flipped", "short", "long", "empty"],
)
@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_damaged_file_is_refused(
    reg: registry.Registry,
    hub: FakeHub,
    make_adapter: MakeAdapter,
    operator: Principal,
    file: str,
    damage: Callable[[str, bytes], bytes],
) -> None:
    hub.push("org/x", make_adapter(seed=1))
    hub.damage = lambda name, content: damage(name, content) if name == file else content
    with pytest.raises(UpstreamError, match="damaged"):
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)
    assert reg.list_adapters(operator) == []
    assert reg.list_mirrors(operator) == []


@pytest.mark.sqlite_only
def test_what_comes_in_is_judged(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal
) -> None:
    folder = make_adapter(seed=1)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    hub.push("org/pickle", folder)
    with pytest.raises(RejectedAdapterError) as pickle:
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/pickle", principal=operator)
    assert pickle.value.reason == "missing-file"
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04\x95pickle")
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    hub.push("org/disguised", folder)
    with pytest.raises(RejectedAdapterError):
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/disguised", principal=operator)
    hub.push("org/base", make_adapter(manifest=manifest_document(OTHER_FINGERPRINT)))
    with pytest.raises(RejectedAdapterError) as base:
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/base", principal=operator)
    assert base.value.reason == "base-mismatch"
    assert reg.list_mirrors(operator) == []


@pytest.mark.sqlite_only
def test_a_token_stays_at_its_origin(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal
) -> None:
    """Files may lie on another host; it is public or nothing, and never sees the token."""
    hub.push("org/x", make_adapter(seed=1))
    hub.token = "hf_upstream"
    source = f"{hub.peer.url}/org/x"
    with pytest.raises(NotFoundError):
        reg.add_mirror("acme/x", source, principal=operator)
    with WebPeer().running() as elsewhere:
        hub.files_at = elsewhere.url
        with pytest.raises(InvalidValueError, match="https"):
            reg.add_mirror("acme/x", source, principal=operator, token="hf_upstream")
        hub.files_at = elsewhere.url.replace("http://", "https://")
        with pytest.raises(InvalidValueError, match="public internet"):
            reg.add_mirror("acme/x", source, principal=operator, token="hf_upstream")
        assert elsewhere.received == []
    hub.files_at = None
    done = reg.add_mirror("acme/x", source, principal=operator, token="hf_upstream")
    assert "hf_upstream" not in repr(done)
    assert "hf_upstream" not in repr(Upstream.parse(source, token="hf_upstream"))
    assert "hf_upstream" not in repr(reg.audit_entries(principal=operator))


@pytest.mark.sqlite_only
def test_redirects_within_the_origin_are_followed_and_bounded(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal
) -> None:
    hub.push("org/x", make_adapter(seed=1))
    plain = hub.answer

    def renamed(request: Received) -> Reply:
        if request.path.startswith("/api/models/old/x/revision"):
            return Reply(307, b"", {"Location": request.path.replace("old/x", "org/x")})
        return plain(request)

    hub.peer.answer = renamed
    assert Upstream.parse(f"{hub.peer.url}/old/x").commit_of("main") in hub.commits["org/x"]
    hub.peer.answer = lambda request: Reply(302, b"", {"Location": request.path})
    with pytest.raises(UpstreamError, match="again and again"):
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "document",
    [b"{", b"[]", b'{"sha": "main"}', b'{"sha": 7}', b'{"sha": "../../etc"}', b'"' + b"x" * 5_000_000 + b'"'],
)
def test_answers_that_are_not_a_hubs(
    reg: registry.Registry, hub: FakeHub, operator: Principal, document: bytes
) -> None:
    hub.peer.answer = lambda request: Reply(200, document)
    with pytest.raises(UpstreamError):
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "entry",
    [
        {"path": "adapter_model.safetensors", "lfs": {"oid": "0" * 64, "size": 9 * 1024**3}},
        {"path": "adapter_model.safetensors", "lfs": {"oid": "x", "size": 1}},
        {"path": "adapter_config.json", "size": 5_000_000},
        {"path": "adapter_config.json", "size": -1},
    ],
)
def test_trees_that_promise_too_much(
    reg: registry.Registry, hub: FakeHub, operator: Principal, entry: dict[str, Any]
) -> None:
    def answer(request: Received) -> Reply:
        if "/tree/" in request.path:
            return as_json([{"type": "file", "oid": "0" * 40, "size": 1} | entry])
        return as_json({"sha": "0" * 40})

    hub.peer.answer = answer
    with pytest.raises(UpstreamError):
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)
    assert not any("/resolve/" in request.path for request in hub.peer.received), "nothing was downloaded"


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    "source",
    ["", "org/x", "ftp://h/org/x", "https://h/x", "https://u@h/org/x", "https://h/org/x?a=b", "https://h/../x",
     "https://h/org/x#f", "https:///org/x"],
)  # fmt: skip
def test_addresses_that_are_none(reg: registry.Registry, operator: Principal, source: str) -> None:
    with pytest.raises(InvalidValueError):
        reg.add_mirror("acme/x", source, principal=operator)


@pytest.mark.sqlite_only
def test_who_may(reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal) -> None:
    hub.push("org/x", make_adapter(seed=1))
    admin = Principal(tenant="acme", role=Role.ADMIN, token_id="tok_a")
    with pytest.raises(PermissionDeniedError):
        reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=admin)
    reg.add_mirror("acme/x", f"{hub.peer.url}/org/x", principal=operator)
    with pytest.raises(PermissionDeniedError):
        reg.sync_mirror("acme/x", principal=READER)
    rival = Principal(tenant="rival", role=Role.ADMIN, token_id="tok_v")
    with pytest.raises(NotFoundError):
        reg.sync_mirror("acme/x", principal=rival)
    assert reg.list_mirrors(rival) == []
    assert len(reg.list_mirrors(READER)) == 1


def test_unknown_adapters_are_pulled_through_where_the_policy_says_so(
    reg: registry.Registry, hub: FakeHub, make_adapter: MakeAdapter, operator: Principal
) -> None:
    hub.push("org/x", make_adapter(seed=1))
    reg.create_tenant("acme")
    reg.create_tenant("rival")
    with pytest.raises(NotFoundError):
        reg.resolve("acme/x", principal=READER)
    assert hub.peer.received == [], "it is off by default"
    reg.set_tenant_policy("acme", {"upstream": f"{hub.peer.url}/org"})
    rival = Principal(tenant="rival", role=Role.ADMIN, token_id="tok_v")
    for stranger in (rival, operator):
        with pytest.raises(NotFoundError):
            reg.resolve("acme/x", principal=stranger)
    assert hub.peer.received == [], "only the tenant's own tokens cause a pull"
    version = reg.resolve("acme/x", principal=READER)
    assert version.created_by == "mirror"
    assert reg.list_mirrors(READER)[0].adapter == "acme/x"
    asked = len(hub.peer.received)
    assert reg.resolve("acme/x@1", principal=READER) == version
    assert len(hub.peer.received) == asked
    for _ in range(3):
        with pytest.raises(NotFoundError):
            reg.resolve("acme/missing", principal=READER)
    assert len(hub.peer.received) == asked + 1, "a miss is remembered for a while"


@pytest.mark.sqlite_only
def test_only_the_operator_says_where_to_pull_from(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    admin = Principal(tenant="acme", role=Role.ADMIN, token_id="tok_a")
    with pytest.raises(PermissionDeniedError):
        reg.set_tenant_policy("acme", {"upstream": "https://169.254.169.254/x"}, principal=admin)
    for source in ("https://host", "ftp://host/org", "https://u@host/org", "https://host/org?x=1"):
        with pytest.raises(InvalidValueError):
            reg.set_tenant_policy("acme", {"upstream": source})
    assert reg.set_tenant_policy("acme", {"upstream": "https://host/org"}).upstream == "https://host/org"
    assert reg.set_tenant_policy("acme", {"upstream": ""}).upstream is None
