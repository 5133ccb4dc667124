"""Any transformers decoder through the engine: its logits are transformers' own, or the model is refused.

Every model of the table is tiny, random and quantized, and serves a mixed batch: a prompt that is read in chunks, one
with an adapter, and one of a single token.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2MoeConfig,
    StableLmConfig,
    Starcoder2Config,
)

from basemodel.load import load_snapshot
from serving.engine.errors import UnsupportedModelError
from tests.engine.workbench import SMALL, make_adapter, make_engine, make_snapshot, peft_logits

TOLERANCE = 3e-4  # float32: the order of sums, see test_parity.py
LONG = [(7 * index) % 190 for index in range(40)]
PROMPTS = {"long": LONG, "adapted": [5, 9, 20, 31, 7, 100, 44, 3, 17], "single": [11]}
PLAIN = {name: value for name, value in SMALL.items() if name != "head_dim"}
MODELS: dict[str, PretrainedConfig] = {
    "llama with llama3 scaling": LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama with yarn": LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama with biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "gemma3": Gemma3TextConfig(**SMALL, sliding_window=6, query_pre_attn_scalar=16),
    "phi": PhiConfig(**PLAIN, partial_rotary_factor=0.5),
    "phi3": Phi3Config(**PLAIN, sliding_window=6),
    "gpt_neox": GPTNeoXConfig(**PLAIN, rotary_pct=0.25),
    "opt": OPTConfig(**PLAIN, ffn_dim=128, word_embed_proj_dim=64),
    "stablelm": StableLmConfig(**PLAIN),
    "starcoder2": Starcoder2Config(**PLAIN, sliding_window=6),
    "olmo2": Olmo2Config(**PLAIN),
    "granite": GraniteConfig(
        **PLAIN, attention_multiplier=0.3, residual_multiplier=0.7, embedding_multiplier=3.0, logits_scaling=2.0
    ),
    "mixtral": MixtralConfig(**PLAIN, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": Qwen2MoeConfig(
        **PLAIN, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64
    ),
}  # fmt: skip
REFUSED: dict[str, PretrainedConfig] = {
    "falcon, whose attention has no interface": FalconConfig(
        vocab_size=192, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, multi_query=True, alibi=False,
        initializer_range=0.15,
    ),
    "bloom, whose positions are in its mask": BloomConfig(
        vocab_size=192, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.15, max_position_embeddings=128
    ),
    "mamba, which has no attention": MambaConfig(
        vocab_size=192, hidden_size=64, state_size=8, num_hidden_layers=2, initializer_range=0.15,
        max_position_embeddings=128,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_served_as_transformers_computes_it(name: str, tmp_path: Path) -> None:
    snapshot = make_snapshot(MODELS[name], tmp_path)
    targets = "attention" if "experts" in repr(MODELS[name]) else "all-linear"  # PEFT has its own ways with experts
    adapter = make_adapter(snapshot, tmp_path / "adapter", seed=1, r=4, lora_alpha=8, target_modules=targets)
    recorder = make_engine(load_snapshot(snapshot), step_budget_tokens=17)
    recorder.engine.runner.warm_up()
    for request, prompt in PROMPTS.items():
        recorder.ask(request, prompt, adapter if request == "adapted" else None)
    recorder.run()
    for request, prompt in PROMPTS.items():
        own = adapter if request == "adapted" else None
        tokens = recorder.tokens[request]
        expected = peft_logits(snapshot, own, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
        assert (torch.stack(recorder.logits[request]) - expected).abs().max() < TOLERANCE, request
        assert expected.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_served_is_refused(name: str, tmp_path: Path) -> None:
    snapshot = make_snapshot(REFUSED[name], tmp_path, mode="fp32", compute_dtype=None)
    with pytest.raises(UnsupportedModelError, match="cannot be served"):
        make_engine(load_snapshot(snapshot)).engine.runner.warm_up()
