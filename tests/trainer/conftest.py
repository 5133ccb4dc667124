"""The tiny base is made and quantized once for all tests of the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.workshop import Bench, save_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture(scope="session")
def trainer_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home, so that the tiny base is quantized once. Runs lie elsewhere."""
    return tmp_path_factory.mktemp("trainer-home")


@pytest.fixture
def bench(tmp_path: Path, tiny_base: Path, trainer_home: Path) -> Bench:
    return Bench(tmp_path, tiny_base, trainer_home)
