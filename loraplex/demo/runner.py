"""The demo from its first line to its last. Read `run_demo` first: it is the demo, downwards."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch

from loraplex.demo.clients import Clients, Question, open_clients
from loraplex.demo.measuring import Throughput, judge, measure_throughput, score
from loraplex.demo.plan import DemoPlan
from loraplex.demo.publishing import PublishedAdapter, publish_adapters
from loraplex.demo.report import Report, opening
from loraplex.demo.results import DemoResults, TaskResult
from loraplex.demo.server import RunningServer, running_server
from loraplex.demo.training import train_adapters
from loraplex.errors import DemoError

SHOWN_METRICS = (
    "loraplex_adapter_slots",
    "loraplex_adapter_loads_total",
    "loraplex_adapter_evictions_total",
    "loraplex_adapter_requests_total",
    "vllm:generation_tokens_total",
)


@dataclass(frozen=True)
class FinishedDemo:
    """The results, and the server that still runs."""

    results: DemoResults
    published: tuple[PublishedAdapter, ...]
    server: RunningServer


@contextmanager
def run_demo(plan: DemoPlan, home: Path, port: int | None, report: Report) -> Iterator[FinishedDemo]:
    """Train, publish, serve, measure; the server runs until the block ends.

    Raises LoraplexError, and the errors of the trainer and the registry.
    """
    began = time.perf_counter()
    cores = usable_cores()
    report.line(opening(plan, cores))

    report.heading("Train: three QLoRA adapters, each over the same quantized bytes")
    with report.training([adapter.task.name for adapter in plan.adapters]) as progress:
        trained = train_adapters(plan, home, progress, cores)

    report.heading("Publish: immutable versions, owned by two tenants")
    published = publish_adapters(plan, trained, home)
    report.published(published)

    report.heading(f"Serve: {plan.adapter_slots} adapter slots for {len(published)} adapters, swapped while it runs")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = max(1, cores - 1)
    with running_server(
        home, plan.base, port, device=device, adapter_slots=plan.adapter_slots, threads=threads
    ) as server:
        report.line(f"{server.url} (log: {server.log})")
        tasks, throughput = asyncio.run(_use(server, plan, published, report))
        report.heading("Metrics, for Prometheus")
        for line in chosen_metrics(httpx.get(f"{server.url}/metrics").text):
            report.line(line)
        seconds = time.perf_counter() - began
        report.line("")
        report.line(f"{seconds:.0f} s for everything")
        yield FinishedDemo(
            DemoResults(
                tasks=tasks,
                mixed_tokens_per_s=round(throughput.mixed_tokens_per_s, 1),
                base_tokens_per_s=round(throughput.base_tokens_per_s, 1),
                seconds=round(seconds, 1),
            ),
            tuple(published),
            server,
        )


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def _use(
    server: RunningServer, plan: DemoPlan, published: Sequence[PublishedAdapter], report: Report
) -> tuple[tuple[TaskResult, ...], Throughput]:
    """Everything that clients do: one mixed stream of questions, a look at the answers, and speed."""
    tokens = {adapter.plan.tenant: adapter.token for adapter in published}
    async with open_clients(server.url, tokens) as clients:
        with report.answering(2 * plan.held_out_rows * len(published)) as bar:
            judged = await judge(clients, plan, published, lambda: bar.advance(bar.task_ids[0]))
        tasks = score(judged, published)
        report.scores(tasks, plan.held_out_rows)

        report.heading("Look: neighbours in one batch, each answered by its own adapter")
        report.answers(judged[: plan.shown_rows_per_adapter * len(published)])
        await _show_separation(clients, plan, published, report)

        report.heading("Throughput: a mixed batch against the base alone")
        throughput = await measure_throughput(clients, plan, published)
        report.throughput(throughput, plan.adapter_slots, plan.throughput_tokens)
    return tasks, throughput


async def _show_separation(
    clients: Clients, plan: DemoPlan, published: Sequence[PublishedAdapter], report: Report
) -> None:
    """One tenant asks for another's private adapter."""
    stranger = plan.tenants[-1]
    adapter = next(adapter for adapter in published if adapter.plan.tenant != stranger)
    question = Question(stranger, adapter.plan.model, "May I?")
    if not await clients.is_hidden(question):
        raise DemoError(f"{stranger} was answered by {adapter.plan.model}, which is private to {adapter.plan.tenant}")
    report.line(f"{stranger} asks for {adapter.plan.model}: 404, as for a model that does not exist")


def chosen_metrics(exposition: str) -> list[str]:
    """The lines of the server's metrics that tell of swapping."""
    return [line for line in exposition.splitlines() if line.startswith(SHOWN_METRICS)]
