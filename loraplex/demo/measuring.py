"""Steps 3 to 5 of the demo, all through the running server: exact match, answers side by side, throughput."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

from loraplex.demo.clients import Answer, Clients, Question, at_once
from loraplex.demo.plan import DemoPlan
from loraplex.demo.publishing import PublishedAdapter
from loraplex.demo.results import TaskResult
from loraplex.demo.tasks import Example
from loraplex.errors import DemoError

BASE_MODEL = "base"


@dataclass(frozen=True)
class JudgedRow:
    """A held-out row, and what the adapter and the base alone made of it."""

    adapter: PublishedAdapter
    example: Example
    adapter_answer: Answer
    base_answer: Answer


@dataclass(frozen=True)
class Throughput:
    """Generated tokens per second, of all rows of a batch together; the best of the rounds for each side."""

    rows: int
    mixed_tokens_per_s: float
    base_tokens_per_s: float


async def judge(
    clients: Clients, plan: DemoPlan, published: Sequence[PublishedAdapter], on_answer: Callable[[], None]
) -> list[JudgedRow]:
    """Ask every held-out row twice, the adapter and the base alone, all of them mixed together."""

    async def ask(adapter: PublishedAdapter, example: Example, model: str) -> Answer:
        question = Question(adapter.plan.tenant, model, example.prompt)
        answer = await clients.ask(question, max_tokens=adapter.plan.answer_tokens)
        on_answer()
        return answer

    held_out = {a.plan.model: a.plan.task.held_out(plan.held_out_rows, plan.held_out_seed) for a in published}
    # One row of each task in turn: neighbours in a batch have different adapters.
    turns = [(a, held_out[a.plan.model][index]) for index in range(plan.held_out_rows) for a in published]
    calls = [partial(ask, adapter, row, model) for adapter, row in turns for model in (adapter.plan.model, BASE_MODEL)]
    answers = await at_once(calls, most=plan.concurrent_requests)
    judged = [JudgedRow(a, row, answers[2 * i], answers[2 * i + 1]) for i, (a, row) in enumerate(turns)]
    for row in judged:
        _check_identity(row)
    return judged


def score(judged: Sequence[JudgedRow], published: Sequence[PublishedAdapter]) -> tuple[TaskResult, ...]:
    """The share of answers that are right to the letter, for each adapter and for the base on the same rows."""
    results = []
    for adapter in published:
        rows = [row for row in judged if row.adapter == adapter]
        results.append(
            TaskResult(
                name=adapter.plan.task.name,
                model=adapter.plan.model,
                digest=adapter.version.digest,
                base_exact_match=sum(is_exact(row.base_answer, row.example) for row in rows) / len(rows),
                adapter_exact_match=sum(is_exact(row.adapter_answer, row.example) for row in rows) / len(rows),
            )
        )
    return tuple(results)


def is_exact(answer: Answer, example: Example) -> bool:
    """Whether the answer is the expected one, but for white space around it."""
    return answer.text.strip() == example.completion.strip()


def _check_identity(row: JudgedRow) -> None:
    expected = row.adapter.version.digest
    if row.adapter_answer.digest != expected or row.base_answer.digest is not None:
        raise DemoError(
            f"an answer for {row.adapter.plan.model} came from {row.adapter_answer.digest}, and one for the base from "
            f"{row.base_answer.digest}; expected were {expected} and none"
        )


async def measure_throughput(clients: Clients, plan: DemoPlan, published: Sequence[PublishedAdapter]) -> Throughput:
    """The same prompts and the same number of tokens, once with an adapter on every row and once with none.

    As many adapters take part as there are slots: a batch is measured here, and swapping is not. Rounds of both sides
    alternate, so that neither has the quieter machine.
    """
    taking_part = list(published[: plan.adapter_slots])
    rows = [
        (adapter, adapter.plan.task.train(plan.throughput_rows, plan.held_out_seed)[index])
        for index, adapter in enumerate(islice(cycle(taking_part), plan.throughput_rows))
    ]
    mixed = [Question(adapter.plan.tenant, adapter.plan.model, row.prompt) for adapter, row in rows]
    base = [Question(adapter.plan.tenant, BASE_MODEL, row.prompt) for adapter, row in rows]
    best = {"mixed": 0.0, "base": 0.0}
    for _ in range(plan.throughput_rounds + 1):  # the first round warms both sides up, and the best may not be in it
        for side, questions in (("mixed", mixed), ("base", base)):
            best[side] = max(best[side], await _tokens_per_s(clients, questions, plan.throughput_tokens))
    return Throughput(len(rows), mixed_tokens_per_s=best["mixed"], base_tokens_per_s=best["base"])


async def _tokens_per_s(clients: Clients, questions: Sequence[Question], max_tokens: int) -> float:
    calls = [partial(clients.ask, question, max_tokens=max_tokens, ignore_eos=True) for question in questions]
    began = time.perf_counter()
    answers = await at_once(calls, most=len(calls))
    return sum(answer.completion_tokens for answer in answers) / (time.perf_counter() - began)
