"""Fixtures of the engine's tests: one tiny quantized Llama and six adapters for it, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from tests.engine.workbench import FAMILIES, Recorder, make_adapter, make_engine, make_snapshot


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="session")
def llama(workshop: Path) -> Snapshot:
    return make_snapshot(FAMILIES["llama"], workshop / "llama")


@pytest.fixture(scope="session")
def llama_adapters(llama: Snapshot, workshop: Path) -> list[Path]:
    """Six different adapters for the tiny Llama."""
    return [
        make_adapter(
            llama, workshop / f"a{seed}", seed=seed, r=4 + 4 * (seed % 3), lora_alpha=8, target_modules="all-linear"
        )
        for seed in range(6)
    ]


@pytest.fixture
def engine(llama: Snapshot) -> Callable[..., Recorder]:
    return lambda **settings: make_engine(load_snapshot(llama), **settings)
