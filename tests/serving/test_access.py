from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from litestar.routes import HTTPRoute

import registry
from serving.app import create_app, create_service
from serving.errors import SettingsError
from serving.settings import ServingSettings, SupervisionSettings, is_loopback_host
from tests.serving.conftest import Stocked, stock
from tests.serving.server import RunningServer, running_server, wait_until

OPEN_ROUTES = {"/livez", "/readyz", "/startupz"}
SECRET_PROMPT = "the-planted-prompt-7f3a"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Stocked:
    return stock(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def tokens(own: Stocked) -> dict[str, str]:
    """Secrets by tenant and role."""
    with registry.open(own.home / "registry") as reg:
        made = {
            "acme": reg.create_token("acme", "reader").secret,
            "rival": reg.create_token("rival", "reader").secret,
            "admin": reg.create_token("acme", "admin").secret,
            "revoked": reg.create_token("acme", "admin").secret,
        }
        last = max(reg.list_tokens("acme"), key=lambda token: token.created_at)
        reg.revoke_token(last.token_id)
    return made


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, scripted_engine: list[str], own: Stocked, tokens: dict[str, str]
) -> Iterator[RunningServer]:
    """A server whose registry has tokens; its client sends none."""
    folder = tmp_path_factory.mktemp("guarded")
    with running_server(
        folder, engine=scripted_engine, home=own.home, base="bytes", token_cache_seconds=0.2
    ) as running:
        yield running


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def routes(tmp_path: Path) -> set[tuple[str, str]]:
    """Every method and path of the application."""
    with registry.open(tmp_path / "registry") as reg:
        app = create_app(create_service(ServingSettings(home=tmp_path, registry=""), reg))
        return {
            (method, route.path.replace("{model:path}", "acme/sql"))
            for route in app.routes
            if isinstance(route, HTTPRoute)
            for method in route.methods
        }


def test_every_route_is_closed_but_the_probes(guarded: RunningServer, tmp_path: Path) -> None:
    walked = routes(tmp_path)
    assert len({path for _, path in walked}) == 8
    for method, path in walked:
        response = guarded.client.request(method, path, json={"model": "base"} if method == "POST" else None)
        if path in OPEN_ROUTES and method != "OPTIONS":
            assert response.status_code == 200, path
        else:
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Basic abc", "Bearer lpx_wrong", "Bearer " + "x" * 5000, b"Bearer \xff\xfe"]
)
def test_a_wrong_token(guarded: RunningServer, header: Any) -> None:
    response = guarded.client.get("/v1/models", headers={"authorization": header})
    assert response.status_code == 401


def test_a_revoked_token(guarded: RunningServer, tokens: dict[str, str], own: Stocked) -> None:
    assert guarded.client.get("/v1/models", headers=bearer(tokens["revoked"])).status_code == 401
    with registry.open(own.home / "registry") as reg:
        issued = reg.create_token("open", "reader")
        assert guarded.client.get("/v1/models", headers=bearer(issued.secret)).status_code == 200
        reg.revoke_token(issued.token_id)
    wait_until(lambda: guarded.client.get("/v1/models", headers=bearer(issued.secret)).status_code == 401, 3.0)


def test_a_foreign_private_adapter_and_a_missing_one_look_the_same(
    guarded: RunningServer, tokens: dict[str, str], own: Stocked
) -> None:
    def ask(name: str, secret: str) -> httpx.Response:
        body = {"model": name, "messages": [{"role": "user", "content": "!who"}]}
        return guarded.client.post("/v1/chat/completions", json=body, headers=bearer(secret))

    # The same name, private to rival, and after a rename of nothing but the asker, missing: byte for byte the same.
    foreign, missing = ask("rival/secret", tokens["acme"]), ask("rival/absent", tokens["acme"])
    assert foreign.status_code == missing.status_code == 404
    assert foreign.content.replace(b"rival/secret", b"X") == missing.content.replace(b"rival/absent", b"X")
    ignored = {"date", "x-request-id"}
    assert {name: value for name, value in foreign.headers.items() if name not in ignored} == {
        name: value for name, value in missing.headers.items() if name not in ignored
    }
    assert ask(own.secret.digest, tokens["acme"]).status_code == 404
    assert ask("rival/secret", tokens["rival"]).status_code == 200
    assert ask("open/cron", tokens["rival"]).status_code == 200
    assert ask("acme/sql", tokens["rival"]).status_code == 404
    shown = guarded.client.get("/v1/models/rival/secret", headers=bearer(tokens["acme"]))
    absent = guarded.client.get("/v1/models/rival/absent", headers=bearer(tokens["acme"]))
    assert shown.status_code == absent.status_code == 404


