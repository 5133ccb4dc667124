"""Trains the embedded base from nothing and writes it in the Hugging Face layout.

Reads only Python's own standard library; needs no network. Deterministic for the same Python, torch, core count and
steps: the schedule counts steps, never seconds. Stops and goes on: run it again with the same --work folder; a smaller
--steps starts the decay at once. It does not evaluate adapters.

Run: python -m basemodel.embedded.train --steps 2200 --decay-steps 700 --long-steps 120 --work WORK --out WEIGHTS
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from basemodel.embedded.corpus import Mixture, Rows, conversations, library_documents, render, tokenize_documents
from basemodel.embedded.optimizer import PairedOptimizer, Schedule
from basemodel.embedded.shape import Shape, generation_config
from basemodel.embedded.tokenizer import save_tokenizer, train_tokenizer
from basemodel.embedded.trunk import Trunk


@dataclass(frozen=True)
class Plan:
    """What one run does; a batch is rows x row_tokens; the last long_steps have half the rows, twice as long."""

    schedule: Schedule
    seed: int = 20261122
    rows: int = 16
    row_tokens: int = 256
    long_steps: int = 0
    checkpoint_steps: int = 50
    threads: int = 1
    compiled: bool = True


@dataclass(frozen=True)
class LossPoint:
    """Losses in nats per token at one step: the training batch (weighted), held-out text, held-out answers."""

    step: int
    train: float
    held_out_text: float | None = None
    held_out_answers: float | None = None


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the recipe: learnt from a third of the library and 12,000 conversations."""
    chats = [render(one) for one in conversations(seed, 12_000)]
    return train_tokenizer(library_documents(held_out=False)[::3] + chats)


class Run:
    """One pretraining run. Owns the model, the optimizer and the loss curve; `advance` alone changes them."""

    def __init__(self, plan: Plan, tokenizer: PreTrainedTokenizerFast) -> None:
        torch.manual_seed(plan.seed)
        torch.set_num_threads(plan.threads)
        self.plan = plan
        self.tokenizer = tokenizer
        self.model = Trunk(Shape())
        self.optimizer = PairedOptimizer(self.model, plan.schedule)
        seen, unseen = (tokenize_documents(tokenizer, library_documents(held_out)) for held_out in (False, True))
        self.mixture = Mixture(tokenizer, seen, plan.seed)
        self.held_out = Mixture(tokenizer, unseen, plan.seed + 1)
        self.curve: list[LossPoint] = []
        self.step = 0
        if plan.compiled:
            self.model.compile_layers()

    def advance(self) -> float:
        """One step; returns the weighted loss of its batch."""
        long = self.step >= self.plan.schedule.steps - self.plan.long_steps
        stretch = 2 if long else 1
        batch = self.mixture.batch(self.step, self.plan.rows // stretch, self.plan.row_tokens * stretch)
        loss = self._weighted_loss(batch)
        loss.backward()
        self.optimizer.step(self.step)
        self.step += 1
        return loss.item()

    def measure(self, train_loss: float) -> LossPoint:
        """Held-out losses now: 16 rows of unseen library text and 16 of unseen conversations, the answers only."""
        rows, tokens = self.plan.rows, self.plan.row_tokens
        batch = self.held_out.batch(0, rows, tokens, text_share=0.5)
        with torch.no_grad():
            losses = self.model(batch.ids, batch.document, batch.labels)
        text, chat = losses[: rows // 2], losses[rows // 2 :]
        answers = batch.weights[rows // 2 :] > 1.0
        return LossPoint(self.step, train_loss, text.mean().item(), chat[answers].mean().item())

    def save(self, path: Path) -> None:
        """Write a checkpoint, replacing the old one at once."""
        state = {"step": self.step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        fresh = path.with_suffix(".new")
        torch.save(state | {"curve": [vars(point) for point in self.curve]}, fresh)
        fresh.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve = [LossPoint(**point) for point in state["curve"]]

    def _weighted_loss(self, batch: Rows) -> torch.Tensor:
        losses: torch.Tensor = self.model(batch.ids, batch.document, batch.labels)
        return (losses * batch.weights).sum() / batch.weights.sum()


def export(model: Trunk, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the weights folder beside the old one and swap them."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    exported = LlamaForCausalLM(model.shape.config())
    exported.load_state_dict(model.state_dict() | {"lm_head.weight": model.model.embed_tokens.weight})
    exported.generation_config = generation_config()
    exported.bfloat16().save_pretrained(fresh)
    (fresh / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, fresh)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def train(run: Run, checkpoint: Path | None, say: Callable[[str], None]) -> None:
    """Advance to the last step, with a loss point every 100 steps and a checkpoint now and then."""
    started, first = time.monotonic(), run.step
    while run.step < run.plan.schedule.steps:
        loss = run.advance()
        if run.step % 100 == 0 or run.step == run.plan.schedule.steps:
            point = run.measure(loss)
            run.curve.append(point)
            rate = (run.step - first) * run.plan.rows * run.plan.row_tokens / (time.monotonic() - started)
            held_out = f"text {point.held_out_text:.3f} answers {point.held_out_answers:.3f}"
            say(f"{point.step} train {loss:.3f} {held_out} {rate:.0f} tokens/s")
        if checkpoint is not None and run.step % run.plan.checkpoint_steps == 0:
            run.save(checkpoint)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--decay-steps", type=int, required=True)
    parser.add_argument("--long-steps", type=int, default=0, help="last steps with rows of 512 tokens instead of 256")
    parser.add_argument("--threads", type=int, default=1, help="the losses depend on it, in their last digits")
    parser.add_argument("--work", type=Path, required=True, help="folder for the checkpoint and the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write or replace")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = Plan(Schedule(options.steps, options.decay_steps), long_steps=options.long_steps, threads=options.threads)
    run = Run(plan, build_tokenizer(plan.seed))
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        run.resume(checkpoint)
    train(run, checkpoint, lambda line: print(line, flush=True))
    run.save(checkpoint)
    export(run.model, run.tokenizer, options.out)
    curve = [vars(point) for point in run.curve]
    text = ",\n".join(json.dumps(point) for point in curve)
    (options.work / "loss_curve.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
