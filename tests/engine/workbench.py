"""Tiny random models of many families, PEFT adapters for them, and an engine that records every logit it produces."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.pytorch_utils import Conv1D

from basemodel.eight_bits import round_pair
from basemodel.four_bit import Linear4bit, functional
from basemodel.load import Base, load_snapshot
from basemodel.snapshot import Snapshot, prepare_snapshot
from serving.engine.build import engine_for
from serving.engine.engine import Engine
from serving.engine.process import LOADING_POLL_MS
from serving.messages import AdapterUse, EngineSettings, Generate, Output, Sampling, TokenLogprob

VOCABULARY = 192
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=6),
    "gemma": GemmaConfig(**(SMALL | {"num_key_value_heads": 1})),
    "gemma2": Gemma2Config(**SMALL, sliding_window=6, query_pre_attn_scalar=16),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.15, eos_token_id=2,
        bos_token_id=1,
    ),
}  # fmt: skip
# The adapters of a mixed batch: ranks, scales and targets that differ. "mlp" becomes the family's own name.
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-4": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rank-16-attention": {"r": 16, "lora_alpha": 16, "target_modules": "attention"},
    "rank-8-rslora": {"r": 8, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
    "patterns": {
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": "mlp",
        "alpha_pattern": "mlp",
        "target_modules": "all-linear",
    },
}


def save_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per word."""
    words = {f"w{index}": index for index in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2").save_pretrained(folder)


def make_snapshot(config: PretrainedConfig, folder: Path, *, mode: Any = "nf4", compute_dtype: str | None = "float32"):
    torch.manual_seed(7)
    source = folder / f"source-{config.model_type}"
    if not source.exists():
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():  # biases start at zero: make them matter
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(source)
        save_tokenizer(source)
    return prepare_snapshot(str(source), mode=mode, compute_dtype=compute_dtype, cache_dir=folder / "bases")


def make_adapter(snapshot: Snapshot, folder: Path, *, seed: int, strength: float = 0.08, **settings: Any) -> Path:
    """A PEFT adapter with random factors, written by PEFT itself."""
    torch.manual_seed(seed)
    base = load_snapshot(snapshot)
    names = {path.rsplit(".", 1)[1] for path, shape in snapshot.description.modules.items() if shape.quantized}
    names = names or {p.rsplit(".", 1)[1] for p, s in snapshot.description.modules.items() if p != "lm_head"}
    attention = sorted(names & {"q_proj", "v_proj", "c_attn"})
    mlp = "mlp.c_fc" if "c_fc" in names else "mlp.down_proj"
    if settings.get("target_modules") == "attention":
        settings["target_modules"] = attention
    if settings.get("rank_pattern") == "mlp":
        settings |= {"rank_pattern": {mlp: 12}, "alpha_pattern": {mlp: 30}}
    if any(isinstance(module, Conv1D) for module in base.model.modules()):
        settings["fan_in_fan_out"] = True
    model = get_peft_model(base.model, LoraConfig(**settings, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(folder)
    return folder


def round_adapter(folder: Path) -> None:
    """Round the factors of an adapter to the grid of 8 bits, as the trainer does for `dtype = "int8"`."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if ".lora_A." in name]:
        other = name.replace(".lora_A.", ".lora_B.")
        tensors[name], tensors[other] = round_pair(tensors[name], tensors[other])
    save_file(tensors, file, metadata={"format": "pt"})


def peft_logits(snapshot: Snapshot, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """What transformers and PEFT compute on the same quantized base: logits [T, V]."""
    model = load_snapshot(snapshot).model
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def exact_logits(snapshot: Snapshot, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    """The same in float64 over the same bfloat16 weights, dequantized: what rounding is measured against. [T, V]."""
    model = load_snapshot(snapshot).model
    for path, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            weight = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.weight.data = weight.to(layer.compute_dtype)
            if layer.bias is not None:
                plain.bias.data = layer.bias.data
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, plain)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    torch.nn.Module.double(model)
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@dataclass
class Recorder:
    """An engine that keeps every row of logits that it sampled from, by request."""

    engine: Engine
    logits: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    logprobs: dict[str, list[TokenLogprob]] = field(default_factory=dict)
    last: dict[str, Output] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = self.engine.runner.run

        def recording(rows: Any) -> Any:
            batch, logits = run(rows)
            begin = 0
            for row in batch.sampled:  # of a row with a draft the first: those behind it may be of no text
                self.logits.setdefault(row.request.request_id, []).append(logits[begin].float().clone())
                begin += row.sampled_tokens
            assert begin == len(logits)
            return batch, logits

        self.engine.runner.run = recording  # type: ignore[method-assign]

    def ask(self, name: str, prompt: list[int], adapter: Path | None = None, **sampling: Any) -> None:
        uses = () if adapter is None else (AdapterUse(digest=f"sha256:{adapter.name}", folder=str(adapter)),)
        self.ask_many(name, prompt, uses, **sampling)

    def ask_many(
        self, name: str, prompt: list[int], uses: tuple[AdapterUse, ...], tenant: str = "acme", **sampling: Any
    ) -> None:
        draft_tokens = sampling.pop("draft_tokens", 0)
        settings = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True} | sampling
        self.engine.add(
            Generate(
                request_id=name,
                tenant=tenant,
                prompt_token_ids=prompt,
                sampling=Sampling(**settings),
                adapters=uses,
                draft_tokens=draft_tokens,
            )
        )

    def step(self) -> list[Output]:
        outputs = self.engine.step()
        self.engine.check_integrity()
        for output in outputs:
            self.tokens.setdefault(output.request_id, []).extend(output.token_ids)
            self.logprobs.setdefault(output.request_id, []).extend(output.logprobs or [])
            self.last[output.request_id] = output
        return outputs

    def run(self, most_seconds: float = 120.0) -> None:
        """Steps until nothing is left. While adapters are read it waits as the process does: a loop that only
        spins keeps the reading thread from the interpreter, and a count of steps says nothing of time."""
        deadline = time.monotonic() + most_seconds
        while self.engine.has_work:
            assert time.monotonic() < deadline, "the engine still has work"
            if not self.step() and not self.engine.scheduler.running:
                time.sleep(LOADING_POLL_MS / 1000)


def make_engine(base: Base, **settings: Any) -> Recorder:
    options = {"max_running": 16, "kv_cache_tokens": 2048, "adapter_slots": 8} | settings
    return Recorder(engine_for(base, EngineSettings(socket="", base="", bases_folder="", **options)))


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
