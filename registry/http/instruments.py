"""The counters of the registry's faces, for Prometheus.

It does: define each counter with its help text and labels, and bound the labels (no names of tenants or adapters).
It does not: decide when something happened. Publishes and promotions are counted by the registry itself (`tally.py`),
whichever face they come over, and read from there.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import CounterMetricFamily

from registry.tally import Tally
from registry.task_run import Outcome, Task, TaskRun

PREFIX = "loraplex_registry"


class Instruments:
    """Every counter of the registry's faces."""

    def __init__(self, metrics: CollectorRegistry, tally: Tally) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, unread

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=metrics)

        self._requests = counter("requests", "Requests by face (rest, hub) and class of status.", "face", "status")
        self._received = counter("received_bytes", "Bytes of request bodies by face.", "face")
        self._sent = counter("sent_bytes", "Bytes of response bodies by face.", "face")
        self._upkeep = counter(
            "upkeep_runs", "Tasks of the upkeep that this server did, by outcome.", "task", "outcome"
        )
        self._upkeep_seconds = counter("upkeep_seconds", "Seconds that these tasks took.", "task")
        self._upkeep_success = Gauge(
            f"{PREFIX}_upkeep_success_timestamp_seconds",
            "When this server last did a task of the upkeep with success.",
            ("task",),
            registry=metrics,
        )
        for task in Task:  # at zero from the start, so that a first failure is seen as one
            self._upkeep_seconds.labels(task)
            self._upkeep_success.labels(task)
            for outcome in (Outcome.DONE, Outcome.FAILED):
                self._upkeep.labels(task, outcome)
        metrics.register(_TallyCollector(tally))

    def request_ended(self, face: str, status: int, *, received_bytes: int, sent_bytes: int) -> None:
        """A request has been answered, or left (status 499)."""
        self._requests.labels(face, f"{status // 100}xx").inc()
        self._received.labels(face).inc(received_bytes)
        self._sent.labels(face).inc(sent_bytes)

    def upkeep_ran(self, run: TaskRun) -> None:
        """A task of the upkeep was done here, or failed."""
        self._upkeep.labels(run.task, run.outcome).inc()
        self._upkeep_seconds.labels(run.task).inc(run.seconds)
        if run.outcome is Outcome.DONE:
            self._upkeep_success.labels(run.task).set(time.time())


class _TallyCollector:
    """The registry's own counts, as they are when they are asked for."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Called by the Prometheus client."""
        publishes = "Publishes over REST, over the Hub protocol and in this process by outcome: new, known, refused."
        yield _family("publishes", publishes, "outcome", self._tally.publishes)
        moves = "Moves of aliases through this process: promote, rollback, delete."
        yield _family("promotions", moves, "kind", self._tally.moves)


def _family(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=(label,))
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family
