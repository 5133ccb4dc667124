"""A real Hub face on a port, over the test's registry, and clients of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from huggingface_hub import HfApi, constants

import registry
from registry.http.authenticator import Authenticator
from registry.hub.app import create_hub_app
from registry.hub.context import HubSettings


@dataclass(frozen=True)
class Server:
    """The running face: its address, and the registry behind it."""

    url: str
    reg: registry.Registry
    authenticator: Authenticator


@pytest.fixture(autouse=True)
def plain_transfers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network is there; there is no Xet, no cache and no token of the machine's user."""
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def hub_settings() -> HubSettings:
    return HubSettings()


@pytest.fixture
def server(reg: registry.Registry, hub_settings: HubSettings) -> Iterator[Server]:
    """The Hub face of `reg` on a port of its own. Tenants acme and rival exist."""
    with serving(reg, hub_settings) as running:
        yield running


@contextmanager
def serving(reg: registry.Registry, settings: HubSettings) -> Iterator[Server]:
    """The Hub face of a registry on a port of its own, in a thread, with the tenants acme and rival."""
    present = {tenant.name for tenant in reg.list_tenants()}
    for tenant in {"acme", "rival"} - present:
        reg.create_tenant(tenant)
    authenticator = Authenticator(reg, is_loopback=True, remember_seconds=0.0)
    app = create_hub_app(reg, authenticate=authenticator.principal_of_scope, settings=settings)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        config = uvicorn.Config(app, log_level="warning", lifespan="off")
        running = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listening])))
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", reg, authenticator)
        finally:
            running.should_exit = True
            thread.join()
            app.close()
            authenticator.close()


@pytest.fixture
def token(server: Server) -> Callable[..., str]:
    """Makes a token of a tenant and returns its secret."""

    def make(tenant: str = "acme", role: str = "admin", **options: Any) -> str:
        return server.reg.create_token(tenant, role, **options).secret

    return make


@pytest.fixture
def api(server: Server, token: Callable[..., str]) -> HfApi:
    """The stock client as an admin of acme."""
    return HfApi(endpoint=server.url, token=token())


@pytest.fixture
def raw(server: Server, token: Callable[..., str]) -> Iterator[httpx.Client]:
    """Plain HTTP as an admin of acme."""
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {token()}"}) as client:
        yield client
