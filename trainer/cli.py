"""`loraplex train`: a job file, or flags, or both become a trained and, if wished, published adapter.

It does: read the job, show the run, publish, print the result. Each setting of a job has a flag, made from
`trainer.setting`, so the two ways cannot differ.
It does not: train (`loop`). The result goes to stdout, everything else to stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console

from basemodel.errors import BaseModelError
from registry.cli.options import REGISTRY_FOLDER, HomePath, Place, json_option, place_options
from registry.errors import RegistryError
from trainer.errors import InterruptedRunError, TrainerError
from trainer.interruption import stop_on_signal
from trainer.job import Job
from trainer.progress import RunProgress
from trainer.publication import check_publication, publish_result
from trainer.setting import settings
from trainer.setting_options import parameter_of, setting_options
from trainer.summary import print_document, print_summary, result_document

if TYPE_CHECKING:
    from trainer.result import TrainingResult

INTERRUPTED_EXIT_CODE = 130


class Interruption(click.ClickException):
    """The run was stopped by a signal: one line, and the exit code that shells expect."""

    exit_code = INTERRUPTED_EXIT_CODE


class TrainCommand(click.Command):
    """A command that turns what can go wrong with a run into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InterruptedRunError as error:
            raise Interruption(str(error)) from error
        except (TrainerError, BaseModelError, RegistryError) as error:
            raise click.ClickException(str(error)) from error


@click.command(cls=TrainCommand)
@click.argument("job_file", type=HomePath(dir_okay=False), required=False)
@setting_options
@click.option("--resume", is_flag=True, help="Go on with an interrupted run, exactly where it stopped.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the run folder.")
@place_options
@json_option
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    job_file: Path | None,
    resume: bool,
    overwrite: bool,
    home: Path,
    registry: Place | None,
    as_json: bool,
    **_settings: Any,
) -> None:
    """Train a LoRA or QLoRA adapter, or a mixture of adapters, as JOB_FILE (TOML) or the flags say.

    A flag wins over the job file. The run folder gets the adapter (a PEFT folder), a plot of the losses and a summary.
    """
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other.")
    job = _job(ctx, job_file)
    registry_place = registry or home / REGISTRY_FOLDER
    check_publication(job, registry_place)
    result = _run(job, home, registry_place, resume=resume, overwrite=overwrite)
    version = publish_result(result, job, registry_place)
    if as_json:
        print_document(result_document(result, job, version))
    else:
        print_summary(result, job, version, Console(soft_wrap=True), place=_place(ctx, home, registry))


def _run(job: Job, home: Path, registry: Place, *, resume: bool, overwrite: bool) -> TrainingResult:
    from trainer.loop import run_job  # torch: neither the help nor a job that is wrong waits for it

    with stop_on_signal() as should_stop, RunProgress(Console(stderr=True)) as progress:
        return run_job(
            job,
            home=home,
            registry=registry,
            on_event=progress,
            should_stop=should_stop,
            resume=resume,
            overwrite=overwrite,
        )


def _place(ctx: click.Context, home: Path, registry: Place | None) -> list[str]:
    """The options that name where things are, for the commands that follow; none for what is the default anyway."""
    said = ctx.get_parameter_source("home") == ParameterSource.COMMANDLINE
    place = ["--home", str(home)] if said else []
    return place if registry is None else [*place, "--registry", str(registry)]


def _job(ctx: click.Context, job_file: Path | None) -> Job:
    """The job of the flags over the job file over the settings file. Raises JobError."""
    flags: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for setting in settings():
        name = parameter_of(setting)
        value = ctx.params[name]
        if value is None:
            continue
        source = ctx.get_parameter_source(name)
        layer = defaults if source == ParameterSource.DEFAULT_MAP else flags
        section = layer.setdefault(setting.section, {}) if setting.section else layer
        section[setting.key] = value
    if job_file is not None:
        return Job.from_toml(job_file, overrides=flags, defaults=defaults)
    if "train" not in flags.get("data", {}):
        raise click.UsageError("Give a job file, or at least --train FILE.")
    return Job.from_layers(defaults, flags, origin="the command")
