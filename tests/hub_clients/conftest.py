"""One registry server for all clients, and an adapter of 12 MB that they upload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_clients.registry_server import RunningRegistry, large_adapter, running_registry


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path_factory.mktemp("hub-server")) as server:
        yield server


@pytest.fixture(scope="session")
def adapter_12_mb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_adapter(tmp_path_factory.mktemp("adapter") / "adapter")
