"""The server's port is the registry's, too: OpenAI routes, REST and the Hub protocol side by side."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

import registry
from tests.registry.http.server import serving
from tests.serving.conftest import Stocked, stock
from tests.serving.server import RunningServer, running_server

V1 = "/registry/v1"


def test_three_faces_on_one_port(server: RunningServer, stocked: Stocked) -> None:
    assert server.client.get("/v1/models").json()["object"] == "list"
    found = server.client.get(f"{V1}/resolve", params={"ref": "acme/sql@prod"}).json()
    assert found["digest"] == stocked.first.digest
    assert server.client.get("/api/whoami-v2").json()["name"] == "operator"
    config = server.client.get("/acme/sql/resolve/main/adapter_config.json")
    assert config.status_code in (200, 302)
    assert server.client.get("/registry/openapi.json").json()["openapi"] == "3.1.0"
    unknown = server.client.get("/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_route")
    unknown = server.client.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_route")
    for path in (f"{V1}/whoami", "/api/whoami-v2", "/v1/models"):
        assert server.client.get(path, headers={"host": "evil.example"}).status_code == 403, path
    assert server.client.get("/readyz").text == "ready"
    assert server.metric("loraplex_registry_requests_total", face="hub") >= 2


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Stocked:
    return stock(tmp_path_factory.mktemp("own"))


def test_a_server_on_a_registry_over_http(tmp_path: Path, scripted_engine: list[str], own: Stocked) -> None:
    """Each client is served with its own rights, and the server's token lends nobody more."""
    with registry.open(own.home / "registry") as reg:
        tokens = {tenant: reg.create_token(tenant, "reader").secret for tenant in ("acme", "rival")}
        service_token = reg.create_token("open", "reader").secret
        with (
            serving(reg, token_cache_seconds=0.0) as url,
            running_server(
                tmp_path, engine=scripted_engine, base="bytes", registry=url, registry_token=service_token
            ) as server,
        ):

            def ask(model: str, tenant: str) -> httpx.Response:
                body = {"model": model, "messages": [{"role": "user", "content": "!who"}]}
                headers = {"authorization": f"Bearer {tokens[tenant]}"}
                return server.client.post("/v1/chat/completions", json=body, headers=headers)

            assert ask("acme/sql@prod", "acme").status_code == 200
            assert ask("rival/secret", "rival").status_code == 200
            assert ask("rival/secret", "acme").status_code == 404
            assert ask("acme/sql", "rival").status_code == 404
            assert ask("open/cron", "acme").status_code == 200
            listed = server.client.get("/v1/models", headers={"authorization": f"Bearer {tokens['rival']}"}).json()
            assert [model["id"] for model in listed["data"]] == ["bytes", "base", "open/cron", "rival/secret"]
            assert server.client.get("/v1/models").status_code == 401
            assert server.client.get(f"{V1}/whoami").status_code == 404, "the registry is elsewhere"
            assert not any(secret in server.log for secret in (*tokens.values(), service_token))
