"""Fixtures of the registry's tests: a real registry of the test's own on each backend, which knows the tiny base."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import registry
from tests.registry.adapter_folders import base_document, write_adapter
from tests.registry.backends import (
    CREDENTIALS,
    TEMPLATE,
    FolderPlace,
    PostgresServer,
    RegistryPlace,
    S3Server,
    ServerPlace,
    make_template,
    postgres_server,
    s3_server,
)


@pytest.fixture(scope="session")
def new_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry folder that knows the tiny base and nothing else; copied, it saves each test the migrations."""
    folder = tmp_path_factory.mktemp("new-registry")
    with registry.open(folder) as opened:
        opened.register_base(base_document())
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a registry run on both backends, but for those marked `sqlite_only`."""
    if "backend" in metafunc.fixturenames:
        is_single = metafunc.definition.get_closest_marker("sqlite_only") is not None
        metafunc.parametrize("backend", ["sqlite"] if is_single else ["sqlite", "postgres"], scope="session")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 for all tests, with its credentials in the environment."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def new_database(postgres: PostgresServer, s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database that knows the tiny base and nothing else, to be copied."""
    make_template(postgres, s3, tmp_path_factory.mktemp("scratch"))
    return TEMPLATE


@pytest.fixture
def postgres_place(postgres: PostgresServer, s3: S3Server, new_database: str, tmp_path: Path) -> Iterator[ServerPlace]:
    """A registry in PostgreSQL and S3 of the test's own, that knows the tiny base."""
    with postgres.database(new_database) as url:
        yield ServerPlace(url, s3, secrets.token_hex(8), tmp_path / "scratch")


@pytest.fixture
def sqlite_place(tmp_path: Path, new_registry: Path) -> FolderPlace:
    """A registry in a folder of the test's own, that knows the tiny base."""
    shutil.copytree(new_registry, tmp_path / "registry")
    return FolderPlace(tmp_path / "registry")


@pytest.fixture
def place(backend: str, request: pytest.FixtureRequest) -> RegistryPlace:
    """A registry of the test's own on each backend, that knows the tiny base; not open yet."""
    found: RegistryPlace = request.getfixturevalue(f"{backend}_place")
    return found


@pytest.fixture
def fresh_place(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryPlace]:
    """A place on each backend where no registry was opened yet."""
    if backend == "sqlite":
        yield FolderPlace(tmp_path / "fresh" / "registry")
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield ServerPlace(url, request.getfixturevalue("s3"), secrets.token_hex(8), tmp_path / "scratch")


@pytest.fixture
def reg(place: RegistryPlace) -> Iterator[registry.Registry]:
    """An open registry of the test's own on each backend, that knows the tiny base."""
    with place.open() as opened:
        yield opened


@pytest.fixture
def reg_sqlite(sqlite_place: FolderPlace) -> Iterator[registry.Registry]:
    """As `reg`, in a folder only: for what does not depend on where it is kept."""
    with sqlite_place.open() as opened:
        yield opened


@pytest.fixture
def operator() -> registry.Principal:
    return registry.Principal.operator()


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sound adapter folder, or one with the given parts; each call makes another folder."""
    made: list[Path] = []

    def make(**parts: Any) -> Path:
        folder = tmp_path / f"adapter-{len(made)}"
        made.append(folder)
        return write_adapter(folder, **parts)

    return make


@pytest.fixture
def publish(reg: registry.Registry, make_adapter: Callable[..., Path]) -> Callable[..., registry.Version]:
    """Publishes an adapter with other weights at each call, to acme/text2sql or the given name."""
    seeds = iter(range(1, 1000))

    def publish_next(name: str = "acme/text2sql", **options: Any) -> registry.Version:
        options = {"principal": registry.Principal.operator()} | options
        return reg.publish(make_adapter(seed=next(seeds)), name, **options)

    return publish_next