def test_the_list_of_models_is_the_tenants(guarded: RunningServer, tokens: dict[str, str]) -> None:
    def ids(who: str) -> list[str]:
        listed = guarded.client.get("/v1/models", headers=bearer(tokens[who])).json()
        return [model["id"] for model in listed["data"]]

    assert ids("acme") == ["bytes", "base", "acme/sql", "acme/sql@prod", "open/cron"]
    assert ids("rival") == ["bytes", "base", "open/cron", "rival/secret"]


def test_metrics_need_an_admin(guarded: RunningServer, tokens: dict[str, str]) -> None:
    assert guarded.client.get("/metrics", headers=bearer(tokens["acme"])).status_code == 403
    assert guarded.client.get("/metrics", headers=bearer(tokens["admin"])).status_code == 200


def test_no_secret_and_no_prompt_is_logged(guarded: RunningServer, tokens: dict[str, str]) -> None:
    headers = bearer(tokens["acme"])
    for route, body in (
        ("/v1/completions", {"model": "base", "prompt": SECRET_PROMPT, "user": "planted-user"}),
        ("/v1/completions", {"model": "base", "prompt": SECRET_PROMPT, "bad": 1}),
        ("/v1/completions", {"model": "base", "prompt": f"!fail internal {SECRET_PROMPT}"}),
        ("/v1/chat/completions", {"model": "base", "messages": [{"role": "user", "content": SECRET_PROMPT}]}),
    ):
        guarded.client.post(route, json=body, headers=headers)
        guarded.client.post(route, json=body | {"stream": True}, headers=headers)
    guarded.client.post("/v1/completions", content=f'{{"model": "{SECRET_PROMPT}', headers=headers)
    log = guarded.log
    assert "loraplex.requests" in log
    assert "tenant=acme" in log
    for planted in (SECRET_PROMPT, "planted-user", *tokens.values()):
        assert planted not in log


def test_without_tokens_only_this_machine_is_answered(server: RunningServer) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        assert server.client.get("/v1/models", headers=headers).status_code == 403
    for headers in ({"host": "localhost:1"}, {"host": "[::1]:80"}, {"origin": "http://localhost:3000"}):
        assert server.client.get("/v1/models", headers=headers).status_code == 200
    assert server.client.get("/v1/models", headers=bearer("anything")).status_code == 200


def test_loopback_hosts() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]", "a.localhost"):
        assert is_loopback_host(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", "127.0.0.1.example.org", ""):
        assert not is_loopback_host(host)


def test_an_open_server_beyond_this_machine_is_refused(tmp_path: Path, venv_python: str) -> None:
    settings = ServingSettings(home=tmp_path, registry="", host="0.0.0.0")
    with pytest.raises(SettingsError, match="loraplex token create"):
        settings.refuse_open_server(has_tokens=False)
    settings.refuse_open_server(has_tokens=True)
    command = [
        venv_python,
        "-c",
        "from serving.cli import serve; serve()",
        "--home",
        str(tmp_path),
        "--host",
        "0.0.0.0",
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: Refusing to listen on 0.0.0.0 without tokens")
    assert "Traceback" not in result.stderr


async def test_metrics_can_be_opened_and_adapters_preloaded(
    scripted_engine: list[str], own: Stocked, tokens: dict[str, str]
) -> None:
    settings = ServingSettings(
        home=own.home,
        registry="",
        metrics_open=True,
        preload=("acme/sql@prod", "base"),
        supervision=SupervisionSettings(command=tuple(scripted_engine)),
    )
    with registry.open(own.home / "registry") as reg:
        service = create_service(settings, reg)
        await service.start()
        assert await service.engine.wait_settled() is not None
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.get("/v1/models")).status_code == 401
        async with asyncio.timeout(5):
            while service.engine.stats is None or not service.engine.stats.adapters:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert [state.digest for state in service.engine.stats.adapters] == [own.first.digest]
        service.loader.cache.check_integrity()
        await service.stop()
        missing = create_service(replace(settings, preload=("acme/absent",)), reg)
        await missing.start()
        assert await missing.engine.wait_settled() is None
        assert "The model `acme/absent` does not exist" in str(missing.engine.failure)
        await missing.stop()
