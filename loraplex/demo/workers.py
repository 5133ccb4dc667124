"""Training runs side by side, each in a process of its own that tells its events through a pipe.

A run over a small base cannot keep several cores busy, and its threads wait for each other on a machine that does other
things too: one run a core is faster than one run on all cores. This module knows processes; what a run does is
`trainer.loop`.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from basemodel.errors import BaseModelError
from loraplex.demo.interruption import signals_wait
from loraplex.errors import DemoError
from trainer.errors import TrainerError
from trainer.events import Event, Listener
from trainer.job import Job
from trainer.loop import run_job
from trainer.result import TrainingResult

STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Failed:
    """A run's last message where it raised an error on purpose."""

    reason: str


@dataclass(frozen=True)
class Worker:
    """One run in its process. `messages` gives events, then a `TrainingResult` or `Failed`."""

    job: Job
    process: BaseProcess
    messages: Connection

    def stop(self) -> None:
        """End the process if it still runs. What its run has written stays as after a power cut: whole, or absent."""
        self.process.kill()
        self.process.join()
        self.messages.close()


def run_side_by_side(
    jobs: Sequence[Job], home: Path, *, most: int, threads: int, listener: Callable[[str], Listener]
) -> list[TrainingResult]:
    """Run every job, at most so many at a time with so many threads each; the results come in the order of the jobs.

    `listener` gives who hears the events of the run of that name. No process is left behind, whatever happens.
    Raises DemoError where a run fails.
    """
    results: dict[str, TrainingResult] = {}
    waiting = deque(jobs)
    running: dict[Connection, Worker] = {}
    listeners = {job.run_name: listener(job.run_name) for job in jobs}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                with signals_wait():
                    worker = _start(waiting.popleft(), home, threads)
                    running[worker.messages] = worker
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                message = _next_message(running[connection])
                name = running[connection].job.run_name
                if isinstance(message, TrainingResult):
                    results[name] = message
                    running.pop(connection).stop()
                else:
                    listeners[name](message)
    finally:
        with signals_wait():
            for worker in running.values():
                worker.stop()
    return [results[job.run_name] for job in jobs]


def _start(job: Job, home: Path, threads: int) -> Worker:
    context = multiprocessing.get_context("spawn")
    messages, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, job, home, threads), name=job.run_name, daemon=True)
    # Ctrl-C reaches the whole group, and is the parent's to heed. What is blocked now is blocked in the child from
    # its first instruction. The tracker unblocks it as it starts, so it must be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that the end of the process is the end of the pipe
    return Worker(job, process, messages)


def _next_message(worker: Worker) -> Event | TrainingResult:
    try:
        message: Event | TrainingResult | Failed = worker.messages.recv()
    except EOFError as error:
        worker.process.join(STOP_SECONDS)
        status = worker.process.exitcode
        raise DemoError(f"the training of {worker.job.run_name} ended with status {status} and no result") from error
    if isinstance(message, Failed):
        raise DemoError(f"the training of {worker.job.run_name} failed: {message.reason}")
    return message


def _work(messages: Connection, job: Job, home: Path, threads: int) -> None:
    """What runs in the process."""
    torch.set_num_threads(threads)
    try:
        messages.send(run_job(job, home=home, on_event=messages.send))
    except (TrainerError, BaseModelError) as error:
        messages.send(Failed(str(error)))
