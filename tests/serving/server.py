"""A running server for tests: the real process on a real port, over a scripted or the real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

HERE = Path(__file__).parent
START_SECONDS = 240.0  # a bound for hopeless cases, not a wish: machines that run tests are busy


@dataclass
class RunningServer:
    """A server process. `client` has its address; `log` is everything that it has written."""

    process: subprocess.Popen[bytes]
    url: str
    log_path: Path
    client: httpx.Client

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample now, summed over the series that have these labels.

        An engine that has just become ready sends its first figures a moment later: they are waited for.
        """
        deadline = time.monotonic() + 2
        while True:
            values = [
                sample.value
                for family in text_string_to_metric_families(self.client.get("/metrics").text)
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            ]
            if values:
                return sum(values)
            assert time.monotonic() < deadline, f"no sample {name} {labels}"
            time.sleep(0.02)

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        body = {"model": "base", "messages": [{"role": "user", "content": content}]} | fields
        return self.client.post("/v1/chat/completions", json=body)

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "base", "prompt": prompt} | fields)

    def engine_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def wait_ready(self) -> None:
        wait_until(lambda: self.client.get("/readyz").status_code == 200, START_SECONDS)


def wait_until(holds: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until the condition holds, or fail."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@contextmanager
def running_server(
    folder: Path, *, engine: list[str], token: str | None = None, **settings: Any
) -> Iterator[RunningServer]:
    """Start a server in `folder`, wait until it is ready, and end it with SIGTERM."""
    supervision = {"command": engine, "first_backoff_seconds": 0.05} | settings.pop("supervision", {})
    home = settings.pop("home", folder / "home")
    document = {
        "home": str(home),
        "registry": str(settings.pop("registry", home / "registry")),
        "port": 0,
        "supervision": supervision,
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "serve_process.py"), json.dumps(document)],
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        url = _wait_for_url(process, log_path)
        with httpx.Client(base_url=url, headers=headers, timeout=30.0) as client:
            yield RunningServer(process, url, log_path, client)
    finally:
        _end(process)


def _wait_for_url(process: subprocess.Popen[bytes], log_path: Path) -> str:
    found: list[str] = []

    def has_url() -> bool:
        text = log_path.read_text()
        assert process.poll() is None, text
        found[:] = [line.split()[1] for line in text.splitlines() if line.startswith("URL ")]
        return bool(found)

    wait_until(has_url, START_SECONDS)
    return found[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:  # a frozen engine cannot be asked
            child.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
            raise
