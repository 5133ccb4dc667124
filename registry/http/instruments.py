"""The counters of the registry's faces, for Prometheus.

It does: define each counter with its help text and labels, and bound the labels (no names of tenants or adapters).
It does not: decide when something happened.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics

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
