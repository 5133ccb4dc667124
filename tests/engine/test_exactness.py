"""Served bfloat16 is as near to the exact result as that of transformers and PEFT.

Both round after every operation, and sums run in other orders, so their logits differ from each other by about as much
as either differs from the truth, and texts part at near ties. Which is nearer is told by the same model in float64.

Letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from basemodel.load import load_snapshot
from tests.engine.workbench import SMALL, exact_logits, make_adapter, make_engine, make_snapshot, peft_logits

# Each of four layers amplifies what was rounded before it: more than in a trained model, whose residual grows.
DEEP = SMALL | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}
MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**DEEP),
    "mistral": MistralConfig(**DEEP, sliding_window=6),
    "qwen2": Qwen2Config(**DEEP),
    "qwen3": Qwen3Config(**DEEP),
    "gemma3": Gemma3TextConfig(**DEEP, sliding_window=6, query_pre_attn_scalar=32),
}
PROMPTS = {"base": [(7 * index) % 190 for index in range(40)], "adapted": [5, 9, 20, 31, 7, 100, 44]}
TOKENS = 24
# Of their error. Measured on the kernels: 0.91 to 1.01 in the mean, 0.88 to 1.04 at the worst.
MOST_MEAN, MOST_WORST = 1.05, 1.15


@pytest.mark.parametrize("name", MODELS)
def test_what_is_served_is_as_exact_as_what_peft_computes(name: str, tmp_path: Path) -> None:
    snapshot = make_snapshot(MODELS[name], tmp_path, compute_dtype="bfloat16")
    adapter = make_adapter(snapshot, tmp_path / "adapter", seed=1, r=8, lora_alpha=16, target_modules="all-linear")
    adapters = {"base": None, "adapted": adapter}
    recorder = make_engine(load_snapshot(snapshot), step_budget_tokens=17)
    for request, prompt in PROMPTS.items():
        recorder.ask(request, prompt, adapters[request], max_tokens=TOKENS)
    recorder.run()
    ours, theirs = [], []
    for request, prompt in PROMPTS.items():
        tokens = [*prompt, *recorder.tokens[request][:-1]]
        exact = exact_logits(snapshot, adapters[request], tokens)[len(prompt) - 1 :]
        ours.append(_errors(torch.stack(recorder.logits[request]), exact))
        theirs.append(_errors(peft_logits(snapshot, adapters[request], tokens)[len(prompt) - 1 :], exact))
    own, other = torch.cat(ours), torch.cat(theirs)
    assert own.mean() <= MOST_MEAN * other.mean()
    assert own.max() <= MOST_WORST * other.max()


def _errors(found: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of each row, of its norm: [T, V] twice -> [T]."""
    return (found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
