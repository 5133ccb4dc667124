"""The counters of the registry's faces, for Prometheus.

It does: define each counter with its help text and labels, and bound the labels (no names of tenants or adapters).
It does not: decide when something happened.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from registry.upkeep import Outcome, Task, TaskRun

PREFIX = "loraplex_registry"


class Instruments:
    """Every counter of the registry's faces."""

    def __init__(self, metrics: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, unread

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=metrics)

        self._requests = counter("requests", "Requests by face (rest, hub) and class of status.", "face", "status")
        self._received = counter("received_bytes", "Bytes of request bodies by face.", "face")
        self._sent = counter("sent_bytes", "Bytes of response bodies by face.", "face")
        self._publishes = counter(
            "publishes", "Publishes over the REST API by outcome: new, known, refused.", "outcome"
        )
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
        self._promotions = counter("promotions", "Moves of aliases over the REST API: promote, rollback.", "kind")

    def request_ended(self, face: str, status: int, *, received_bytes: int, sent_bytes: int) -> None:
        """A request has been answered, or left (status 499)."""
        self._requests.labels(face, f"{status // 100}xx").inc()
        self._received.labels(face).inc(received_bytes)
        self._sent.labels(face).inc(sent_bytes)

    def published(self, outcome: str) -> None:
        """An adapter was uploaded in whole and judged."""
        self._publishes.labels(outcome).inc()

    def promoted(self, kind: str) -> None:
        """An alias was moved."""
        self._promotions.labels(kind).inc()

    def upkeep_ran(self, run: TaskRun) -> None:
        """A task of the upkeep was done here, or failed."""
        self._upkeep.labels(run.task, run.outcome).inc()
        self._upkeep_seconds.labels(run.task).inc(run.seconds)
        if run.outcome is Outcome.DONE:
            self._upkeep_success.labels(run.task).set(time.time())
