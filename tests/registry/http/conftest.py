"""A registry over HTTP for the tests of its faces."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import registry
from registry.principal import OPERATOR
from registry.registry import Registry
from tests.registry.adapter_folders import write_adapter
from tests.registry.http.answers import SECRET
from tests.registry.http.server import serving


@pytest.fixture
def client(reg_sqlite: Registry) -> Iterator[httpx.Client]:
    """A client with the operator's secret."""
    with (
        serving(reg_sqlite, operator_secret=SECRET, token_cache_seconds=0.0) as url,
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {SECRET}"}, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, new_registry: Path) -> Iterator[httpx.Client]:
    """A client of one registry for all tests that leave it as they found it; it has acme/sql@1."""
    folder = tmp_path_factory.mktemp("shared")
    shutil.copytree(new_registry, folder / "registry")
    with registry.open(folder / "registry") as reg:
        reg.publish(write_adapter(folder / "adapter"), "acme/sql", principal=OPERATOR)
        with (
            serving(reg, operator_secret=SECRET) as url,
            httpx.Client(base_url=url, headers={"authorization": f"Bearer {SECRET}"}, timeout=60) as client,
        ):
            yield client


@pytest.fixture
def version(reg_sqlite: Registry, make_adapter: Callable[..., Path]) -> registry.Version:
    return reg_sqlite.publish(make_adapter(), "acme/sql", principal=OPERATOR)
