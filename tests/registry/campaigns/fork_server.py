"""A process that has imported the registry and forks a fresh worker for each job, so that one costs milliseconds.

It runs as `python -m tests.registry.campaigns.fork_server`: a job is a line of JSON on its input, and what comes back
is what the worker printed, one line each, and then how it ended. `ForkServer` is the other side. Nothing is open when
a worker is made, so killing it is killing a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import registry
from registry import failpoints
from tests.registry.campaigns.operations import perform

ENDED = "ended"
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a worker ended. `acknowledged` is the result that it printed when its operation had returned."""

    acknowledged: Any
    error: str | None
    was_killed: bool


class ForkServer:
    """Starts the process; `run` performs one operation in a worker of its own."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.registry.campaigns.fork_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=30)

    def run(self, location: dict[str, Any], operation: str, *, arm: str = "", **arguments: Any) -> Outcome:
        """Perform the operation on the registry there, with the named points armed (see `registry.failpoints`)."""
        job = {"location": location, "operation": operation, "arm": arm, "arguments": arguments}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        lines: list[dict[str, Any]] = []
        while not lines or ENDED not in lines[-1]:
            lines.append(json.loads(self._process.stdout.readline()))
        status = lines[-1][ENDED]
        told = {key: value for line in lines[:-1] for key, value in line.items()}
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert was_killed or status == 0, f"the worker ended with {status}"
        return Outcome(told.get("acknowledged"), told.get("error"), was_killed)


def serve() -> None:
    """Fork a worker for each job until the input ends."""
    with tempfile.TemporaryDirectory() as folder:
        registry.open(folder).close()  # workers begin with what a first opening has to compile
    failpoints._armed.cache_clear()
    for line in sys.stdin:
        worker = os.fork()
        if worker == 0:
            _work(json.loads(line))
        _, status = os.waitpid(worker, 0)
        _tell(**{ENDED: status})


def _work(job: dict[str, Any]) -> None:
    """Perform the job and end the process, without the clean-up that a crash would not do either."""
    os.environ[failpoints.VARIABLE] = job["arm"]
    try:
        perform(job["location"], job["operation"], job["arguments"], tell=_tell)
    except BaseException:  # noqa: BLE001 - a worker must never go on as a second server
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _tell(**message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    serve()
