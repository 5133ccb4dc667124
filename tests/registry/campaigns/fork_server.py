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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import registry
from registry import failpoints
from tests.registry.backends import CREDENTIALS
from tests.registry.campaigns.faults import Fault
from tests.registry.campaigns.operations import perform, perform_under_fault

ENDED = "ended"
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Outcome:
    """How a worker ended. `acknowledged` is the result that it printed when its operation had returned.

    The others are those of `perform_under_fault`: what it pulled while the fault lasted, what the operation returned
    when it was done again, and how many operations on files there were.
    """

    acknowledged: Any
    error: str | None
    was_killed: bool
    served: str | None = None
    again: Any = None
    operations: int = 0


class ForkServer:
    """Starts the process; `run` performs one operation in a worker of its own. `preload` is a library for all."""

    def __init__(self, *, preload: Path | None = None) -> None:
        self._environment = dict(os.environ) | CREDENTIALS | ({} if preload is None else {"LD_PRELOAD": str(preload)})

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.registry.campaigns.fork_server"],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate(timeout=30)

    def run(
        self,
        location: dict[str, Any],
        operation: str,
        *,
        arm: str = "",
        fault: Fault | None = None,
        served: tuple[str, str] | None = None,
        **arguments: Any,
    ) -> Outcome:
        """Perform the operation on the registry there, with the named points armed (see `registry.failpoints`).

        With a fault it is `perform_under_fault`.
        """
        job = {"location": location, "operation": operation, "arm": arm, "arguments": arguments}
        job |= {"fault": None if fault is None else asdict(fault), "served": served}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        lines: list[dict[str, Any]] = []
        while not lines or ENDED not in lines[-1]:
            lines.append(json.loads(self._process.stdout.readline()))
        status = lines[-1][ENDED]
        told = {key: value for line in lines[:-1] for key, value in line.items()}
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert was_killed or status == 0, told.get("crash", f"the worker ended with {status}")
        return Outcome(**({"acknowledged": None, "error": None} | told), was_killed=was_killed)


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
        what = job["location"], job["operation"], job["arguments"]
        if job["fault"] is None:
            perform(*what, tell=_tell)
        else:
            perform_under_fault(*what, fault=Fault(**job["fault"]), served=job["served"], tell=_tell)
    except BaseException:  # noqa: BLE001 - a worker must never go on as a second server
        _tell(crash=traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _tell(**message: Any) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    serve()
