"""Fixtures of the registry's tests: a real registry in a folder of the test's own, with the tiny base registered."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import registry
from tests.registry.adapter_folders import base_document, write_adapter


@pytest.fixture(scope="session")
def new_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry folder that knows the tiny base and nothing else; copied, it saves each test the migrations."""
    folder = tmp_path_factory.mktemp("new-registry")
    with registry.open(folder) as opened:
        opened.register_base(base_document())
    return folder


@pytest.fixture
def reg(tmp_path: Path, new_registry: Path) -> Iterator[registry.Registry]:
    """An open registry of the test's own, that knows the tiny base."""
    shutil.copytree(new_registry, tmp_path / "registry")
    with registry.open(tmp_path / "registry") as opened:
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
