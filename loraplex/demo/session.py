"""One call of `loraplex demo`: choose the plan, run it, write the results, and wait with the server for Ctrl-C."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from loraplex.demo.plan import full_plan, quick_plan
from loraplex.demo.report import Report
from loraplex.demo.runner import FinishedDemo, run_demo
from loraplex.demo.server import free_port

# The plan's own rate suits the small embedded base; this one suits bases of usual size.
OTHER_BASE_LEARNING_RATE = 5e-4


def run_session(
    console: Console,
    home: Path,
    port: int | None,
    base: str | None,
    json_file: Path | None,
    *,
    once: bool,
    quick: bool,
) -> None:
    """Run the demo to its end, which is Ctrl-C or SIGTERM unless `once`. Raises as `run_demo` does.

    Ctrl-C or SIGTERM before that is a KeyboardInterrupt, with every process ended.
    """
    plan = quick_plan() if quick else full_plan()
    if base is not None:
        source = str(Path(base).resolve()) if Path(base).is_dir() else base
        plan = replace(plan, base=source, learning_rate=OTHER_BASE_LEARNING_RATE)
    home.mkdir(parents=True, exist_ok=True)
    report = Report(console)
    free_port(port)  # what is taken already is said now, not after the training
    with run_demo(plan, home, port, report) as finished:
        if json_file is not None:
            finished.results.write(json_file)
            report.line(f"results: {json_file}")
        if once:
            return
        _wait(finished, report, home, held_out_seed=plan.held_out_seed)
    report.stopped(finished.server.port, plan.base, home)


def _wait(finished: FinishedDemo, report: Report, home: Path, held_out_seed: int) -> None:
    examples = {a.plan.model: a.plan.task.held_out(1, held_out_seed)[0].prompt for a in finished.published}
    report.next_steps(finished.server.url, finished.published, examples, home)
    try:
        finished.server.wait()
    except KeyboardInterrupt:
        report.line("stopping the server")
