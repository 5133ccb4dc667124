"""Ctrl-C and SIGTERM end the demo alike, and never between the start of a process and knowing of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from loraplex.demo.interruption import Terminated, signals_wait, sigterm_interrupts
from loraplex.demo.server import running_server


@pytest.fixture
def heeded() -> Iterator[None]:
    """Whoever runs the tests in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)], ids=["int", "term"]
)
def test_a_signal_waits_and_is_not_lost(number: signal.Signals, error: type[BaseException], heeded: None) -> None:
    reached = []

    def be_told_while_it_waits() -> None:
        with sigterm_interrupts():
            with signals_wait():
                signal.raise_signal(number)
                reached.append("the end of the block")
            reached.append("what follows")

    with pytest.raises(error):
        be_told_while_it_waits()
    assert reached == ["the end of the block"]


def test_an_error_inside_does_not_lose_the_signal(heeded: None) -> None:
    def fail() -> None:
        with signals_wait():
            signal.raise_signal(signal.SIGINT)
            raise OSError("no process")

    with pytest.raises(KeyboardInterrupt):
        fail()


def test_ctrl_c_that_is_ignored_stays_so(heeded: None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_wait():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_sigterm_ends_the_server_too(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    processes: list[psutil.Process] = []

    def serve() -> None:
        with (
            sigterm_interrupts(),
            running_server(tmp_path, "embedded", None, device="cpu", adapter_slots=1, threads=1) as server,
        ):
            started = psutil.Process(server.process.pid)
            processes.extend([started, *started.children(recursive=True)])
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated):
        serve()
    assert len(processes) >= 2, "the server and its engine"
    assert not any(process.is_running() for process in processes)
    assert signal.getsignal(signal.SIGTERM) == before
