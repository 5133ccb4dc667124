"""Xet uploads, from the write token to the tenant's blobs: what is kept, what is refused, and who may do it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import registry
from registry.errors import (
    AuthenticationError,
    InvalidValueError,
    QuotaExceededError,
    StorageError,
    UploadMismatchError,
)
from registry.file_entry import Blob
from registry.hub.app import HubApp, create_hub_app
from registry.hub.xet_format import Scheme
from registry.hub.xet_grant import XetGrant, XetGrants
from registry.hub.xet_session import FINISHED_SECONDS, XetLimits, XetSession, XetSessions
from tests.registry.golden_xet import FOLDER, originals
from tests.registry.xet_bytes import Term, shard, shard_of, term, xorb

X1, X2 = "ab" * 32, "cd" * 32
GRANT = XetGrant("acme", "x", None, int(time.time()) + 3600)


@pytest.fixture
def acme(reg: registry.Registry) -> registry.Registry:
    reg.create_tenant("acme")
    reg.create_tenant("umbrella")
    return reg


@pytest.fixture
def sessions(acme: registry.Registry) -> XetSessions:
    return XetSessions(acme.blobs, acme.quotas)


def send_xorb(session: XetSession, xorb_hash: str, data: bytes) -> bool:
    part = session.new_part(announced_bytes=len(data))
    try:
        part.write(data)
        return session.keep_xorb(part, xorb_hash)
    finally:
        part.discard()


def send_shard(session: XetSession, data: bytes) -> tuple[Blob, ...]:
    part = session.new_part(announced_bytes=len(data))
    try:
        part.write(data)
        return session.register_shard(part)
    finally:
        part.discard()


def staged(reg: registry.Registry) -> list[str]:
    return sorted(path.name for path in reg.blobs.scratch.glob("xet-*/*"))


def everything_below(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


def used(reg: registry.Registry, tenant: str = "acme") -> int:
    return reg.usage(tenant).used_bytes


@pytest.mark.parametrize("scheme", Scheme)
def test_files_of_a_shard_become_blobs_of_the_tenant(
    acme: registry.Registry, sessions: XetSessions, scheme: Scheme
) -> None:
    session = sessions.find(sessions.begin(), GRANT)
    assert send_xorb(session, X1, xorb([b"a" * 1000, b"b" * 500], scheme))
    assert send_xorb(session, X2, xorb([b"c" * 7], scheme))
    assert not send_xorb(session, X2, xorb([b"c" * 7], scheme))
    content = b"b" * 500 + b"c" * 7 + b"a" * 1000 + b"b" * 500
    terms = [term(X1, 500, 1, 2), term(X2, 7, 0, 1), term(X1, 1500, 0, 2)]
    (blob,) = send_shard(session, shard_of([(content, terms)]))
    assert acme.blobs.read(blob) == content
    assert acme.quotas.present("acme", [blob.sha256])
    assert not acme.quotas.present("umbrella", [blob.sha256])
    assert used(acme) == len(content)
    acme.quotas.check_integrity()
    assert staged(acme) == [X1, X2]


@pytest.mark.sqlite_only
def test_a_recorded_upload_is_stored_whole(acme: registry.Registry, sessions: XetSessions) -> None:
    for folder in FOLDER.iterdir():
        session = sessions.find(sessions.begin(), GRANT)
        for path in folder.iterdir():
            if len(path.name) == 64:
                send_xorb(session, path.name, path.read_bytes())
        blobs = send_shard(session, (folder / "shard-1").read_bytes())
        assert sorted(acme.blobs.read(blob) for blob in blobs) == sorted(originals().values())


def test_the_same_files_again_cost_nothing_and_a_file_named_twice_counts_once(
    acme: registry.Registry, sessions: XetSessions
) -> None:
    for _ in range(2):
        session = sessions.find(sessions.begin(), GRANT)
        send_xorb(session, X1, xorb([b"same"]))
        send_shard(session, shard_of([(b"same", [term(X1, 4, 0, 1)])] * 3))
        assert used(acme) == 4


def test_a_wrong_digest_keeps_nothing_and_frees_the_room(acme: registry.Registry, sessions: XetSessions) -> None:
    session = sessions.find(sessions.begin(), GRANT)
    send_xorb(session, X1, xorb([b"content"]))
    wrong = "12" * 32
    with pytest.raises(UploadMismatchError):
        send_shard(session, shard([(wrong, [term(X1, 7, 0, 1)])]))
    assert acme.blobs.size_of(wrong) is None
    assert acme.blobs.size_of(hashlib.sha256(b"content").hexdigest()) is None
    assert used(acme) == 0
    acme.quotas.check_integrity()
    assert staged(acme) == [X1]


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("terms", "why"),
    [
        pytest.param([term(X2, 7, 0, 1)], "names a xorb", id="a xorb that was not sent"),
        pytest.param([term(X1, 7, 0, 2)], "names the chunks", id="a chunk that is not there"),
        pytest.param([term(X1, 8, 0, 1)], "another size", id="another size"),
    ],
)
def test_terms_are_checked_before_anything_is_unpacked(
    acme: registry.Registry, sessions: XetSessions, terms: list[Term], why: str
) -> None:
    session = sessions.find(sessions.begin(), GRANT)
    send_xorb(session, X1, xorb([b"content"]))
    good = (hashlib.sha256(b"content").hexdigest(), [term(X1, 7, 0, 1)])
    with pytest.raises(InvalidValueError, match=why):
        send_shard(session, shard([good, ("34" * 32, terms)]))
    assert list(acme.blobs.all()) == []
    assert used(acme) == 0


def test_a_small_shard_cannot_expand_beyond_the_limits(acme: registry.Registry) -> None:
    sessions = XetSessions(acme.blobs, acme.quotas, XetLimits(file_bytes=10 << 20))
    session = sessions.find(sessions.begin(), GRANT)
    send_xorb(session, X1, xorb([bytes(128 << 10)] * 8, Scheme.LZ4))
    million = term(X1, 1 << 20, 0, 8)
    with pytest.raises(InvalidValueError, match="more than"):
        send_shard(session, shard([("12" * 32, [million] * 11)]))
    acme.set_quota("acme", quota_bytes=5 << 20, quota_versions=None)
    with pytest.raises(QuotaExceededError):
        send_shard(session, shard([("12" * 32, [million] * 6)]))
    assert used(acme) == 0
    content = bytes(4 << 20)
    (blob,) = send_shard(session, shard_of([(content, [million] * 4)]))
    assert blob.size == used(acme) == 4 << 20


@pytest.mark.sqlite_only
def test_what_waits_in_sessions_is_bounded_by_bytes_and_by_number(acme: registry.Registry) -> None:
    sessions = XetSessions(acme.blobs, acme.quotas, XetLimits(staged_bytes=5000, staged_xorbs=3))
    session = sessions.find(sessions.begin(), GRANT)
    send_xorb(session, X1, xorb([b"1" * 3000]))
    with pytest.raises(QuotaExceededError):
        sessions.find(sessions.begin(), GRANT).new_part(announced_bytes=2000)
    other = XetGrant("umbrella", "x", None, GRANT.expires_at)
    send_xorb(sessions.find(sessions.begin(), other), X1, xorb([b"1" * 3000]))
    for name in ("11" * 32, "22" * 32):
        send_xorb(session, name, xorb([b"1"]))
    with pytest.raises(InvalidValueError, match="wait already"):
        session.new_part(announced_bytes=1)


def test_a_grant_opens_the_sessions_of_its_own_repository_only(acme: registry.Registry, sessions: XetSessions) -> None:
    session_id = sessions.begin()
    send_xorb(sessions.find(session_id, GRANT), X1, xorb([b"content"]))
    data = shard_of([(b"content", [term(X1, 7, 0, 1)])])
    for tenant, name in (("acme", "y"), ("umbrella", "x")):
        with pytest.raises(InvalidValueError, match="names a xorb"):
            send_shard(sessions.find(session_id, XetGrant(tenant, name, None, GRANT.expires_at)), data)
    another_process = XetSessions(acme.blobs, acme.quotas)
    send_shard(another_process.find(session_id, GRANT), data)


@pytest.mark.sqlite_only
def test_stale_sessions_are_removed_and_the_client_can_upload_again(acme: registry.Registry) -> None:
    sessions = XetSessions(acme.blobs, acme.quotas)
    first = sessions.begin()
    send_xorb(sessions.find(first, GRANT), X1, xorb([b"content"]))
    (folder,) = acme.blobs.scratch.glob("xet-*")
    assert sessions.remove_stale() == 0
    os.utime(folder, (0, 0))
    XetSessions(acme.blobs, acme.quotas).begin()
    assert not folder.exists()
    data = shard_of([(b"content", [term(X1, 7, 0, 1)])])
    with pytest.raises(InvalidValueError, match="Upload again"):
        send_shard(sessions.find(first, GRANT), data)
    second = sessions.find(sessions.begin(), GRANT)
    send_xorb(second, X1, xorb([b"content"]))
    send_shard(second, data)


@pytest.mark.sqlite_only
def test_a_finished_session_goes_soon_but_not_while_more_is_sent(acme: registry.Registry) -> None:
    sessions = XetSessions(acme.blobs, acme.quotas, XetLimits(idle_seconds=FINISHED_SECONDS + 3600))
    session = sessions.find(sessions.begin(), GRANT)
    send_xorb(session, X1, xorb([b"content"]))
    send_shard(session, shard_of([(b"content", [term(X1, 7, 0, 1)])]))
    (folder,) = acme.blobs.scratch.glob("xet-*")
    age = time.time() - folder.stat().st_mtime
    assert age == pytest.approx(3600, abs=120)
    assert sessions.remove_stale() == 0
    send_xorb(session, X2, xorb([b"more"]))
    assert time.time() - folder.stat().st_mtime < 120
    assert sessions.count("acme") == 1
    assert sessions.count("umbrella") == 0


@pytest.mark.sqlite_only
def test_a_broken_body_leaves_nothing(acme: registry.Registry, sessions: XetSessions) -> None:
    session = sessions.find(sessions.begin(), GRANT)
    for data in (b"", b"no xorb", xorb([b"cut"])[:-1]):
        with pytest.raises(InvalidValueError):
            send_xorb(session, X1, data)
    assert staged(acme) == []


@pytest.mark.sqlite_only
def test_a_full_disk_is_a_storage_error(
    acme: registry.Registry, sessions: XetSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    session = sessions.find(sessions.begin(), GRANT)
    send_xorb(session, X1, xorb([b"content"]))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        send_shard(session, shard_of([(b"content", [term(X1, 7, 0, 1)])]))
    monkeypatch.undo()
    assert used(acme) == 0
    send_shard(session, shard_of([(b"content", [term(X1, 7, 0, 1)])]))


def test_grants_are_checked() -> None:
    grants = XetGrants(b"s" * 32)
    token = grants.sign(GRANT)
    assert grants.check(token) == GRANT
    payload, _, mac = token.partition(".")
    wrong = [
        "",
        ".",
        payload,
        f"{payload}.{mac[:-1]}",
        f"{payload[:-4]}AAAA.{mac}",
        f"x{token}",
        "ü" * 10,
        token * 100,
        XetGrants(b"t" * 32).sign(GRANT),
        grants.sign(XetGrant("acme", "x", None, int(time.time()) - 1)),
    ]
    for bad in wrong:
        with pytest.raises(AuthenticationError):
            grants.check(bad)


# Over HTTP -------------------------------------------------------------------------------------------------------


@pytest.fixture
def app(acme: registry.Registry) -> HubApp:
    async def authenticate(scope: Any) -> registry.Principal:
        headers = dict(scope["headers"])
        return acme.authenticate(headers.get(b"authorization", b"").decode().removeprefix("Bearer "))

    return create_hub_app(acme, authenticate=authenticate)


@pytest.fixture
async def http(app: HubApp) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://hub.test") as client:
        yield client


@pytest.fixture
def token(acme: registry.Registry) -> Callable[..., str]:
    def make(tenant: str = "acme", role: str = "publisher") -> str:
        return acme.create_token(tenant, role).secret

    return make


async def create(http: httpx.AsyncClient, secret: str, name: str = "x") -> None:
    headers = {"authorization": f"Bearer {secret}"}
    answer = await http.post("/api/repos/create", json={"name": name, "organization": "acme"}, headers=headers)
    answer.raise_for_status()


async def write_token(http: httpx.AsyncClient, secret: str, name: str = "x") -> httpx.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return await http.get(f"/api/models/acme/{name}/xet-write-token/refs%2Fpr%2F1", headers=headers)


@pytest.mark.parametrize("spelling", ["v1/xorbs v1/shards", "xorbs shards", "xorb shard"])
async def test_an_upload_over_http(
    acme: registry.Registry, http: httpx.AsyncClient, token: Callable[..., str], spelling: str
) -> None:
    secret = token()
    await create(http, secret)
    granted = await write_token(http, secret)
    document = granted.json()
    assert document["exp"] > time.time() + 600
    assert document["casUrl"].startswith("http://hub.test/cas/")
    assert granted.headers["x-xet-cas-url"] == document["casUrl"]
    assert granted.headers["x-xet-access-token"] == document["accessToken"]
    assert granted.headers["x-xet-token-expiration"] == str(document["exp"])
    assert secret not in granted.text

    xorbs, shards = spelling.split()
    cas, headers = document["casUrl"], {"authorization": f"Bearer {document['accessToken']}"}
    for path, method in (("chunks/default/" + X1, "GET"), ("xorb-grants/default/" + X1, "POST")):
        assert (await http.request(method, f"{cas}/v1/{path}", headers=headers)).status_code == 404
    assert (await http.post(f"{cas}/v2/shards", headers=headers, content=b"x")).status_code == 404
    sent = await http.post(f"{cas}/{xorbs}/default/{X1}", headers=headers, content=xorb([b"c" * 3000]))
    assert sent.json() == {"was_inserted": True}
    content = b"c" * 6000
    data = shard_of([(content, [term(X1, 3000, 0, 1)] * 2)])
    suffix = f"/default/{X2}" if shards == "shard" else ""
    assert (await http.post(f"{cas}/{shards}{suffix}", headers=headers, content=data)).json() == {"result": 1}
    assert acme.quotas.present("acme", [hashlib.sha256(content).hexdigest()])

    second = (await write_token(http, secret)).json()
    assert second["casUrl"] != cas
    refreshed = {"authorization": f"Bearer {second['accessToken']}"}  # a long upload goes on with its next token
    again = await http.post(f"{cas}/{xorbs}/default/{X1}", headers=refreshed, content=xorb([b"c" * 3000]))
    assert again.json() == {"was_inserted": False}


@pytest.mark.sqlite_only
async def test_who_may_upload(http: httpx.AsyncClient, token: Callable[..., str]) -> None:
    publisher = token()
    await create(http, publisher)
    assert (await write_token(http, token(role="reader"))).status_code == 403
    foreign = await write_token(http, token("umbrella"))
    missing = await write_token(http, publisher, "nothing")
    assert (foreign.status_code, foreign.content) == (missing.status_code, missing.content)
    assert foreign.status_code == 404
    assert foreign.headers["x-error-code"] == "RepoNotFound"
    assert (await write_token(http, "lpx_wrong")).status_code == 401
    assert (await write_token(http, publisher, "x.at.prod")).status_code == 403


@pytest.mark.sqlite_only
async def test_every_cas_route_wants_its_own_token(
    app: HubApp, http: httpx.AsyncClient, token: Callable[..., str]
) -> None:
    secret = token()
    await create(http, secret)
    document = (await write_token(http, secret)).json()
    routes = [route for route in app.table.routes if route.pattern.startswith("/cas/")]
    assert len(routes) == 11
    for route in routes:
        session = document["casUrl"].rpartition("/")[2]
        path = route.pattern.replace("{session}", session).replace("{hash}", X1)
        for authorization in ({}, {"authorization": f"Bearer {secret}"}, {"authorization": "Basic eDp4"}):
            answer = await http.request(route.method, path, headers=authorization)
            assert answer.status_code == 401, (route.pattern, authorization)
        odd = {"authorization": f"Bearer {document['accessToken']}"}
        answer = await http.request(route.method, path.replace(session, "..%2F..%2Fx"), headers=odd)
        assert answer.status_code == 401, route.pattern


@pytest.mark.sqlite_only
async def test_bodies_are_bounded_and_hashes_are_names_not_paths(
    acme: registry.Registry, http: httpx.AsyncClient, token: Callable[..., str], tmp_path: Path
) -> None:
    secret = token()
    await create(http, secret)
    document = (await write_token(http, secret)).json()
    headers = {"authorization": f"Bearer {document['accessToken']}"}
    for name in ("..%2F..%2Fevil", "a" * 63, "G" * 64, "A" * 64):
        answer = await http.post(f"{document['casUrl']}/v1/xorbs/default/{name}", headers=headers, content=xorb([b"x"]))
        assert answer.status_code == 400, name
    large = headers | {"content-length": str(80 << 20)}
    answer = await http.post(f"{document['casUrl']}/v1/xorbs/default/{X1}", headers=large, content=b"")
    assert answer.status_code == 413
    for path in (f"v1/xorbs/default/{X1}", "v1/shards"):
        answer = await http.post(f"{document['casUrl']}/{path}", headers=headers, content=b"nonsense")
        assert answer.status_code == 400
    assert staged(acme) == []
    assert not any("evil" in path.name for path in everything_below(tmp_path))
