"""The end of a run: what the adapter is worth, and the files that remain of it.

It does: evaluate the base and the adapter as it will be saved, export the adapter with manifest, card and probes, draw
the losses and write the summary.
It does not: train (`loop`) or publish (`cli`).
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.checkpoint import Position
from trainer.errors import InterruptedRunError
from trainer.evaluate import Metrics, answerable, completion_loss, exact_match, perplexity_of
from trainer.events import Listener, Noticed, PhaseAdvanced, PhaseStarted
from trainer.export import export_adapter, round_to_saved_dtype
from trainer.manifest import TrainingRecord, build_manifest, hardware_of
from trainer.mixture_export import export_mixture
from trainer.outcome import Outcome
from trainer.plot import draw_losses
from trainer.preparation import PreparedRun
from trainer.probes import measure_probes, probe_prompts
from trainer.result import FinishedExpert, TrainingResult
from trainer.run_folder import RunFolder, write_json
from trainer.tuners import without_adapters


def conclude_run(
    run: PreparedRun, folder: RunFolder, position: Position, on_event: Listener, should_stop: Callable[[], bool]
) -> TrainingResult:
    """Evaluate the base and the adapter as it will be saved, export it, and write what there is to see.

    Raises InterruptedRunError between two measurements; the state after the last step was written before.
    """

    def begin(title: str, total: int | None = None) -> None:
        if should_stop():
            raise InterruptedRunError(run_folder=folder.path, step=position.step, steps=run.plan.steps)
        on_event(PhaseStarted(title, total))

    round_to_saved_dtype(run.model, run.job.adapter.dtype)
    with without_adapters(run.model):
        base_metrics = _measure(run, "the base", begin, on_event)
    adapter_metrics = _measure(run, "the adapter", begin, on_event)
    if base_metrics and adapter_metrics and adapter_metrics.validation_loss >= base_metrics.validation_loss:
        on_event(
            Noticed("the adapter's validation loss is not below the base's: this run has taught it nothing useful")
        )
    prompts = probe_prompts(
        run.base.tokenizer, as_chat=_answers_chat(run), context_tokens=run.base.description.context_tokens
    )
    record = TrainingRecord(
        job=run.job,
        data=run.data,
        steps=position.step,
        best_step=position.best_step or position.step,
        stopped_early=position.stopped_early,
        label_tokens=position.label_tokens,
        seconds=position.seconds,
        hardware=hardware_of(run.device),
        gradient_checkpointing=run.gradient_checkpointing,
        truncated_rows=run.train.truncated_rows,
        dropped_rows=run.train.dropped_rows,
    )
    outcome = Outcome(run, record, base_metrics, adapter_metrics, prompts)
    experts = () if run.switch is None else export_mixture(outcome, run.switch, folder)
    if run.switch is None:
        _export_adapter(outcome, folder)
    draw_losses(position, folder.plot, title=run.job.run_name)
    result = _result(run, folder, position, base_metrics, adapter_metrics, experts)
    write_json(folder.summary, result.to_json())
    return result


def _export_adapter(outcome: Outcome, folder: RunFolder) -> None:
    run = outcome.run
    manifest = build_manifest(
        outcome.record,
        run.base.description,
        base_metrics=outcome.base_metrics,
        adapter_metrics=outcome.adapter_metrics,
        probes=measure_probes(run.model, outcome.prompts),
        parent=run.parent,
    )
    export_adapter(
        run.model,
        folder.adapter,
        dtype=run.job.adapter.dtype,
        base=run.base.description,
        manifest=manifest,
        private_paths=outcome.private_paths(folder),
    )


def _measure(
    run: PreparedRun, whose: str, begin: Callable[[str, int | None], None], on_event: Listener
) -> Metrics | None:
    """The metrics of the model as it is now; None without validation rows. `begin` announces a phase."""
    if not run.validation:
        return None
    begin(f"Validation loss of {whose}", None)
    loss = completion_loss(run.model, run.validation, run.validation_limit)
    rows = answerable(run.validation, most=run.job.evaluation.exact_match_rows)
    if not run.job.evaluation.exact_match or not rows:
        return Metrics(loss, perplexity_of(loss), None)
    begin(f"Exact match of {whose}", len(rows))
    right = exact_match(run.model, run.base.tokenizer, rows, on_rows=lambda done: on_event(PhaseAdvanced(done)))
    return Metrics(loss, perplexity_of(loss), right)


def _answers_chat(run: PreparedRun) -> bool:
    return run.job.data.as_chat or run.data.train_file.format == "chat"


def _result(
    run: PreparedRun,
    folder: RunFolder,
    position: Position,
    base_metrics: Metrics | None,
    adapter_metrics: Metrics | None,
    experts: tuple[FinishedExpert, ...],
) -> TrainingResult:
    return TrainingResult(
        name=run.job.run_name,
        run_folder=folder.path,
        adapter_folder=folder.adapter,
        plot=folder.plot,
        base=run.base.description,
        base_metrics=base_metrics,
        adapter_metrics=adapter_metrics,
        row_format=run.data.train_file.format,
        answers_chat=_answers_chat(run),
        train_rows=len(run.data.train_rows),
        validation_rows=len(run.data.validation_rows),
        steps=position.step,
        best_step=position.best_step or position.step,
        stopped_early=position.stopped_early,
        final_loss=position.losses[-1][1],
        tokens=position.tokens,
        label_tokens=position.label_tokens,
        seconds=position.seconds,
        tokens_per_s=position.tokens / position.seconds,
        experts=experts,
    )
