"""The demo's port: one that is another's is seen, before the training where it was asked for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from loraplex.cli import main
from loraplex.demo import server
from loraplex.demo.server import HOST, free_port
from loraplex.errors import PortTakenError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_was_asked_for_must_be_free(taken: int) -> None:
    with pytest.raises(PortTakenError, match=f"port {taken} is taken.*--port"):
        free_port(taken)
    free = free_port(None)
    assert free_port(free) == free


def test_without_a_wish_a_taken_port_is_passed_over(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "USUAL_PORT", taken)
    assert free_port(None) not in (0, taken)


def test_the_demo_says_so_before_it_trains(taken: int, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--quick", "--home", str(tmp_path / "home"), "--port", str(taken)])
    assert result.exit_code == 1
    assert f"port {taken} is taken" in result.output
    assert "Train" not in result.output
    assert not any((tmp_path / "home").iterdir())
