"""How good an adapter is: loss and perplexity on completion tokens, and exact match by greedy generation.

It does: measure a model as it is at the moment; the base is measured through `model.disable_adapter()`.
It does not: decide what the figures mean (`loop`), or publish them (`export`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from trainer.batches import BatchLimit, collate, plan_by_length
from trainer.encoding import Example
from trainer.forward import base_of, summed_loss
from trainer.tuners import PeftModel

Item = TypeVar("Item")
GENERATION_BATCH_TOKENS = 16_384
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Metrics:
    """What was measured. `exact_match` is a share of 1, and None where nothing can be generated and compared."""

    validation_loss: float
    perplexity: float
    exact_match: float | None

    def to_json(self) -> dict[str, float]:
        """The figures of the manifest; what was not measured is left out."""
        figures = {"validation_loss": self.validation_loss, "perplexity": self.perplexity}
        return figures if self.exact_match is None else {**figures, "exact_match": self.exact_match}


def completion_loss(model: PeftModel, examples: Sequence[Example], limit: BatchLimit) -> float:
    """Mean cross-entropy per label token, in eval mode. The model's mode is left as it was."""
    was_training = model.training
    model.eval()
    total, label_tokens = 0.0, 0
    with torch.no_grad():
        for indices in plan_by_length([len(example.token_ids) for example in examples], limit):
            batch = collate([examples[index] for index in indices], model.device)
            total += summed_loss(model, batch).item()
            label_tokens += len(batch.targets)
    model.train(was_training)
    return total / label_tokens


def perplexity_of(loss: float) -> float:
    """exp(loss), kept finite for a loss that no trained model has."""
    return math.exp(min(loss, LARGEST_EXPONENT))


def spread(items: Sequence[Item], *, most: int) -> list[Item]:
    """At most `most` of the items, evenly from beginning to end: files are often sorted."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def answerable(examples: Sequence[Example], *, most: int) -> list[Example]:
    """At most `most` of the examples that have an answer to compare with."""
    return spread([example for example in examples if example.answer_start is not None], most=most)


def exact_match(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    on_rows: Callable[[int], None],
) -> float:
    """The share of `examples` whose greedy answer is the expected text, white space at its ends aside.

    Each row may generate as many tokens as the longest expected answer of its batch. `on_rows` hears how many rows
    are done.
    """
    was_training = model.training
    model.eval()
    stop_ids = _stop_ids(model, tokenizer, examples)
    lengths = [len(example.token_ids) for example in examples]
    right, done = 0, 0
    for indices in plan_by_length(lengths, BatchLimit(GENERATION_BATCH_TOKENS, None)):
        rows = [examples[index] for index in indices]
        answers = _generate(model, rows, stop_ids)
        right += sum(
            _text(tokenizer, answer) == _text(tokenizer, row.token_ids[row.answer_start :].tolist())
            for answer, row in zip(answers, rows, strict=True)
        )
        done += len(rows)
        on_rows(done)
    model.train(was_training)
    return right / len(examples)


def _generate(model: PeftModel, rows: Sequence[Example], stop_ids: list[int]) -> list[list[int]]:
    """Greedy answers, up to and without the first token that ends a turn."""
    prompts = [row.token_ids[: row.answer_start].tolist() for row in rows]
    longest = max(len(prompt) for prompt in prompts)
    most_new = max(len(row.token_ids) - len(prompt) for row, prompt in zip(rows, prompts, strict=True))
    token_ids = torch.tensor([[stop_ids[0]] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = GenerationConfig(
        max_new_tokens=most_new, do_sample=False, use_cache=True, eos_token_id=stop_ids, pad_token_id=stop_ids[0]
    )
    with torch.no_grad():
        output = model.generate(
            input_ids=token_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
        )
    answers = output[:, longest:].tolist()
    return [_until(answer, set(stop_ids)) for answer in answers]


def _until(token_ids: list[int], stop_ids: set[int]) -> list[int]:
    for position, token_id in enumerate(token_ids):
        if token_id in stop_ids:
            return token_ids[:position]
    return token_ids


def _stop_ids(model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
    """What ends an answer: the tokenizer's end of text, the base's own list, and what ends the expected answers."""
    declared = base_of(model).generation_config.eos_token_id
    ids = {int(tokenizer.eos_token_id), *(int(example.token_ids[example.is_label][-1]) for example in examples)}
    if declared is not None:
        ids.update(declared if isinstance(declared, list) else [declared])
    return sorted(ids)


def _text(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> str:
    return str(tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
