"""Fixtures that every area shares. Nothing heavy is imported here: collecting one test must not load torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read by the math libraries when they load, so set before any test module is imported. One thread each: threads that
# wait for each other on a busy machine cost more than they bring. A test that measures speed sets its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
if not Path("/dev/nvidiactl").exists():  # without a GPU its kernels run in Triton's interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def loraplex_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty LORAPLEX_HOME of this test's own, with no settings from the developer's machine."""
    home = tmp_path / "home"
    home.mkdir()
    for name in [name for name in os.environ if name.startswith("LORAPLEX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LORAPLEX_HOME", str(home))
    return home


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `cuda` on a machine without an NVIDIA GPU."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not _has_cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
