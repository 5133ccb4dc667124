"""Two servers over one PostgreSQL and one S3, each with a scratch folder of its own, as behind one address."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import registry
from registry.hub.context import HubSettings
from tests.registry.adapter_folders import write_adapter
from tests.registry.backends import ServerPlace
from tests.registry.hub.conftest import Server, serving

PART_BYTES = 5_000
OWN_URL = "http://node-1.example:9"


@pytest.fixture
def servers(postgres_place: ServerPlace, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    settings = HubSettings(part_bytes=PART_BYTES)
    place = postgres_place.arguments()
    with (
        registry.open(**place) as first,
        registry.open(**(place | {"scratch": str(tmp_path / "other")})) as second,
        serving(first, settings) as one,
        serving(second, settings) as two,
    ):
        yield one, two


def test_a_piece_that_came_to_another_server_is_told_of(servers: tuple[Server, Server], tmp_path: Path) -> None:
    one, two = servers
    folder = write_adapter(tmp_path / "adapter", seed=1)
    one.reg.publish(folder, "acme/sql", principal=registry.Principal.operator())
    weights = (write_adapter(tmp_path / "newer", seed=2) / "adapter_model.safetensors").read_bytes()
    oid = hashlib.sha256(weights).hexdigest()
    token = one.reg.create_token("acme", "publisher").secret
    with httpx.Client(headers={"authorization": f"Bearer {token}"}) as client:
        body = {
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": oid, "size": len(weights)}],
        }
        answer = client.post(f"{one.url}/acme/sql.git/info/lfs/objects/batch", json=body)
        upload = answer.json()["objects"][0]["actions"]["upload"]
        parts = {int(key): href for key, href in upload["header"].items() if key.isdecimal()}
        pieces = {number: weights[(number - 1) * PART_BYTES : number * PART_BYTES] for number in parts}
        etags = {
            1: client.put(parts[1], content=pieces[1]).headers["etag"],
            2: client.put(parts[2].replace(one.url, two.url), content=pieces[2]).headers["etag"],
        }
        completion: dict[str, Any] = {
            "oid": oid,
            "parts": [{"partNumber": part, "etag": etag} for part, etag in etags.items()],
        }
        refused = client.post(upload["href"], json=completion)
        assert refused.status_code == 400
        assert "did not come to this server" in refused.text
        assert "--own-url" in refused.text
        completion["parts"][1]["etag"] = client.put(parts[2], content=pieces[2]).headers["etag"]
        assert client.post(upload["href"], json=completion).status_code == 200
        large = (
            '{"key": "header", "value": {"summary": "newer"}}\n'
            f'{{"key": "lfsFile", "value": {{"path": "adapter_model.safetensors", "algo": "sha256", "oid": "{oid}", '
            f'"size": {len(weights)}}}}}'
        )
        done = client.post(f"{two.url}/api/models/acme/sql/commit/main", content=large)
        assert done.status_code == 200, done.text
    assert two.reg.resolve("acme/sql", principal=registry.Principal.operator()).number == 2


@pytest.mark.sqlite_only
def test_pieces_go_to_the_server_that_gathers_them(reg: registry.Registry) -> None:
    with (
        serving(reg, HubSettings(part_bytes=PART_BYTES, public_url="http://hub.example", own_url=OWN_URL)) as server,
        httpx.Client(
            base_url=server.url, headers={"authorization": f"Bearer {reg.create_token('acme', 'admin').secret}"}
        ) as client,
    ):
        assert client.post("/api/repos/create", json={"name": "sql", "organization": "acme"}).status_code == 200

        def actions(size: int) -> dict[str, dict[str, object]]:
            objects = [{"oid": hashlib.sha256(str(size).encode()).hexdigest(), "size": size}]
            body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects}
            answer = client.post("/acme/sql.git/info/lfs/objects/batch", json=body)
            found: dict[str, dict[str, object]] = answer.json()["objects"][0]["actions"]
            return found

        in_parts, whole = actions(3 * PART_BYTES), actions(10)
        header = in_parts["upload"]["header"]
        assert isinstance(header, dict)
        assert str(in_parts["upload"]["href"]).startswith(f"{OWN_URL}/api/lfs/acme/")
        assert all(str(href).startswith(OWN_URL) for key, href in header.items() if key != "chunk_size")
        assert str(in_parts["verify"]["href"]).startswith("http://hub.example/")
        assert str(whole["upload"]["href"]).startswith("http://hub.example/"), "one piece may go anywhere"
        granted = client.get("/api/models/acme/sql/xet-write-token/main").json()
        assert granted["casUrl"].startswith(f"{OWN_URL}/cas/")
