"""What the trainer's tests work with: a tiny random base with a real tokenizer, a task to learn, and jobs over it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from basemodel.eight_bits import MOST_STEPS, round_pair, steps_of
from trainer.events import Event
from trainer.job import Job
from trainer.loop import run_job
from trainer.result import TrainingResult

SPECIAL = ["<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{%- for m in messages -%}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
ANIMALS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "owl": "hoot", "bee": "buzz"}
FILLERS = ["please", "now", "today", "kindly", "quickly", "again", "friend", "well"]
CONTEXT_TOKENS = 96
VOCABULARY = 400


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level BPE, learned from the task's own words; the same each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = " ".join([*ANIMALS, *ANIMALS.values(), *FILLERS, "what does the say? answer"])
    tokenizer.train_from_iterator(
        [f"{words} {words}"] * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(**changes: Any) -> LlamaConfig:
    """A Llama of about 0.1 million parameters, in shapes that the 4-bit kernels take."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_TOKENS,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    return LlamaConfig(**(settings | changes))


def save_base(folder: Path, config: PretrainedConfig | None = None) -> Path:
    """A random base in the Hugging Face layout."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config or tiny_llama())
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def animal_rows(count: int, *, seed: int) -> list[dict[str, Any]]:
    """Chats that ask what an animal says. The answers depend on the animal alone."""
    chooser = random.Random(seed)
    rows = []
    for _ in range(count):
        animal = chooser.choice(list(ANIMALS))
        words = " ".join(chooser.choices(FILLERS, k=chooser.randint(1, 4)))
        question = f"what does the {animal} say {words}"
        rows.append(
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": ANIMALS[animal]}]}
        )
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Bench:
    """A place to run jobs: a home, a base and the animals' data."""

    def __init__(self, folder: Path, base: Path, home: Path):
        self.folder, self.base, self.home = folder, base, home
        self.train = write_rows(folder / "train.jsonl", animal_rows(96, seed=1))
        self.validation = write_rows(folder / "validation.jsonl", animal_rows(16, seed=2))

    def values(self, run: str = "run", **sections: dict[str, Any]) -> dict[str, Any]:
        """A job's values over this bench, with `sections` on top."""
        values: dict[str, dict[str, Any]] = {
            "base": {"source": str(self.base)},
            "data": {"train": self.train},
            "adapter": {"method": "lora", "r": 8, "alpha": 16.0},
            "optimization": {"max_steps": 6, "learning_rate": 5e-3, "batch_tokens": 256},
            "evaluation": {"validation": self.validation, "every_steps": 3, "exact_match": False},
            "output": {"run": self.folder / run},
        }
        if "method" not in sections.get("adapter", {}):
            values["base"]["quantization"] = "fp32"
        for section, changes in sections.items():
            values.setdefault(section, {}).update(changes)
        return values

    def job(self, run: str = "run", **sections: dict[str, Any]) -> Job:
        return Job.from_values(self.values(run, **sections))

    def run(self, run: str = "run", *, events: list[Event] | None = None, **sections: dict[str, Any]) -> TrainingResult:
        listener = events.append if events is not None else (lambda _event: None)
        return run_job(self.job(run, **sections), home=self.home, on_event=listener)


def events_of(events: Sequence[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def assert_in_eight_bits(folder: Path) -> None:
    """Each pair of an adapter folder is bfloat16, on its grid, and of more values than zeros."""
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    for name in [name for name in tensors if ".lora_A." in name]:
        a, b = tensors[name].float(), tensors[name.replace(".lora_A.", ".lora_B.")].float()
        for rows in (a, b.T):
            assert (rows != 0).float().mean() > 0.5, name
            steps = rows / steps_of(rows)[:, None]
            assert torch.equal(steps, steps.round()), name
            assert steps.abs().amax() <= MOST_STEPS, name
        assert all(torch.equal(half, again) for half, again in zip((a, b), round_pair(a, b), strict=True)), name
