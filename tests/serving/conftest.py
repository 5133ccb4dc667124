"""Fixtures of the server's tests: a registry with adapters of two tenants, and a server over the scripted engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import registry
from registry import Principal, Version
from serving.messages import Ready
from serving.served_base import ServedBase
from tests.registry.adapter_folders import OTHER_FINGERPRINT, base_document, manifest_document, write_adapter
from tests.serving.byte_base import base_json, write_byte_base
from tests.serving.server import HERE, RunningServer, running_server


@dataclass(frozen=True)
class Stocked:
    """A home with a registry: two versions of acme/sql (prod is the first), rival/secret, open/cron (public), and
    acme/foreign, which is for another base."""

    home: Path
    first: Version
    second: Version
    secret: Version
    public: Version
    foreign: Version


@pytest.fixture(scope="session")
def venv_python() -> str:
    return sys.executable


@pytest.fixture(scope="session")
def byte_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_byte_base(tmp_path_factory.mktemp("byte-base"))


@pytest.fixture
def base(byte_base: Path) -> ServedBase:
    """The base that the scripted engine says it has, without an engine."""
    ready = Ready(
        base=base_json(),
        base_folder=str(byte_base),
        device="none",
        context_tokens=64,
        kv_blocks=1,
        kv_block_tokens=16,
        adapter_slots=1,
        max_running=1,
        load_seconds=0.0,
    )
    return ServedBase.from_ready(ready, context_limit_tokens=None)


@pytest.fixture(scope="session")
def scripted_engine(byte_base: Path) -> list[str]:
    return [sys.executable, str(HERE / "scripted_engine.py"), str(byte_base)]


@pytest.fixture(scope="session")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Stocked:
    return stock(tmp_path_factory.mktemp("stocked"))


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, scripted_engine: list[str], stocked: Stocked
) -> Iterator[RunningServer]:
    """One open server for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, engine=scripted_engine, home=stocked.home, base="bytes") as running:
        yield running


def stock(folder: Path) -> Stocked:
    """Fill a new home's registry."""
    operator = Principal.operator()
    other_base = base_document(OTHER_FINGERPRINT, "other")
    with registry.open(folder / "home" / "registry") as reg:
        reg.register_base(base_json())
        reg.register_base(other_base)

        def publish(name: str, seed: int, visibility: str = "private", fingerprint: str | None = None) -> Version:
            manifest = manifest_document(fingerprint) if fingerprint else manifest_document()
            source = write_adapter(folder / f"adapter-{seed}", seed=seed, manifest=manifest)
            return reg.publish(source, name, principal=operator, visibility=visibility)

        stocked = Stocked(
            home=folder / "home",
            first=publish("acme/sql", 1),
            second=publish("acme/sql", 2),
            secret=publish("rival/secret", 3),
            public=publish("open/cron", 4, "public"),
            foreign=publish("acme/foreign", 5, fingerprint=OTHER_FINGERPRINT),
        )
        reg.promote("acme/sql@1", "prod", principal=operator)
    return stocked
