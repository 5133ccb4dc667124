"""Probes: a few prompts with the logits that the finished adapter gives, which the server checks when it loads it.

It does: make the prompts and measure. It does not: compare (`serving`).

The prompts are fixed and neutral. They are no rows of the training or validation data, so a manifest that others may
read gives none of it away. An adapter changes the logits of any prompt, so they show a wrong base, a missing module or
a wrong scale as well as any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from trainer.tuners import PeftModel

TEXTS = (
    "Hello",
    "2024-05-17 08:15:02 ERROR disk is full on node 7",
    "Name every row of the table whose price is over 100, then sort them by date and count how many there are.",
)
PROBE_LOGITS = 8
LONGEST_PROBE_TOKENS = 128


@dataclass(frozen=True)
class Probe:
    """The highest logits at the last position of a prompt, best first."""

    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logits: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "prompt_token_ids": list(self.prompt_token_ids),
            "token_ids": list(self.token_ids),
            "logits": list(self.logits),
        }


def probe_prompts(tokenizer: PreTrainedTokenizerBase, *, as_chat: bool, context_tokens: int) -> list[list[int]]:
    """The token ids of the fixed prompts, in the form in which the adapter was trained."""
    prompts = []
    for text in TEXTS:
        if as_chat:
            turns = [{"role": "user", "content": text}]
            rendered = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            ids = list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
        else:
            ids = list(tokenizer(text)["input_ids"])
        prompts.append(ids[-min(LONGEST_PROBE_TOKENS, context_tokens) :])
    return prompts


def measure_probes(model: PeftModel, prompts: list[list[int]]) -> tuple[Probe, ...]:
    """Each prompt alone through `model` in eval mode. The model's mode is left as it was."""
    was_training = model.training
    model.eval()
    probes = []
    for prompt in prompts:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False, logits_to_keep=1)
        best = output.logits[0, -1].float().topk(PROBE_LOGITS)
        probes.append(Probe(tuple(prompt), tuple(best.indices.tolist()), tuple(best.values.tolist())))
    model.train(was_training)
    return tuple(probes)
