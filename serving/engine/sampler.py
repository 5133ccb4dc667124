"""Chooses the next token of every row.

It does: leave only what a row's grammar allows, then penalties, bias, temperature, top-k, top-p, min-p and
log-probabilities, each row by its own settings. It does not: decide when a text ends (`engine`).

Log-probabilities are those of the model itself, before grammar, penalties, bias and temperature: what the model would
have liked to say, so a chosen token need not be among the best. Every row draws from its own generator, so what it
draws does not depend on its neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from basemodel.kernels.library import has_cpu_kernels
from serving.engine.constraint import Constraint
from serving.engine.request import Request
from serving.messages import Sampling, TokenLogprob


@dataclass(frozen=True)
class Pick:
    """What was chosen for one row. `finite` False: the row's logits held no usable values, and nothing was chosen."""

    token_id: int
    logprob: TokenLogprob | None
    finite: bool = True


def sample(logits: torch.Tensor, requests: Sequence[Request]) -> list[Pick]:
    """Choose one token for each row of logits [S, V], among as many of them as are the request's own."""
    sizes = [request.head_size or logits.shape[1] for request in requests]
    if any(size != logits.shape[1] for size in sizes):
        return _sample_by_size(logits, requests, sizes)
    picks: list[Pick] = []
    for row, (request, best) in enumerate(zip(requests, _best(logits), strict=True)):
        if best is None:
            picks.append(Pick(token_id=0, logprob=None, finite=False))
            continue
        is_best, wanted = _is_plain_greedy(request), request.sampling.logprobs
        if is_best and wanted is None:
            picks.append(Pick(best, None))
            continue
        own = logits[row].float()
        token = best if is_best else _choose(own.clone(), request)
        picks.append(Pick(token, _logprob(own, token, wanted)))
    return picks


def _best(logits: torch.Tensor) -> list[int | None]:
    """The likeliest token of each row, None where the row is not finite."""
    if logits.dtype == torch.bfloat16 and logits.device.type == "cpu" and has_cpu_kernels():
        places = torch.ops.loraplex.largest(logits.contiguous()).tolist()
        return [place if place >= 0 else None for place in places]
    places = torch.where(torch.isfinite(logits).all(dim=-1), logits.argmax(dim=-1), -1).tolist()  # waits for a GPU once
    return [place if place >= 0 else None for place in places]


def _sample_by_size(logits: torch.Tensor, requests: Sequence[Request], sizes: Sequence[int]) -> list[Pick]:
    """Rows of one size together, cut to it: what a neighbour's adapter adds to the vocabulary is nowhere in a sum."""
    picks: dict[int, Pick] = {}
    for size in sorted(set(sizes)):
        rows = [row for row, each in enumerate(sizes) if each == size]
        found = sample(logits[rows, :size].contiguous(), [requests[row] for row in rows])
        picks |= dict(zip(rows, found, strict=True))
    return [picks[row] for row in range(len(requests))]


def _is_plain_greedy(request: Request) -> bool:
    return request.sampling.temperature == 0 and request.constraint is None and not _is_shaped(request.sampling)


def _is_shaped(sampling: Sampling) -> bool:
    return bool(
        sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1.0
        or sampling.logit_bias
    )


def _choose(logits: torch.Tensor, request: Request) -> int:
    """Choose from one row of logits [V], which is changed."""
    sampling = request.sampling
    if request.constraint is not None:
        _constrain(logits, request.constraint)
    if _is_shaped(sampling):
        _shape(logits, request)
    if sampling.temperature == 0:
        return int(logits.argmax())
    _cut(logits, sampling)
    probabilities = torch.softmax(logits, dim=-1)
    # The largest of p / e with exponential noise e is a draw from p (Gumbel's trick), without torch's own sum over V.
    noise = torch.empty_like(probabilities, device="cpu").exponential_(generator=request.generator)
    return int((probabilities / noise.to(probabilities.device)).argmax())


def _constrain(logits: torch.Tensor, constraint: Constraint) -> None:
    """Forbid what the grammar does not allow, and what is not in the tokenizer that it was compiled for."""
    allowed = constraint.allowed
    assert allowed is not None, "the engine samples only rows whose grammar has caught up"
    assert allowed.forbidden is not None, "the engine ends a text that is complete"
    known = len(allowed.forbidden)
    logits[:known].masked_fill_(allowed.forbidden.to(logits.device), float("-inf"))
    logits[known:] = float("-inf")


def _shape(logits: torch.Tensor, request: Request) -> None:
    """Penalties and bias. Presence and frequency count generated tokens (OpenAI); repetition the prompt too (CTRL)."""
    sampling = request.sampling
    if sampling.repetition_penalty != 1.0:
        known = {token for token in request.tokens if token < len(logits)}  # an added token may be one to read only
        index = torch.tensor(sorted(known), dtype=torch.long, device=logits.device)
        seen = logits[index]
        logits[index] = torch.where(seen > 0, seen / sampling.repetition_penalty, seen * sampling.repetition_penalty)
    counts = Counter(request.generated)
    if counts and (sampling.presence_penalty or sampling.frequency_penalty):
        index = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[index] -= sampling.presence_penalty + sampling.frequency_penalty * times
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias


def _cut(logits: torch.Tensor, sampling: Sampling) -> None:
    """Temperature, then the tokens that top-k, top-p and min-p leave; the best token always stays."""
    logits /= sampling.temperature
    drop = torch.zeros_like(logits, dtype=torch.bool)
    if sampling.top_k is not None and sampling.top_k < logits.shape[0]:
        drop |= logits < logits.topk(sampling.top_k).values[-1]
    if sampling.top_p < 1.0:
        ordered, order = logits.masked_fill(drop, float("-inf")).sort(descending=True)
        weights = torch.softmax(ordered, dim=-1)
        before = weights.cumsum(-1) - weights
        drop[order] |= before >= sampling.top_p
    if sampling.min_p > 0.0:
        weights = torch.softmax(logits.masked_fill(drop, float("-inf")), dim=-1)
        drop |= weights < sampling.min_p * weights.max()
    drop[logits.argmax()] = False
    logits.masked_fill_(drop, float("-inf"))


def _logprob(logits: torch.Tensor, token: int, best: int | None) -> TokenLogprob | None:
    if best is None:
        return None
    logprobs = torch.log_softmax(logits, dim=-1)
    values, tokens = logprobs.topk(best)
    return TokenLogprob(token, float(logprobs[token]), list(zip(tokens.tolist(), values.tolist(), strict=True)))
