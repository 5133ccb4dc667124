"""What a training step costs, and what each of the trainer's fast paths saves of it.

    python -m benchmarks.train_step [--base embedded] [--tokens 1500] [--steps 8]

One QLoRA step (forward and backward, without the optimizer) over the same batch, with the paths switched on one after
another: stock PEFT and transformers; the output head on label positions only; attention's gradient in float32; the
adapter's product in the base's compute type. The variants run in turns, in one process and on one thread. CPU seconds
are the process's own, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from basemodel.load import Base, load_base
from trainer.attention import ATTENTION_NAME, use_float32_gradient
from trainer.batches import Batch
from trainer.checkpoint import adapter_tensors
from trainer.forward import summed_loss
from trainer.job_sections import AdapterSection
from trainer.lora_product import use_served_product
from trainer.methods import short_names, target_modules
from trainer.tuners import LoraConfig, PeftModel, with_adapter

ROW_TOKENS = 64
LABEL_TOKENS = 20  # of each row, at its end
RANK = 32


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="embedded")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        steps = _variants(arguments.base, Path(cache), rows=max(1, arguments.tokens // ROW_TOKENS))
        times: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(arguments.steps + 1):
            for name, step in steps.items():
                began = time.process_time()
                step()
                if turn:  # the first turn warms up
                    times[name].append(time.process_time() - began)
    tokens = arguments.tokens // ROW_TOKENS * ROW_TOKENS
    print(f"{tokens} tokens a step, rank {RANK}, {torch.get_num_threads()} thread; CPU seconds a step")
    first = min(times["stock"])
    for name, seconds in times.items():
        best = min(seconds)
        speed = f"{tokens / best:6.0f} tok/s  {first / best:.2f}x"
        print(f"{name:28} {best:.3f} (median {statistics.median(seconds):.3f})  {speed}")


def _variants(source: str, cache: Path, *, rows: int) -> dict[str, Callable[[], None]]:
    """Each variant with a model of its own, and the one batch."""
    bases = [load_base(source, cache_dir=cache) for _ in range(4)]
    batch = _batch(rows, bases[0].description.vocabulary_size)
    stock, head, attention, product = (_adapted(base) for base in bases)
    for base in bases[2:]:
        assert use_float32_gradient(base.model), f"attention is not {ATTENTION_NAME} here: this is a CPU measurement"
    use_served_product(product)
    return {
        "stock": lambda: _step(stock, batch, _loss_over_all_positions),
        "+ head on labels only": lambda: _step(head, batch, summed_loss),
        "+ float32 attention gradient": lambda: _step(attention, batch, summed_loss),
        "+ product in compute type": lambda: _step(product, batch, summed_loss),
    }


def _adapted(base: Base) -> PeftModel:
    modules = short_names(base.model, target_modules(base, AdapterSection()))
    model = with_adapter(base.model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules, task_type="CAUSAL_LM"))
    with torch.no_grad():
        for parameter in adapter_tensors(model).values():
            parameter.normal_(std=0.02)
    return model.train()


def _batch(rows: int, vocabulary: int) -> Batch:
    token_ids = torch.randint(vocabulary, (rows, ROW_TOKENS), generator=torch.Generator().manual_seed(0))
    is_label = torch.zeros(rows, ROW_TOKENS, dtype=torch.bool)
    is_label[:, -LABEL_TOKENS:] = True
    flat = is_label.flatten().nonzero().flatten()
    return Batch(token_ids, flat - 1, token_ids.flatten()[flat], (ROW_TOKENS,) * rows)


def _loss_over_all_positions(model: PeftModel, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.token_ids, use_cache=False).logits.flatten(0, 1).float()
    labels = torch.full((len(logits),), -100)
    labels[batch.positions] = batch.targets
    return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")


def _step(model: PeftModel, batch: Batch, loss: Callable[[PeftModel, Batch], Tensor]) -> None:
    (loss(model, batch) / len(batch.targets)).backward()
    model.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
