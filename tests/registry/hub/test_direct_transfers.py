"""Where the object store signs addresses, clients move bytes straight to it and from it."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download

import registry
from registry.hub.context import HubSettings
from tests.registry.backends import S3Server
from tests.registry.hub.conftest import serving


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw:DeprecationWarning")
def test_bytes_go_straight_to_the_store_and_are_verified(s3: S3Server, new_registry: Path, tmp_path: Path) -> None:
    shutil.copytree(new_registry, tmp_path / "registry")
    blobs = s3.url(secrets.token_hex(8), direct="true")
    with (
        registry.open(tmp_path / "registry", blobs=blobs, scratch=str(tmp_path / "scratch")) as reg,
        serving(reg, HubSettings()) as server,
    ):
        api = HfApi(endpoint=server.url, token=reg.create_token("acme", "admin").secret)
        api.create_repo("acme/sql")
        content = b"weights" * 1000
        api.upload_file(path_or_fileobj=content, path_in_repo="w.safetensors", repo_id="acme/sql")
        path = hf_hub_download(
            "acme/sql", "w.safetensors", endpoint=server.url, token=api.token, cache_dir=tmp_path / "cache"
        )
        assert Path(path).read_bytes() == content
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {api.token}"}) as client:
            address = "/acme/sql/resolve/main/w.safetensors"
            answer = client.get(address)
            assert answer.status_code == 302
            assert answer.headers["location"].startswith(s3.endpoint)
            assert answer.headers["x-linked-size"] == "7000"
            assert client.head(address).status_code == 200, "what a file is, is answered here"

            other = b"other" * 1000
            named = {"oid": hashlib.sha256(other).hexdigest(), "size": len(other)}
            body = {"operation": "upload", "transfers": ["basic"], "objects": [named]}
            actions = client.post("/acme/sql.git/info/lfs/objects/batch", json=body).json()["objects"][0]["actions"]
            assert actions["upload"]["href"].startswith(s3.endpoint)
            assert client.post(actions["verify"]["href"], json=named).status_code == 404, "nothing was put"
            assert httpx.put(actions["upload"]["href"], content=b"evil!" * 1000).status_code == 200
            assert client.post(actions["verify"]["href"], json=named).status_code == 400, "it is not what was announced"
            assert httpx.put(actions["upload"]["href"], content=other).status_code == 200
            assert client.post(actions["verify"]["href"], json=named).status_code == 200
        reg.quotas.check_integrity()
