"""The sampler against what its settings mean."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from serving.engine.request import Request
from serving.engine.sampler import sample
from serving.messages import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def _request(tokens: list[int] | None = None, prompt: int = 1, seed: int = 0, **settings: Any) -> Request:
    tokens = tokens or [0]
    generator = torch.Generator().manual_seed(seed)
    request = Request("r", "t", tokens, Sampling(**({"max_tokens": 5} | settings)), (), 0, generator=generator)
    request.prompt_tokens = prompt
    return request


def _frequencies(draws: int = 4000, **settings: Any) -> list[float]:
    requests = [_request(seed=seed, **settings) for seed in range(draws)]
    counts = Counter(pick.token_id for pick in sample(LOGITS.repeat(draws, 1), requests))
    return [counts[token] / draws for token in range(len(LOGITS))]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_the_temperature(temperature: float) -> None:
    expected = torch.softmax(LOGITS / temperature, -1)
    for found, wanted in zip(_frequencies(temperature=temperature), expected.tolist(), strict=True):
        assert abs(found - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 4000) + 1e-3


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.85}, {0, 1, 2}),  # the probabilities are .61 .22 .14 .03 .00
        ({"top_p": 0.80}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "min_p": 0.3}, {0, 1}),
        ({"logit_bias": {0: -100.0, 4: 4.0}, "top_k": 2}, {1, 4}),
    ],
)
def test_cuts_keep_exactly_what_they_should(settings: dict[str, Any], kept: set[int]) -> None:
    frequencies = _frequencies(draws=1500, **({"temperature": 1.5 if settings == {"top_k": 100} else 1.0} | settings))
    assert {token for token, share in enumerate(frequencies) if share} == kept


def test_greedy_takes_the_best_after_penalties_and_bias() -> None:
    cases = [
        (_request(temperature=0), 0),
        (_request(temperature=0, logit_bias={3: 5.0}), 3),
        (_request([9, 0], prompt=1, temperature=0, presence_penalty=1.5), 1),
        (_request([9, 0], prompt=1, temperature=0, frequency_penalty=0.7), 0),
        (_request([9, 0, 0], prompt=1, temperature=0, frequency_penalty=0.7), 1),
        (_request([0, 9], prompt=1, temperature=0, presence_penalty=1.5), 0),  # the prompt is not penalized
        (_request([0], prompt=1, temperature=0, repetition_penalty=3.0), 1),  # but repetition counts it
    ]
    logits = torch.cat([LOGITS, torch.full((5,), -9.0)]).repeat(len(cases), 1)
    picks = sample(logits, [request for request, _ in cases])
    assert [pick.token_id for pick in picks] == [token for _, token in cases]


def test_logprobs_are_the_models_own() -> None:
    (pick,) = sample(LOGITS[None], [_request(temperature=0, logit_bias={2: 50.0}, logprobs=2)])
    expected = torch.log_softmax(LOGITS, -1)
    assert pick.logprob is not None
    assert pick.logprob.token_id == 2
    assert pick.logprob.logprob == pytest.approx(float(expected[2]))
    assert [token for token, _ in pick.logprob.top] == [0, 1]
    assert pick.logprob.top[1][1] == pytest.approx(float(expected[1]))
    (none,) = sample(LOGITS[None], [_request(temperature=0)])
    assert none.logprob is None


def test_a_row_without_usable_values_is_marked_and_the_others_go_on() -> None:
    bad = torch.stack([LOGITS, LOGITS.clone().fill_(float("nan")), LOGITS])
    picks = sample(bad, [_request(temperature=0) for _ in range(3)])
    assert [pick.finite for pick in picks] == [True, False, True]
    assert picks[2].token_id == 0
