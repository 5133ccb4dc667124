"""One request on its way through the engine.

It does: hold a request's tokens and what the engine owns on its behalf.
It does not: decide anything. `scheduler` sets `computed`, `blocks`, `chain`, `cached_tokens`, `rank_rows` and `router`;
`answer` appends tokens, `constrained` sets `constraint`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from basemodel.lora_segment import RankRows
from serving.engine.constraint import Constraint
from serving.engine.drafts import Drafts
from serving.engine.prefix_chain import PrefixChain
from serving.engine.router import Router
from serving.messages import AdapterUse, Sampling


@dataclass(eq=False)
class Request:
    """A request. `tokens` is the prompt and what was generated; the first `computed` of them are in the KV cache.

    `arrival` orders requests and never changes, also when a request is preempted and computed again.
    `cached_tokens` of them were in the cache when it was admitted; `chain` is what the cache knows of its blocks.
    `placed` are the adapters that must lie on the device for it: those it names, with the experts in a mixture's place;
    `rank_rows` are their rows while they are pinned (None: not pinned), and `router` chooses among them for each token
    where they are the experts of a mixture. `parts` are all that must be read for it: `placed`, and a mixture itself;
    `digests` name them, each once. `constraint` is what the answer must follow (None: nothing).
    `skipped_steps` counts the steps in which it could have run, had its adapter or its tokens found room.
    `queue_seconds` is how long it waited until it was first admitted (None: not yet told to the client).
    `priority` orders the requests of one tenant, lower first. It ends when it has `ends_at_tokens` tokens.
    `drafts` guess how its text goes on (None: nobody does).
    `admitted_tokens` is how many tokens it had when it was last admitted.
    `is_fitting` says that its adapters were loaded once, and that it goes with them; it chooses among the first
    `head_size` tokens (None: among all for which there are logits).
    `charged_tokens` of its prompt were counted as served (a prompt that is computed again is not counted again).
    """

    request_id: str
    tenant: str
    tokens: list[int]
    sampling: Sampling
    adapters: tuple[AdapterUse, ...]
    arrival: int
    priority: int = 0
    ends_at_tokens: int = 0
    drafts: Drafts | None = None
    prompt_tokens: int = 0
    placed: tuple[AdapterUse, ...] = ()
    parts: tuple[AdapterUse, ...] = ()
    digests: tuple[str, ...] = ()
    computed: int = 0
    admitted_tokens: int = 0
    charged_tokens: int = 0
    cached_tokens: int = 0
    blocks: list[int] = field(default_factory=list)
    chain: PrefixChain | None = None
    rank_rows: tuple[RankRows, ...] | None = None
    router: Router | None = None
    generator: torch.Generator | None = None
    constraint: Constraint | None = None
    skipped_steps: int = 0
    is_fitting: bool = False
    head_size: int | None = None
    queued_at: float = field(default_factory=time.monotonic)
    queue_seconds: float | None = None

    def __post_init__(self) -> None:
        """The first tokens are the prompt; what follows from its adapters is worked out once."""
        self.prompt_tokens = len(self.tokens)
        self.placed = tuple(adapter for use in self.adapters for adapter in use.adapters)
        self.parts = tuple(part for use in self.adapters for part in use.parts)
        self.digests = tuple(dict.fromkeys(use.digest for use in self.parts))

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.prompt_tokens :]

    @property
    def pending_tokens(self) -> int:
        """Tokens that the next forward must compute: 1 while decoding, more while the prompt is read."""
        return len(self.tokens) - self.computed

    @property
    def is_running(self) -> bool:
        """Whether it is admitted, and owns blocks."""
        return self.chain is not None

    @property
    def identity(self) -> tuple[object, ...]:
        """What its keys and values depend on besides its tokens, and whose they are."""
        return (self.tenant, *((use.digest, use.weight) for use in self.adapters))


@dataclass(frozen=True)
class Row:
    """A request's share of one step: its tokens [request.computed, request.computed + count), of which the last ones
    may be a `draft`: tokens that are not part of its text, but may turn out to be.
    """

    request: Request
    count: int
    draft: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        """What it computes."""
        begin = self.request.computed
        return [*self.request.tokens[begin : begin + self.count - len(self.draft)], *self.draft]

    @property
    def samples(self) -> bool:
        """Whether this step reaches the request's last token, so that a new one is chosen."""
        return self.count - len(self.draft) == self.request.pending_tokens

    @property
    def sampled_tokens(self) -> int:
        """How many of its tokens, from the end, are followed by one that is chosen: the text's last and the draft."""
        return 1 + len(self.draft) if self.samples else 0
