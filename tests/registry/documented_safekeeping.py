"""Writes the outputs of docs/safekeeping.md by running what the page shows.

    python -m tests.registry.documented_safekeeping

As `documented.py`, in a home of its own in which acme/text2sql has two versions.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

import registry
from loraplex.cli import COMMANDS
from tests.registry.adapter_folders import base_document, write_adapter
from tests.registry.documented import CONSOLE, FIXED

PAGE = Path(__file__).parents[2] / "docs" / "safekeeping.md"
RANDOM = (
    (re.compile(r"(newest|key) {4,7}[0-9a-f]{64}"), r"\1 ..."),
    (re.compile(r"^  [0-9a-f]{12}  ", re.MULTILINE), "  2b9c11d04e7f  "),
    (re.compile(r"on \d{4}-\d\d-\d\d"), "on 2026-11-22"),
    (re.compile(r"done in \d+\.\d s"), "done in 0.0 s"),
)


def render(page: str, home: Path) -> str:
    """The page with every output made anew. The working directory must hold the runs."""
    return CONSOLE.sub(lambda block: _run_block(block.group(1), home), page)


def prepare(folder: Path) -> Path:
    """Publish two versions; returns the home."""
    operator = registry.Principal.operator()
    with registry.open(folder / "home" / "registry") as reg:
        reg.register_base(base_document())
        for number in (1, 2, 3):
            run = write_adapter(folder / f"run-{number}" / "adapter", seed=number)
            if number < 3:
                reg.publish(run, "acme/text2sql", principal=operator)
        reg.promote("acme/text2sql@2", "prod", principal=operator)
    return folder / "home"


def _run_block(block: str, home: Path) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "```console\n" + "\n".join(_run(command, home) for command in commands) + "```"


def _run(command: str, home: Path) -> str:
    name, *arguments = shlex.split(command.removeprefix("$ "))
    assert name == "loraplex", command
    loaded: Any = COMMANDS[arguments[0]].load()
    group = click.Group(commands={arguments[0]: loaded})
    output = CliRunner().invoke(group, arguments, env={"LORAPLEX_HOME": str(home)}).output
    for pattern, fixed in (*FIXED, *RANDOM):
        output = pattern.sub(fixed, output)
    return f"{command}\n{output}"


def main() -> None:
    """Rewrite the page."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        PAGE.write_text(render(PAGE.read_text(), prepare(Path(folder))))


if __name__ == "__main__":
    main()
