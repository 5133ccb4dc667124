"""The plans of a step: kept while the same rows go on, made anew as soon as anything about them changes."""

from __future__ import annotations

import torch

from basemodel.lora_ops import LoraPlan
from basemodel.lora_segment import RankRows
from serving.engine.request import Request, Row
from serving.engine.step_plans import StepPlans
from serving.messages import Sampling


def request(name: str, tokens: int, computed: int, *adapters: RankRows) -> Request:
    found = Request(name, "t", list(range(tokens)), Sampling(max_tokens=9), (), arrival=0)
    found.computed, found.rank_rows = computed, adapters
    return found


def plans_of(plans: StepPlans, rows: list[Row]) -> tuple[LoraPlan | None, LoraPlan | None]:
    return plans.of(rows, [row.sampled_tokens for row in rows])


def uses(plan: LoraPlan | None) -> list[list[int]]:
    """First rank row and rank of each use, after the counts of each token."""
    assert plan is not None
    assert plan.runs is not None
    of_members = plan.runs.groups[:, :2].repeat_interleave(plan.runs.groups[:, 3], dim=0)
    return [plan.runs.first_use.tolist(), *of_members[plan.runs.uses].tolist()]


def test_rows_that_go_on_decoding_keep_their_plans() -> None:
    plans = StepPlans(torch.device("cpu"), torch.float32)
    rows = [Row(request("a", 9, 8, RankRows(0, 4)), 1), Row(request("b", 5, 4), 1)]
    every, head = plans_of(plans, rows)
    assert head is every
    assert uses(every) == [[0, 1, 1], [0, 4]]
    for row in rows:
        row.request.tokens.append(7)
        row.request.computed += 1
    assert plans_of(plans, rows)[0] is every


def test_a_change_of_rows_or_of_their_adapters_is_seen() -> None:
    plans = StepPlans(torch.device("cpu"), torch.float32)
    first, second = request("a", 9, 8, RankRows(0, 4)), request("b", 5, 4, RankRows(4, 2, 0.5), RankRows(0, 4))
    assert uses(plans_of(plans, [Row(first, 1), Row(second, 1)])[0]) == [[0, 1, 3], [0, 4], [4, 2], [0, 4]]
    first.rank_rows = (RankRows(16, 4),)  # it was moved
    assert uses(plans_of(plans, [Row(first, 1), Row(second, 1)])[0])[1] == [16, 4]
    assert uses(plans_of(plans, [Row(second, 1), Row(first, 1)])[0])[0] == [0, 2, 3]
    assert plans_of(plans, [Row(request("c", 2, 1), 1)]) == (None, None)


def test_the_head_sees_sampled_tokens_only() -> None:
    plans = StepPlans(torch.device("cpu"), torch.float32)
    prompt, unread = request("a", 6, 0, RankRows(0, 4)), request("b", 30, 0, RankRows(4, 2))
    every, head = plans_of(plans, [Row(prompt, 6), Row(unread, 10)])
    assert len(uses(every)[0]) == 17
    assert uses(head) == [[0, 1], [0, 4]]
