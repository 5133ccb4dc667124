"""What one step adds to each request: a token, or several where it had a draft.

It does: have tokens chosen one after the other while they agree with the row's draft, add them to the text, and see
where the text ends. It does not: choose by itself (`sampler`), or end a request (`engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from serving.engine.request import Row
from serving.engine.sampler import Pick, sample
from serving.messages import FinishReason


@dataclass
class Answer:
    """The picks of a sampled row; the logits of its first one are at `logits_begin`, those of the draft behind it.

    `reason` is set where the last pick ends the request, `is_stopped` where it does so without being part of the text.
    """

    row: Row
    logits_begin: int
    picks: list[Pick] = field(default_factory=list)
    reason: FinishReason | None = None
    is_stopped: bool = False

    @property
    def accepted(self) -> int:
        """Tokens of the draft that were chosen. Their keys and values are in the cache."""
        pairs = zip(self.row.draft, self.picks, strict=False)
        return sum(drafted == pick.token_id for drafted, pick in pairs if pick.finite)

    @property
    def goes_on(self) -> bool:
        """Whether the logits behind the last pick are those of the text: it is what was drafted."""
        done = len(self.picks)
        return self.reason is None and done <= len(self.row.draft) and self.accepted == done

    @property
    def computed(self) -> int:
        """Tokens of the row that are part of the text."""
        refused = len(self.row.draft) - min(self.accepted, len(self.picks) - 1)
        return self.row.count - refused


def choose(sampled: Sequence[Row], late: set[str], logits: torch.Tensor, end_token_ids: frozenset[int]) -> list[Answer]:
    """The answers of all sampled rows but the `late` requests'. logits [S, V] are those of `Batch.logits_index`.

    Each token is chosen exactly as it would be without a draft, from the same logits and with the same draw, so a
    draft changes nothing but the number of steps: a drafted token is accepted with its own probability.
    """
    begins = accumulate((row.sampled_tokens for row in sampled), initial=0)
    each = [Answer(row, begin) for row, begin in zip(sampled, begins, strict=False)]
    answers = [answer for answer in each if answer.row.request.request_id not in late]
    live = answers
    while live:
        index = [answer.logits_begin + len(answer.picks) for answer in live]
        requests = [answer.row.request for answer in live]
        picks = sample(logits if len(index) == len(logits) else logits[index], requests)
        for answer, pick in zip(live, picks, strict=True):
            _take(answer, pick, end_token_ids)
        live = [answer for answer in live if answer.goes_on]
    return answers


def _take(answer: Answer, pick: Pick, end_token_ids: frozenset[int]) -> None:
    request, sampling, token = answer.row.request, answer.row.request.sampling, pick.token_id
    answer.picks.append(pick)
    if not pick.finite:
        answer.reason = "error"
    elif token in sampling.stop_token_ids or (token in end_token_ids and not sampling.ignore_eos):
        answer.reason, answer.is_stopped = "stop", True
    else:
        request.tokens.append(token)
        if request.constraint is not None:
            request.constraint.take(token)
        if len(request.tokens) >= request.ends_at_tokens:
            answer.reason = "length"
