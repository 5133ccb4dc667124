"""What a client is told of its tenant's quota before it sends anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

import registry
from registry.hub.app import create_hub_app
from tests.registry.adapter_folders import write_adapter

pytestmark = pytest.mark.sqlite_only


@pytest.fixture
async def http(reg: registry.Registry) -> AsyncIterator[httpx.AsyncClient]:
    async def authenticate(_: Any) -> registry.Principal:
        return registry.Principal.operator()

    transport = httpx.ASGITransport(create_hub_app(reg, authenticate=authenticate))
    async with httpx.AsyncClient(transport=transport, base_url="http://hub.test") as client:
        yield client


async def ask(http: httpx.AsyncClient, *sizes: int, name: str = "large") -> httpx.Response:
    files = [{"path": f"{name}-{index}.safetensors", "size": size} for index, size in enumerate(sizes)]
    return await http.post("/api/models/acme/x/preupload/main", json={"files": files})


async def test_a_shortage_is_a_warning_and_a_file_that_can_never_fit_a_refusal(
    reg: registry.Registry, http: httpx.AsyncClient
) -> None:
    await http.post("/api/repos/create", json={"name": "x", "organization": "acme"})
    assert "x-hf-warning" not in (await ask(http, 10**9)).headers
    reg.set_quota("acme", quota_bytes=1000, quota_versions=None)
    assert "x-hf-warning" not in (await ask(http, 400, 600)).headers
    short = await ask(http, 400, 700)
    assert short.status_code == 200
    assert short.headers["x-hf-warning"].startswith("quota-")
    assert "; if these files are new" in short.headers["x-hf-warning"]
    assert "1,100 more" in short.headers["x-hf-warning"]
    never = await ask(http, 1001)
    assert never.status_code == 403
    assert "1,000 bytes" in never.json()["error"]


async def test_a_file_of_the_same_size_may_be_there_already(
    reg: registry.Registry, http: httpx.AsyncClient, tmp_path: Any
) -> None:
    folder = write_adapter(tmp_path / "adapter")
    reg.publish(folder, "acme/x", principal=registry.Principal.operator())
    size = (folder / "adapter_model.safetensors").stat().st_size
    reg.set_quota("acme", quota_bytes=reg.usage("acme").used_bytes, quota_versions=None)
    files = [{"path": "adapter_model.safetensors", "size": size}]
    answer = await http.post("/api/models/acme/x/preupload/main", json={"files": files})
    assert "x-hf-warning" not in answer.headers
    files[0]["size"] = size - 1
    answer = await http.post("/api/models/acme/x/preupload/main", json={"files": files})
    assert answer.headers["x-hf-warning"].startswith("quota-")
