"""Who may come in: what makes a message a request, and what can never run here, however the API was asked.

It does: check a message when it arrives, and a request against its adapters once they are loaded.
It does not: queue, wait or answer (`engine`).
"""

from __future__ import annotations

import torch

from serving.engine.adapter_pool import AdapterPool
from serving.engine.drafts import Drafts
from serving.engine.errors import RequestRefusedError
from serving.engine.request import Request
from serving.messages import Generate, Sampling


class Entrance:
    """Makes requests, each with its place in the order of arrival. Only the engine calls it.

    `context_tokens` are the most that one request can have, `vocabulary_tokens` those that the base knows.
    """

    def __init__(self, pool: AdapterPool, *, context_tokens: int, vocabulary_tokens: int) -> None:
        self.context_tokens = context_tokens
        self._pool = pool
        self._vocabulary_tokens = vocabulary_tokens
        self._arrivals = 0

    def take(self, message: Generate) -> Request:
        """The request of a message. Raises RequestRefusedError for what can never run."""
        self._check(message)
        self._arrivals += 1
        return Request(
            message.request_id,
            message.tenant,
            list(message.prompt_token_ids),
            message.sampling,
            message.adapters,
            arrival=self._arrivals,
            priority=message.priority,
            ends_at_tokens=min(len(message.prompt_token_ids) + message.sampling.max_tokens, self.context_tokens),
            drafts=Drafts(message.draft_tokens) if message.draft_tokens and message.grammar is None else None,
            generator=_generator(message.sampling),
            head_size=self._vocabulary_tokens,
        )

    def check_fit(self, request: Request) -> None:
        """Raise RequestRefusedError for what does not go with its adapters, which are loaded by now."""
        if (reason := self._pool.why_never(request.placed)) is not None:
            raise RequestRefusedError(reason)
        natures = [self._pool.nature(use.digest) for use in request.placed]
        known, chosen = (min(nature.vocabulary_size for nature in natures), min(each.head_size for each in natures))
        _check_tokens(request.tokens, request.sampling, known, chosen)
        request.head_size = chosen
        request.is_fitting = True

    def _check(self, message: Generate) -> None:
        prompt = len(message.prompt_token_ids)
        if prompt == 0:
            raise RequestRefusedError("the prompt is empty; it needs at least one token")
        if prompt >= self.context_tokens:
            raise RequestRefusedError(f"the prompt has {prompt} tokens; at most {self.context_tokens - 1} fit")
        if not message.adapters:
            size = self._vocabulary_tokens
            _check_tokens(message.prompt_token_ids, message.sampling, size, size)
        if len(message.adapters) > 1 and any(use.experts for use in message.adapters):
            raise RequestRefusedError("a mixture cannot be one of several adapters: it brings its own weights")
        if (reason := self._pool.why_never(each for use in message.adapters for each in use.adapters)) is not None:
            raise RequestRefusedError(reason)


def _check_tokens(tokens: list[int], sampling: Sampling, known: int, chosen: int) -> None:
    """Raise RequestRefusedError for a token that the model does not know, or a bias for one that it cannot choose."""
    for named, size in ((tokens, known), (sampling.logit_bias, chosen)):
        unknown = next((token for token in named if not 0 <= token < size), None)
        if unknown is not None:
            raise RequestRefusedError(f"token id {unknown} is not in the vocabulary of {size} tokens")


def _generator(sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator
