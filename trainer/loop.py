"""A training run, from a job to a finished adapter folder. Read `run_job` first: it is the run, downwards.

It does: step, validate, keep the best, stop early or on request, and checkpoint; `conclusion` does the rest.
It does not: print (it emits `trainer.events`), catch signals, or publish (`cli`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from registry.cli.options import REGISTRY_FOLDER, Place
from trainer.batches import Batch, PlannedStep, collate
from trainer.checkpoint import Position, adapter_tensors, load_checkpoint, restore_best, save_best, save_checkpoint
from trainer.conclusion import conclude_run
from trainer.data import read_job_data
from trainer.errors import InterruptedRunError, NonFiniteLossError
from trainer.evaluate import completion_loss
from trainer.events import (
    Listener,
    Noticed,
    PhaseStarted,
    StepDone,
    StoppedEarly,
    TrainingStarted,
    Validated,
    ignore,
)
from trainer.forward import summed_loss
from trainer.gate_start import begin_gate
from trainer.job import Job
from trainer.origins import gathered_origins
from trainer.preparation import PreparedRun, prepare_run
from trainer.result import TrainingResult
from trainer.run_folder import RunFolder, begun_run, find_run_folder
from trainer.schedule import learning_rate_at


def never() -> bool:
    """The wish of a caller who lets a run come to its end."""
    return False


def run_job(
    job: Job,
    *,
    home: Path,
    registry: Place | None = None,
    on_event: Listener = ignore,
    should_stop: Callable[[], bool] = never,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Train, evaluate and export `job`. Bases are cached in `home`, and runs lie there unless the job says otherwise.

    `registry` has the published adapters that it begins with; None is the one in `home`. Torch's random state is the
    caller's again afterwards. Raises TrainerError and basemodel's BaseModelError; InterruptedRunError where
    `should_stop` asked for it between two steps.
    """
    data = read_job_data(job)
    found = gathered_origins(job, registry or home / REGISTRY_FOLDER)
    with found as origins, _own_randomness(job.optimization.seed):
        folder = find_run_folder(job, home, resume=resume, overwrite=overwrite)
        on_event(PhaseStarted(f"Loading {job.base.source} ({job.mode})"))
        run = prepare_run(job, data, cache_dir=home / "bases", origins=origins)
        for notice in run.notices:
            on_event(Noticed(notice))
        with nullcontext() if resume else begun_run(folder, overwrite=overwrite):
            position = Position()
            if resume:
                position = load_checkpoint(folder.checkpoints, run.identity, run.model, run.optimizer) or position
            if position.step == 0:
                _begin(run, on_event)
            on_event(_started(run, folder, position))
            _train(run, folder, position, on_event, should_stop)
            return conclude_run(run, folder, position, on_event, should_stop)


def _begin(run: PreparedRun, on_event: Listener) -> None:
    """What a run does before its first step and never again: a gate over given experts learns who they are."""
    if run.switch is not None and run.switch.begins_with_given:
        on_event(PhaseStarted("Asking every expert which rows are its own"))
        begin_gate(run.model, run.switch.gate, run.train.examples, run.plan.limit)


def _train(
    run: PreparedRun, folder: RunFolder, position: Position, on_event: Listener, should_stop: Callable[[], bool]
) -> None:
    """All steps that are left, with validations and checkpoints. Leaves the best adapter in the model."""
    if position.step == 0 and not position.validations:
        _validate(run, folder, position, on_event)
    run.model.train()
    for planned in run.plan.iterate(done=position.step):
        if position.stopped_early:
            break
        if should_stop():
            save_checkpoint(folder.checkpoints, position, run.identity, run.model, run.optimizer)
            raise InterruptedRunError(run_folder=folder.path, step=position.step, steps=run.plan.steps)
        on_event(_step(run, planned, position))
        if position.step % run.every_steps == 0 or position.step == run.plan.steps:
            _validate(run, folder, position, on_event)
            save_checkpoint(folder.checkpoints, position, run.identity, run.model, run.optimizer)
    if position.stopped_early and position.best_step is not None:
        on_event(StoppedEarly(position.step, position.best_step))
    if position.best_step is not None and position.best_step != position.step:
        restore_best(folder.checkpoints, run.model)


def _step(run: PreparedRun, planned: PlannedStep, position: Position) -> StepDone:
    """One optimizer step: the mean loss over all label tokens of its batches, forward, backward, clip, update."""
    began = time.perf_counter()
    section = run.job.optimization
    learning_rate = learning_rate_at(position.step, steps=run.plan.steps, section=section)
    batches = [collate([run.train.examples[index] for index in indices], run.device) for indices in planned.batches]
    label_tokens = sum(len(batch.targets) for batch in batches)
    tokens = sum(batch.real_tokens for batch in batches)
    loss = 0.0
    for batch in batches:
        share = summed_loss(run.model, batch) / label_tokens
        _objective(run, share, batch, tokens).backward()
        loss += share.item()
    grad_norm = torch.nn.utils.clip_grad_norm_(adapter_tensors(run.model).values(), section.max_grad_norm).item()
    _refuse_non_finite("loss", loss, run, step=position.step)
    _refuse_non_finite("gradient norm", grad_norm, run, step=position.step)
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_factor"]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    position.step += 1
    position.label_tokens += label_tokens
    position.tokens += tokens
    position.seconds += time.perf_counter() - began
    position.losses.append((position.step, loss))
    return StepDone(
        step=position.step,
        steps=run.plan.steps,
        epoch=planned.epoch,
        loss=loss,
        learning_rate=learning_rate,
        grad_norm=grad_norm,
        tokens_per_s=position.tokens / position.seconds,
        seconds_left=position.seconds / position.step * (run.plan.steps - position.step),
    )


def _objective(run: PreparedRun, share: Tensor, batch: Batch, tokens: int) -> Tensor:
    """What a forward's backward descends: its share of the loss, and of a mixture's spreading of tokens."""
    if run.switch is None:
        return share
    spread = run.switch.gate.balance(batch.row_tokens) * batch.real_tokens / tokens
    return share + run.job.mixture.balance * spread


def _validate(run: PreparedRun, folder: RunFolder, position: Position, on_event: Listener) -> None:
    """Measure the validation loss; after step 0, keep the best adapter and count the patience down."""
    if not run.validation:
        return
    loss = completion_loss(run.model, run.validation, run.validation_limit)
    _refuse_non_finite("validation loss", loss, run, step=position.step - 1)
    position.validations.append((position.step, loss))
    is_best = position.step > 0 and (position.best_loss is None or loss < position.best_loss)
    if is_best:
        save_best(folder.checkpoints, run.model)
        position.best_step, position.best_loss, position.validations_without_best = position.step, loss, 0
    elif position.step > 0:
        position.validations_without_best += 1
    patience = run.job.evaluation.early_stopping_patience
    if patience is not None:
        position.stopped_early = position.validations_without_best >= patience
    left = None if patience is None else patience - position.validations_without_best
    on_event(Validated(position.step, loss, is_best, left))


def _refuse_non_finite(what: str, value: float, run: PreparedRun, *, step: int) -> None:
    """Raise NonFiniteLossError for step `step` (counted from 0) before anything of it is kept."""
    if not math.isfinite(value):
        rate = learning_rate_at(max(step, 0), steps=run.plan.steps, section=run.job.optimization)
        raise NonFiniteLossError(step=step + 1, what=what, value=value, learning_rate=rate)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Torch's random state begins at `seed` inside, and is the caller's again afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _started(run: PreparedRun, folder: RunFolder, position: Position) -> TrainingStarted:
    return TrainingStarted(
        run_folder=folder.path,
        first_step=position.step + 1,
        steps=run.plan.steps,
        train_rows=len(run.data.train_rows),
        validation_rows=len(run.data.validation_rows),
        row_format=run.data.train_file.format,
        trainable_parameters=sum(tensor.numel() for tensor in adapter_tensors(run.model).values()),
        gradient_checkpointing=run.gradient_checkpointing,
    )
