"""The messages that cross the process boundary between the API process and the engine process.

It does: define every message as a msgspec struct and the one encoder and decoder for each direction.
It does not: open sockets (`serving.engine_client`, `serving.engine.process`) or hold behaviour.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

FinishReason = Literal["stop", "length", "aborted", "error"]
FaultCode = Literal["adapter_rejected", "invalid_request", "out_of_memory", "internal"]


class AdapterUse(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter with its weight. `digest` is the identity; `folder` is a local, already verified adapter folder.

    A mixture has `experts`, in the order of its gate; it stands alone in a request, and its folder holds the gate.
    """

    digest: str
    folder: str
    weight: float = 1.0
    experts: tuple[AdapterUse, ...] = ()

    @property
    def adapters(self) -> tuple[AdapterUse, ...]:
        """What lies on the device for it: the experts of a mixture, else the adapter itself."""
        return self.experts or (self,)

    @property
    def parts(self) -> tuple[AdapterUse, ...]:
        """All that is read for it: the adapter itself, or a mixture's gate and its experts."""
        return (self, *self.experts)


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen. Already validated by the API: the engine trusts the ranges.

    `temperature` 0 is greedy. `top_k` None is no limit. `logprobs` None returns none; n >= 0 returns the chosen
    token's log-probability and the n best alternatives. `stop_token_ids` end the text besides the base's own
    end-of-text tokens, which `ignore_eos` switches off.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Start a request. The engine answers with `Output`s for this `request_id` until one has a finish reason.

    `grammar` is what the answer must follow, in llguidance's own form, and was compiled before by the API's workers.
    `priority` orders the requests of one tenant: lower ones are admitted first and preempted last. Up to `draft_tokens`
    tokens a step are guessed from the request's own text and verified (0: none); the answer is the same.
    """

    request_id: str
    tenant: str
    prompt_token_ids: list[int]
    sampling: Sampling
    adapters: tuple[AdapterUse, ...] = ()
    grammar: str | None = None
    priority: int = 0
    draft_tokens: int = 0


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag="abort"):
    """Stop a request (its client left, or a stop string was found). Its blocks are free within one step; no answer."""

    request_id: str


class Preload(msgspec.Struct, frozen=True, kw_only=True, tag="preload"):
    """Bring an adapter into host memory before a request asks for it. No answer; see `Stats`."""

    adapter: AdapterUse


class Keep(msgspec.Struct, frozen=True, kw_only=True, tag="keep"):
    """The adapters that the operator wants kept in memory, all of them: each message replaces the one before."""

    adapters: tuple[AdapterUse, ...]


class Shutdown(msgspec.Struct, frozen=True, kw_only=True, tag="shutdown"):
    """Finish nothing more: the engine process ends with status 0."""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probability of the chosen token, and of the best alternatives, best first."""

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request failed. `message` is written for the client: no addresses, no stack."""

    code: FaultCode
    message: str


class Output(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step produced for one request. After a `finish_reason` there is nothing more for this request.

    An end-of-text or stop token that ends the request is not among `token_ids`' text, but is listed as `stop_token_id`.
    `queue_seconds` is set on a request's first output: how long it waited in the engine before its first step.
    """

    request_id: str
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    fault: Fault | None = None
    queue_seconds: float | None = None


class Outputs(msgspec.Struct, frozen=True, kw_only=True, tag="outputs"):
    """All outputs of one engine step."""

    outputs: list[Output]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The engine holds the base and accepts requests. Sent once per engine process.

    `base` is the content of `base.json`; `base_folder` holds the tokenizer and the chat template. `end_token_ids` end
    a text.
    """

    base: dict[str, Any]
    base_folder: str
    device: str
    context_tokens: int
    kv_blocks: int
    kv_block_tokens: int
    adapter_slots: int
    max_running: int
    load_seconds: float
    end_token_ids: tuple[int, ...] = ()


class AdapterState(msgspec.Struct, frozen=True, kw_only=True):
    """Where one adapter is now: `slot` on the device, `host` in memory only, or `loading`."""

    digest: str
    place: Literal["slot", "host", "loading"]
    adapter_bytes: int
    running: int
    waiting: int


class MixtureState(msgspec.Struct, frozen=True, kw_only=True):
    """How often each expert of a mixture was chosen for a token, in the order of its gate. Counts only grow.

    `digest` None stands for all mixtures beyond the first ones, whose counts are added up place by place.
    """

    digest: str | None
    chosen: tuple[int, ...]


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """A snapshot of the engine, sent at most every 250 ms and at least every second. Counters only grow."""

    steps: int
    running: int
    waiting: int
    kv_blocks_total: int
    kv_blocks_used: int
    slots_total: int
    slots_used: int
    slot_bytes: int
    host_bytes: int
    preemptions: int
    adapter_loads: int
    adapter_evictions: int
    adapter_load_seconds: float
    prompt_tokens: int
    generation_tokens: int
    step_seconds: float
    last_step_rows: int
    adapters: list[AdapterState]
    prefix_queries: int = 0
    prefix_hits: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    mixtures: list[MixtureState] = []


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The engine could not start (bad base, no memory). The process ends after it."""

    message: str


ToEngine = Generate | Abort | Preload | Keep | Shutdown
FromEngine = Ready | Outputs | Stats | Failed

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine process is told at its start, as one JSON argument.

    `socket` is the ipc:// address that the engine connects its PAIR socket to. `kv_cache_tokens` None sizes the
    cache from `max_running` and the base's context. At most `adapter_slots` adapters are resident at once, within
    `adapter_pool_bytes` (None: room for `adapter_slots` rank-32 adapters of every linear layer). What they take beside
    rank rows (DoRA's scales, biases, whole weights) is bounded by `adapter_whole_bytes` (None: as much as the rows, and
    an embedding with its head). A
    step computes at most `step_budget_tokens`, and at most `mixed_step_tokens` while somebody decodes (None: a quarter
    of them on the CPU). On a GPU steps that only decode are captured as CUDA graphs, in at most `cuda_graph_bytes`
    (0: none are).
    """

    socket: str
    base: str
    mode: Literal["nf4", "bf16", "fp32"] = "nf4"
    compute_dtype: str | None = None
    device: str = "cpu"
    bases_folder: str
    max_running: int = 32
    step_budget_tokens: int = 512
    mixed_step_tokens: int | None = None
    kv_cache_tokens: int | None = None
    kv_block_tokens: int = 16
    adapter_slots: int = 8
    adapter_pool_bytes: int | None = None
    adapter_whole_bytes: int | None = None
    host_cache_bytes: int = 1_073_741_824
    check_probes: bool = True
    threads: int | None = None
    cuda_graph_bytes: int = 2_147_483_648
