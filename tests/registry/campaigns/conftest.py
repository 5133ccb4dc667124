"""Fixtures of the campaigns."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import registry


@pytest.fixture
def make_registry(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[], registry.Registry]]:
    """Makes an open registry at each call, on each backend, that knows the tiny base; the blobs are in a folder."""
    with ExitStack() as databases:

        def make() -> registry.Registry:
            folder = tmp_path / f"registry-{secrets.token_hex(6)}"
            if backend == "sqlite":
                shutil.copytree(request.getfixturevalue("new_registry"), folder)
                return registry.open(folder)
            template = request.getfixturevalue("new_database")
            url = databases.enter_context(request.getfixturevalue("postgres").database(template))
            return registry.open(url, blobs=folder)

        yield make
