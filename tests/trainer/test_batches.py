"""Plans and batches: every row once, within the limit, the same each time, and the right tokens at the right places."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch

from trainer.batches import BatchLimit, RunPlan, collate, plan_by_length, plan_epoch
from trainer.encoding import Example
from trainer.job_sections import OptimizationSection
from trainer.schedule import learning_rate_at

LENGTHS = tuple(random.Random(4).choices(range(1, 91), k=1500))


def example(tokens: int, labels_from: int, line: int = 1) -> Example:
    ids = np.arange(line * 1000, line * 1000 + tokens, dtype=np.int32)
    return Example(line, ids, np.arange(tokens) >= max(1, labels_from), None)


@pytest.mark.parametrize(
    "limit", [BatchLimit(256, None), BatchLimit(None, 7), BatchLimit(10, None), BatchLimit(None, 1)]
)
def test_an_epoch_has_every_row_once_within_the_limit(limit: BatchLimit) -> None:
    for plan in (plan_epoch(LENGTHS, limit, seed=1, epoch=0), plan_by_length(LENGTHS, limit)):
        assert sorted(itertools.chain(*plan)) == list(range(len(LENGTHS)))
        for batch in plan:
            longest = max(LENGTHS[index] for index in batch)
            assert len(batch) == 1 or limit.allows(len(batch), longest)


def test_rows_of_similar_length_are_together_and_the_order_is_shuffled() -> None:
    limit = BatchLimit(512, None)
    plan = plan_epoch(LENGTHS, limit, seed=1, epoch=0)
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in plan)
    assert padded < 1.1 * sum(LENGTHS)
    means = [np.mean([LENGTHS[index] for index in batch]) for batch in plan]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3, "long and short batches must take turns"


def test_rows_of_any_length_are_together_where_that_is_wished() -> None:
    limit = BatchLimit(512, None)
    plan = plan_epoch(LENGTHS, limit, seed=1, epoch=0, by_length=False)
    assert sorted(itertools.chain(*plan)) == list(range(len(LENGTHS)))
    assert all(len(batch) == 1 or limit.allows(len(batch), max(LENGTHS[row] for row in batch)) for batch in plan)
    spreads = [np.ptp([LENGTHS[index] for index in batch]) for batch in plan]
    assert np.median(spreads) > 40


def test_a_plan_depends_on_seed_and_epoch_alone() -> None:
    limit = BatchLimit(256, None)
    plans = [plan_epoch(LENGTHS, limit, seed=seed, epoch=epoch) for seed, epoch in ((1, 0), (1, 0), (2, 0), (1, 1))]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


def run_plan(**section: object) -> RunPlan:
    examples = [example(tokens, 1) for tokens in LENGTHS]
    return RunPlan.of(examples, OptimizationSection(**section))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "section",
    [
        {"epochs": 2, "batch_tokens": 512},
        {"epochs": 3, "batch_tokens": 512, "gradient_accumulation": 4},
        {"max_steps": 50, "batch_tokens": 4096, "gradient_accumulation": 3},
        {"max_steps": 3, "batch_rows": 2000},
    ],
)
def test_a_resumed_plan_is_the_rest_of_the_whole(section: dict[str, object]) -> None:
    plan = run_plan(**section)
    whole = list(plan.iterate(done=0))
    assert len(whole) == plan.steps
    for done in (0, 1, plan.steps // 2, plan.steps):
        assert list(plan.iterate(done=done)) == whole[done:]
    if "epochs" in section:
        seen = itertools.chain(*(batch for step in whole for batch in step.batches))
        assert sorted(seen) == sorted(list(range(len(LENGTHS))) * section["epochs"])  # type: ignore[operator]


def test_a_batch_predicts_each_label_from_the_token_before_it() -> None:
    batch = collate([example(3, 2, line=1), example(5, 1, line=2), example(4, 3, line=3)], torch.device("cpu"))
    assert batch.token_ids.tolist() == [
        [1000, 1001, 1002, 0, 0],
        [2000, 2001, 2002, 2003, 2004],
        [3000, 3001, 3002, 3003, 0],
    ]
    assert batch.targets.tolist() == [1002, 2001, 2002, 2003, 2004, 3003]
    assert batch.token_ids.flatten()[batch.positions].tolist() == [1001, 2000, 2001, 2002, 2003, 3002]
    assert batch.real_tokens == 12


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_warms_up_peaks_and_decays(schedule: str) -> None:
    section = OptimizationSection(learning_rate=0.1, schedule=schedule, warmup_ratio=0.1)  # type: ignore[arg-type]
    rates = [learning_rate_at(step, steps=100, section=section) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.1)
    middle = {"cosine": 0.05, "linear": 0.05, "constant": 0.1}[schedule]
    assert rates[55] == pytest.approx(middle)
    last = {"cosine": 0.1 * (1 + math.cos(math.pi * 89 / 90)) / 2, "linear": 0.1 / 90, "constant": 0.1}[schedule]
    assert rates[-1] == pytest.approx(last)
    assert min(rates) > 0


def test_a_run_of_one_step_learns() -> None:
    section = OptimizationSection(warmup_ratio=1.0)
    assert learning_rate_at(0, steps=1, section=section) == section.learning_rate
