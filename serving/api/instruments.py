"""The instruments that requests write to: histograms, and counters of outcomes.

It does: define each instrument with its help text, buckets and labels, and bound the labels.
It does not: read the engine (`engine_collector`), or decide when something happened (`request_record`).

Names under `vllm:` are those that gateways and dashboards of the field read; those under `loraplex_` are ours.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

ENGINE = "0"
LABELS = ("model_name", "engine")
NAMED_ADAPTERS = 64
OTHER = "other"
DIGEST_CHARACTERS = len("sha256:") + 12

FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
NEXT_TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
TOKEN_BUCKETS = tuple(float(2**power) for power in range(18))


class Instruments:
    """Every instrument of the API process. `model_name` is asked for the label of that name at each observation."""

    def __init__(self, registry: CollectorRegistry, model_name: Callable[[], str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, unread
        self._model_name = model_name
        self._named_adapters: set[str] = set()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, LABELS, buckets=buckets, registry=registry)

        self._first_token = histogram(
            "vllm:time_to_first_token_seconds", "Arrival of a request to its first token.", FIRST_TOKEN_BUCKETS
        )
        self._next_token = histogram(
            "vllm:inter_token_latency_seconds", "Time between two tokens of a sequence.", NEXT_TOKEN_BUCKETS
        )
        self._whole = histogram(
            "vllm:e2e_request_latency_seconds", "Arrival of a request to its last token.", REQUEST_BUCKETS
        )
        self._queue = histogram(
            "vllm:request_queue_time_seconds", "Wait in the engine before the first step.", REQUEST_BUCKETS
        )
        self._prefill = histogram("vllm:request_prefill_time_seconds", "First step to first token.", REQUEST_BUCKETS)
        self._decode = histogram("vllm:request_decode_time_seconds", "First token to last token.", REQUEST_BUCKETS)
        self._prompt = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKEN_BUCKETS)
        self._generation = histogram(
            "vllm:request_generation_tokens", "Tokens generated for a sequence.", TOKEN_BUCKETS
        )
        self._success = Counter(
            "vllm:request_success", "Sequences completed.", (*LABELS, "finished_reason"), registry=registry
        )
        self._requests = Counter(
            "loraplex_requests", "Generation requests by route and outcome.", ("route", "outcome"), registry=registry
        )
        self._denied = Counter(
            "loraplex_access_denied", "Requests refused for their token or role.", ("code",), registry=registry
        )
        self._adapter_requests = Counter(
            "loraplex_adapter_requests",
            f"Requests by adapter digest (the first {NAMED_ADAPTERS}, then `{OTHER}`; `none` is the base).",
            ("adapter",),
            registry=registry,
        )
        self._adapter_tokens = Counter(
            "loraplex_adapter_generation_tokens",
            f"Generated tokens by adapter digest (the first {NAMED_ADAPTERS}, then `{OTHER}`; `none` is the base).",
            ("adapter",),
            registry=registry,
        )

    def first_token(self, seconds: float) -> None:
        """A sequence has its first token, so long after its request arrived."""
        self._first_token.labels(self._model_name(), ENGINE).observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A sequence has its next token, so long after the one before."""
        self._next_token.labels(self._model_name(), ENGINE).observe(seconds)

    def sequence_finished(
        self,
        reason: str,
        *,
        queue_seconds: float,
        prefill_seconds: float,
        decode_seconds: float,
        prompt_tokens: int,
        generation_tokens: int,
    ) -> None:
        """A sequence is complete."""
        labels = (self._model_name(), ENGINE)
        self._queue.labels(*labels).observe(queue_seconds)
        self._prefill.labels(*labels).observe(prefill_seconds)
        self._decode.labels(*labels).observe(decode_seconds)
        self._prompt.labels(*labels).observe(prompt_tokens)
        self._generation.labels(*labels).observe(generation_tokens)
        self._success.labels(*labels, reason).inc()

    def request_ended(
        self, route: str, outcome: str, *, seconds: float, digest: str | None, generation_tokens: int
    ) -> None:
        """A request has been answered, refused or left."""
        self._requests.labels(route, outcome).inc()
        if outcome == "ok":
            self._whole.labels(self._model_name(), ENGINE).observe(seconds)
            adapter = self._adapter_label(digest)
            self._adapter_requests.labels(adapter).inc()
            self._adapter_tokens.labels(adapter).inc(generation_tokens)

    def access_denied(self, code: str) -> None:
        """A request was refused for its token or role."""
        self._denied.labels(code).inc()

    def _adapter_label(self, digest: str | None) -> str:
        if digest is None:
            return "none"
        label = digest[:DIGEST_CHARACTERS]
        if label not in self._named_adapters and len(self._named_adapters) >= NAMED_ADAPTERS:
            return OTHER
        self._named_adapters.add(label)
        return label
