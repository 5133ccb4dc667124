"""Metrics of canaries: what each side of a split answers, while the split lasts.

A series begins with the first request that a canary decides about, and is taken away at the first request for which the
alias has no canary any more. At most `NAMED_ALIASES` aliases have a label of their own at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram

from serving.target import Side

NAMED_ALIASES = 32
OTHER = "other"
LABELS = ("alias", "side")
_SIDE = f"by alias (the first {NAMED_ALIASES}, then `{OTHER}`) and side, `stable` or `canary`."


class CanaryInstruments:
    """Counts per side. Mutable; used on the event loop alone. `_aliases` are those that have series now."""

    def __init__(self, registry: CollectorRegistry, *, seconds_buckets: tuple[float, ...]) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(name, f"{text} {_SIDE}", LABELS, registry=registry)

        self._requests = counter("loraplex_canary_requests", "Requests of aliases with a canary")
        self._errors = counter("loraplex_canary_errors", "Those that ended in an error")
        self._tokens = counter("loraplex_canary_generation_tokens", "Tokens generated for them")
        self._seconds = Histogram(
            "loraplex_canary_request_seconds",
            f"Arrival to last token of those that were answered, {_SIDE}",
            LABELS,
            buckets=seconds_buckets,
            registry=registry,
        )
        self._aliases: set[str] = set()

    def began(self, alias: str) -> None:
        """A canary decides about a request of this alias."""
        if len(self._aliases) < NAMED_ALIASES:
            self._aliases.add(alias)

    def is_over(self, alias: str) -> None:
        """No canary runs on this alias now: its series go."""
        if alias not in self._aliases:
            return
        self._aliases.discard(alias)
        removals: tuple[Callable[..., None], ...] = (
            self._requests.remove,
            self._errors.remove,
            self._tokens.remove,
            self._seconds.remove,
        )
        for side in Side:
            for remove in removals:
                remove(alias, side.value)

    def request_ended(self, alias: str, side: Side, *, outcome: str, seconds: float, generation_tokens: int) -> None:
        """A request is over. Where its canary has ended meanwhile, it is counted no more."""
        if alias not in self._aliases:
            if len(self._aliases) < NAMED_ALIASES:
                return
            alias = OTHER
        labels = (alias, side.value)
        self._requests.labels(*labels).inc()
        self._tokens.labels(*labels).inc(generation_tokens)
        self._errors.labels(*labels).inc(0 if outcome in ("ok", "cancelled", "client_gone") else 1)
        if outcome == "ok":
            self._seconds.labels(*labels).observe(seconds)
