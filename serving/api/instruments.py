"""The instruments that requests write to: histograms, and counters of outcomes.

It does: define each instrument with its help text, buckets and labels, and bound the labels.
It does not: read the engine (`engine_collector`), or decide when something happened (`request_record`).

Names under `vllm:` are those that gateways and dashboards of the field read; those under `loraplex_` are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from serving.api.canary_instruments import CanaryInstruments

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


HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("Arrival of a request to its first token.", FIRST_TOKEN_BUCKETS),
    "vllm:inter_token_latency_seconds": ("Time between two tokens of a sequence.", NEXT_TOKEN_BUCKETS),
    "vllm:e2e_request_latency_seconds": ("Arrival of a request to its last token.", REQUEST_BUCKETS),
    "vllm:request_queue_time_seconds": ("Wait in the engine before the first step.", REQUEST_BUCKETS),
    "vllm:request_prefill_time_seconds": ("First step to first token.", REQUEST_BUCKETS),
    "vllm:request_decode_time_seconds": ("First token to last token.", REQUEST_BUCKETS),
    "vllm:request_prompt_tokens": ("Prompt tokens of a request.", TOKEN_BUCKETS),
    "vllm:request_generation_tokens": ("Tokens generated for a sequence.", TOKEN_BUCKETS),
}
_BY_ADAPTER = f"by adapter digest (the first {NAMED_ADAPTERS}, then `{OTHER}`; `none` is the base)."


class Instruments:
    """Every instrument of the API process. `model_name` is asked for the label of that name at each observation."""

    def __init__(self, registry: CollectorRegistry, model_name: Callable[[], str]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter, unread
        self._model_name = model_name
        self._named_adapters: set[str] = set()
        self._histograms = {
            name: Histogram(name, text, LABELS, buckets=buckets, registry=registry)
            for name, (text, buckets) in HISTOGRAMS.items()
        }

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._success = counter("vllm:request_success", "Sequences completed.", *LABELS, "finished_reason")
        self._requests = counter("loraplex_requests", "Generation requests by route and outcome.", "route", "outcome")
        self._denied = counter("loraplex_access_denied", "Requests refused for their token or role.", "code")
        self._adapter_requests = counter("loraplex_adapter_requests", f"Requests {_BY_ADAPTER}", "adapter")
        self._adapter_tokens = counter(
            "loraplex_adapter_generation_tokens", f"Generated tokens {_BY_ADAPTER}", "adapter"
        )
        self._grammars = counter(
            "loraplex_grammars", "New schemas, patterns and grammars by what came of them.", "outcome"
        )
        self.canaries = CanaryInstruments(registry, seconds_buckets=REQUEST_BUCKETS)

    def first_token(self, seconds: float) -> None:
        """A sequence has its first token, so long after its request arrived."""
        self._observe("vllm:time_to_first_token_seconds", seconds)

    def next_token(self, seconds: float) -> None:
        """A sequence has its next token, so long after the one before."""
        self._observe("vllm:inter_token_latency_seconds", seconds)

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
        self._observe("vllm:request_queue_time_seconds", queue_seconds)
        self._observe("vllm:request_prefill_time_seconds", prefill_seconds)
        self._observe("vllm:request_decode_time_seconds", decode_seconds)
        self._observe("vllm:request_prompt_tokens", prompt_tokens)
        self._observe("vllm:request_generation_tokens", generation_tokens)
        self._success.labels(self._model_name(), ENGINE, reason).inc()

    def request_ended(
        self, route: str, outcome: str, *, seconds: float, digests: Sequence[str], generation_tokens: int
    ) -> None:
        """A request has been answered, refused or left. One of several adapters counts for each of them."""
        self._requests.labels(route, outcome).inc()
        if outcome == "ok":
            self._observe("vllm:e2e_request_latency_seconds", seconds)
            for adapter in [self._adapter_label(digest) for digest in dict.fromkeys(digests)] or ["none"]:
                self._adapter_requests.labels(adapter).inc()
                self._adapter_tokens.labels(adapter).inc(generation_tokens)

    def access_denied(self, code: str) -> None:
        """A request was refused for its token or role."""
        self._denied.labels(code).inc()

    def grammar_judged(self, outcome: str) -> None:
        """A schema, pattern or grammar that was not known was `compiled` or `refused`."""
        self._grammars.labels(outcome).inc()

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].labels(self._model_name(), ENGINE).observe(value)

    def _adapter_label(self, digest: str) -> str:
        label = digest[:DIGEST_CHARACTERS]
        if label not in self._named_adapters and len(self._named_adapters) >= NAMED_ADAPTERS:
            return OTHER
        self._named_adapters.add(label)
        return label
