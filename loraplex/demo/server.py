"""The demo's server: the real `loraplex serve`, as a process of its own, started, watched and stopped.

It does not: talk to the server beyond asking whether it is ready (`traffic`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx

from loraplex.demo.interruption import signals_wait
from loraplex.errors import PortTakenError, ServerError

HOST = "127.0.0.1"
USUAL_PORT = 8000
READY_SECONDS = 180.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.1
SHOWN_LOG_LINES = 15


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready. `process` is stopped by whoever started it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"

    def wait(self) -> NoReturn:
        """Wait as long as the server runs. Raises ServerError when it has ended by itself."""
        status = self.process.wait()
        raise ServerError(f"ended by itself, with status {status}", log=self.log, last_lines=_last_lines(self.log))


@contextmanager
def running_server(
    home: Path, base: str, wanted_port: int | None, *, device: str, adapter_slots: int, threads: int
) -> Iterator[RunningServer]:
    """Start the server, wait until it is ready, and stop it at the end, also where that is Ctrl-C.

    The engine computes with `threads` threads: the API process and the demo's own clients need a core, too. The port is
    chosen now: one that was free before the training may be another server's by then.

    Raises:
        PortTakenError: as `free_port`.
        ServerError: it ended, or was not ready in time; the last lines of its log are in the message.
    """
    port = free_port(wanted_port)
    log = home / "logs" / "demo-server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "loraplex", "serve", "--home", str(home), "--base", base]
    command += ["--host", HOST, "--port", str(port), "--adapter-slots", str(adapter_slots), "--open-metrics"]
    command += ["--device", device, "--threads", str(threads)]
    process = None
    try:
        with log.open("wb") as output, signals_wait():
            process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                command, stdout=output, stderr=subprocess.STDOUT, cwd=home, env=_environment()
            )
        server = RunningServer(process, port, log)
        _wait_until_ready(server)
        yield server
    finally:
        if process is not None:
            _stop(process)


def free_port(wanted: int | None) -> int:
    """The wanted port; without a wish the usual one if it is free, else any free one. Raises PortTakenError."""
    for port in (USUAL_PORT, 0) if wanted is None else (wanted,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    assert wanted is not None, "port 0 is always free"
    raise PortTakenError(wanted)


def _environment() -> dict[str, str]:
    """The server's settings are the demo's flags, not those of the user's other servers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LORAPLEX_")}


def _wait_until_ready(server: RunningServer) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            reason = f"ended with status {server.process.returncode} before it was ready"
            raise ServerError(reason, log=server.log, last_lines=_last_lines(server.log))
        try:
            if httpx.get(f"{server.url}/readyz", timeout=2.0).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(POLL_SECONDS)
    raise ServerError(f"was not ready after {READY_SECONDS:.0f} s", log=server.log, last_lines=_last_lines(server.log))


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):  # whoever presses Ctrl-C again does not want to wait
        process.kill()
        process.wait()


def _last_lines(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN_LOG_LINES:])
