"""What the demo shows: headings, tables and the lines to try. Colours and bars on a terminal, plain text elsewhere.

It does not: measure anything.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from basemodel.source import EMBEDDED
from loraplex.demo.measuring import JudgedRow, Throughput, is_exact
from loraplex.demo.plan import DemoPlan
from loraplex.demo.progress import TrainingProgress, counted
from loraplex.demo.publishing import PublishedAdapter
from loraplex.demo.results import TaskResult

PROGRAM = "loraplex"
MIB = 1 << 20
DIGEST_CHARACTERS = 7 + 12
CELL_CHARACTERS = 150
TABLE_INDENT = (0, 2, 0, 3)
LABEL_PADDING = 2 + 3


class Report:
    """Prints the demo on one console, from top to bottom. It keeps the number of the step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = 0

    def heading(self, text: str) -> None:
        """Begin the next step."""
        self._step += 1
        self._console.print()
        self._console.print(Text.assemble((f"{self._step}  ", "bold cyan"), (text, "bold")))

    def line(self, text: str) -> None:
        """One indented line."""
        self._console.print(Text(f"   {text}"), soft_wrap=True)

    def training(self, names: Sequence[str]) -> AbstractContextManager[TrainingProgress]:
        """Bars for the training runs."""
        return TrainingProgress(self._console, names).shown()

    def answering(self, total: int) -> AbstractContextManager[Progress]:
        """A bar for the answers of the held-out rows."""
        return counted(self._console, "answers", total)

    def published(self, published: Sequence[PublishedAdapter]) -> None:
        """The versions, as the registry has them."""
        table = self._table("adapter", "version", "digest", "rank", "size", "read by")
        for adapter in published:
            version = adapter.version
            names = f"{version.number}" + (f", @{adapter.plan.alias}" if adapter.plan.alias else "")
            size = f"{version.adapter_bytes / MIB:.1f} MiB"
            reader = f"{adapter.plan.tenant} only" if version.visibility == "private" else "everybody"
            table.add_row(version.adapter, names, short(version.digest), str(version.rank), size, reader)
        self._console.print(table)

    def scores(self, tasks: Sequence[TaskResult], rows: int) -> None:
        """Exact match of the base and of each adapter."""
        table = self._table("task", "model", "base alone", "with adapter")
        for task in tasks:
            table.add_row(task.name, task.model, percent(task.base_exact_match), percent(task.adapter_exact_match))
        self._console.print(table)
        self.line(f"exact match on {rows} held-out rows a task: right to the letter, or wrong")

    def answers(self, judged: Sequence[JudgedRow]) -> None:
        """Answers side by side, each with the digest of the version that gave it."""
        width = max(len(row.adapter.plan.model) for row in judged)
        for row in judged:
            answer, base = row.adapter_answer, row.base_answer
            is_right = is_exact(answer, row.example)
            verdict = "as expected" if is_right else f"expected: {one_line(row.example.completion)}"
            grid = Table.grid(padding=TABLE_INDENT, pad_edge=True)
            grid.add_column(style="dim", width=width + LABEL_PADDING, no_wrap=True)
            grid.add_column(overflow="fold")
            grid.add_row("prompt", Text(one_line(row.example.prompt)))
            grid.add_row("base alone", Text(one_line(base.text), style="dim"))
            grid.add_row(row.adapter.plan.model, Text(one_line(answer.text), style="green" if is_right else "yellow"))
            grid.add_row("answered by", Text(f"{short(answer.digest or '')}  {verdict}", style="dim"))
            self._console.print(grid)
            self._console.print()

    def throughput(self, found: Throughput, adapters: int, tokens: int) -> None:
        """The mixed batch against the base alone."""
        table = self._table("batch", "tokens/s", "")
        share = found.mixed_tokens_per_s / found.base_tokens_per_s
        mixed = f"{found.rows} requests on {adapters} adapters, mixed"
        table.add_row(mixed, f"{found.mixed_tokens_per_s:,.0f}", f"{share:.0%} of the base alone")
        table.add_row(f"{found.rows} requests on the base alone", f"{found.base_tokens_per_s:,.0f}", "")
        self._console.print(table)
        self.line(f"the same prompts, {tokens} tokens each, all at once; the best round of each")

    def next_steps(
        self, url: str, published: Sequence[PublishedAdapter], examples: Mapping[str, str], home: Path
    ) -> None:
        """Lines to copy into another terminal."""
        self._console.print()
        self._console.print(Text.assemble(("The server is running. ", "bold"), "Try it from another terminal:"))
        for adapter in published:
            self._console.print()
            self._command(curl(url, adapter, examples[adapter.plan.model]))
        self._console.print()
        self._command(f"curl {url}/metrics")
        self._command(f"{program()} ls --home {shlex.quote(str(home))}")
        self._console.print()
        self._console.print(Text("Ctrl-C stops it.", style="dim"))

    def stopped(self, port: int, base: str, home: Path) -> None:
        """The last line: what is left, and how it is served again, on the same port with the same tokens."""
        base_option = "" if base == EMBEDDED else f" --base {shlex.quote(base)}"
        serve = f"{program()} serve --home {shlex.quote(str(home))}{base_option} --port {port}"
        self._console.print()
        self._command(f"Stopped. To serve these adapters again, with the same tokens: {serve}")

    def _command(self, text: str) -> None:
        """A line for a shell: not wrapped, and nothing in it is markup."""
        self._console.print(text, soft_wrap=True, markup=False)

    def _table(self, *columns: str) -> Table:
        table = Table(box=None, pad_edge=True, padding=TABLE_INDENT, header_style="dim")
        for name in columns:
            table.add_column(name, justify="right" if name in ("rank", "size", "tokens/s") else "left")
        return table


def opening(plan: DemoPlan, cores: int) -> str:
    """The first line: what will happen."""
    names = ", ".join(adapter.adapter for adapter in plan.adapters)
    return f"loraplex demo: {names} over one 4-bit base ({plan.base}) on {cores} CPU cores"


def curl(url: str, adapter: PublishedAdapter, prompt: str) -> str:
    """The request as a shell command, for a prompt of any text."""
    body = {"model": adapter.plan.model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}
    quoted = json.dumps(body).replace("'", "'\\''")
    return f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {adapter.token}' -d '{quoted}'"


def program() -> str:
    """How a shell calls this installation: by its name where that is found on the path, else by where it is."""
    script = Path(sys.executable).with_name(PROGRAM)
    found = shutil.which(PROGRAM)
    if found is not None and script.exists() and Path(found).samefile(script):
        return PROGRAM
    return shlex.quote(str(script)) if script.exists() else f"{shlex.quote(sys.executable)} -m {PROGRAM}"


def short(digest: str) -> str:
    """Enough of a digest to tell versions apart."""
    return digest[:DIGEST_CHARACTERS]


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{share:.0%}"


def one_line(text: str) -> str:
    """The text on one line, cut where it is long."""
    flat = " ⏎ ".join(line for line in text.strip().splitlines() if line.strip())
    return flat if len(flat) <= CELL_CHARACTERS else flat[: CELL_CHARACTERS - 1] + "…"
