"""The end of `loraplex train`: what came of it, where it is, and what to do next.

It does: print a result for people, or as JSON for programs, to stdout. It does not: compute anything.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from registry.version import Version
from trainer.job import Job
from trainer.publication import expert_name

if TYPE_CHECKING:
    from trainer.evaluate import Metrics
    from trainer.result import TrainingResult

SERVER = "http://127.0.0.1:8000"
DEFAULT_MODE = "nf4"


def print_summary(
    result: TrainingResult, job: Job, version: Version | None, console: Console, *, place: Sequence[str]
) -> None:
    """The table of base against adapter, the files, and the next commands; `place` are their options for where."""
    console.print()
    if result.base_metrics is not None and result.adapter_metrics is not None:
        console.print(_comparison(result.base_metrics, result.adapter_metrics))
    else:
        console.print(Text("No rows were held out, so nothing was measured."))
    kept = f", kept step {result.best_step}" if result.best_step != result.steps else ""
    early = ", stopped early" if result.stopped_early else ""
    _line(
        console,
        "trained",
        f"{result.steps} steps{early}{kept}; {result.seconds:.0f} s, {result.tokens_per_s:,.0f} tok/s",
    )
    for number, expert in enumerate(result.experts, start=1):
        share = "" if expert.share is None else f", {expert.share:.1%} of the tokens"
        _line(console, "expert" if number == 1 else "", f"{number} {expert.name}  {expert.digest[:19]}{share}")
    _line(console, "mixture" if result.experts else "adapter", str(result.adapter_folder))
    _line(console, "loss plot", str(result.plot))
    if version is None:
        folders = [expert.folder for expert in result.experts]
        names = [expert_name(f"TENANT/{result.name}", number) for number in range(1, len(folders) + 1)]
        for folder, name in [*zip(folders, names, strict=True), (result.adapter_folder, f"TENANT/{result.name}")]:
            if folder is not None:
                _line(console, "next", shlex.join(["loraplex", "publish", str(folder), name, *place]))
        return
    alias = f", alias {job.output.alias}" if job.output.alias else ""
    _line(console, "published", f"{version.adapter}@{version.number}{alias}  {version.digest[:19]}")
    mode = [] if job.mode == DEFAULT_MODE else ["--mode", job.mode]
    _line(console, "serve", shlex.join(["loraplex", "serve", "--base", job.base.source, *mode, *place]))
    _line(console, "next", curl_line(result, version))


def result_document(result: TrainingResult, job: Job, version: Version | None) -> dict[str, Any]:
    """The result for programs; `published` is null where nothing was."""
    published = None
    if version is not None:
        published = {
            "adapter": version.adapter,
            "version": version.number,
            "digest": version.digest,
            "alias": job.output.alias,
        }
    return {**result.to_json(), "published": published}


def print_document(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2))


def curl_line(result: TrainingResult, version: Version) -> str:
    """A request for the new version, in the form that its data had."""
    body: dict[str, Any] = {"model": f"{version.adapter}@{version.number}"}
    if result.answers_chat:
        route, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": "..."}]
    else:
        route, body["prompt"] = "/v1/completions", "..."
    return f"curl {SERVER}{route} -H 'content-type: application/json' -d {shlex.quote(json.dumps(body))}"


def _comparison(base: Metrics, adapter: Metrics) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    table.add_column("base", justify="right")
    table.add_column("adapter", justify="right", style="green")
    table.add_row("validation loss", f"{base.validation_loss:.4f}", f"{adapter.validation_loss:.4f}")
    table.add_row("perplexity", f"{base.perplexity:,.2f}", f"{adapter.perplexity:,.2f}")
    if base.exact_match is not None and adapter.exact_match is not None:
        table.add_row("exact match", f"{base.exact_match:.1%}", f"{adapter.exact_match:.1%}")
    return table


def _line(console: Console, title: str, text: str) -> None:
    console.print(Text.assemble((f"{title:10}", "bold"), text), soft_wrap=True)
