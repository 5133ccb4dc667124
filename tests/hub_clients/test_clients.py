"""Unmodified Hub clients against a real server: every feature, in every release, with and without hf_xet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_clients import hf_command
from tests.hub_clients.clients import CLIENTS, HubClient
from tests.hub_clients.drive import FEATURES
from tests.hub_clients.matrix import TRANSFER, WITH_COMMAND, Matrix, shell_of, tenant_of
from tests.hub_clients.registry_server import RunningRegistry, large_adapter, running_registry


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest,
    hub_server: RunningRegistry,
    adapter_12_mb: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Matrix]:
    chosen = {item.callspec.params["client"] for item in request.session.items if "matrix" in item.fixturenames}
    clients = [client for client in CLIENTS if client in chosen]
    running = Matrix(hub_server, adapter_12_mb, tmp_path_factory.mktemp("matrix"), clients)
    yield running
    running.close()


@pytest.mark.parametrize("feature", [*(feature.name for feature in FEATURES), TRANSFER])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_feature(matrix: Matrix, client: HubClient, feature: str) -> None:
    check(matrix.failure(client, feature))


@pytest.mark.parametrize("client", WITH_COMMAND, ids=lambda client: client.name)
def test_hf_command(matrix: Matrix, client: HubClient) -> None:
    check(matrix.failure(client, hf_command.FEATURE))


@pytest.mark.long
@pytest.mark.parametrize("client", WITH_COMMAND, ids=lambda client: client.name)
def test_hf_command_thoroughly(tmp_path: Path, client: HubClient) -> None:
    with running_registry(tmp_path) as server:
        adapter = large_adapter(tmp_path / "adapter")
        shell = shell_of(server, client, adapter, tmp_path, server.new_tenant(tenant_of(client)))
        hf_command.use_command_thoroughly(shell)


def check(failure: str | None) -> None:
    if failure is not None:
        pytest.fail(failure, pytrace=False)
