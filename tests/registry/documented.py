"""Writes the outputs and the table of docs/registry.md by running what the page shows.

    python -m tests.registry.documented

Commands in ```console blocks run in order, in a home of their own. Moments, token ids and secrets are replaced by fixed
ones, so that the page changes only when what it says changes.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import tempfile
from pathlib import Path

import click
import numpy as np
from click.testing import CliRunner

from registry.cli import adapters, aliases, canaries, insight, promotion, tenants
from registry.reasons import ADVICE
from tests.registry.adapter_folders import (
    OTHER_FINGERPRINT,
    base_document,
    lora_tensors,
    manifest_document,
    modules_named,
    write_adapter,
    write_json,
)

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"
TABLE_BEGIN, TABLE_END = "<!-- rejection codes -->\n", "<!-- end of rejection codes -->"
COMMANDS = (
    adapters.publish,
    adapters.ls,
    adapters.show,
    adapters.pull,
    adapters.promote,
    adapters.rollback,
    aliases.alias,
    promotion.policy,
    promotion.approve,
    promotion.attest,
    canaries.canary,
    insight.lineage,
    insight.card,
    insight.diff,
    tenants.tenant,
    tenants.token,
)
TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
FIXED = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"), "2026-11-22 09:30 UTC"),
    (re.compile(r"tok_[0-9a-f]{16}"), "tok_5e1f0c9a7b3d2468"),
    (re.compile(r"lpx_[\w-]{43}"), "lpx_" + "x" * 43),
    (re.compile(r" +$", re.MULTILINE), ""),
)


def render(page: str, home: Path) -> str:
    """The page with every output and the table made anew. The working directory must hold the runs."""
    table = _codes_table()
    before, rest = page.split(TABLE_BEGIN)
    page = before + TABLE_BEGIN + table + TABLE_END + rest.split(TABLE_END)[1]
    return CONSOLE.sub(lambda block: _run_block(block.group(1), home), page)


def prepare(folder: Path) -> Path:
    """Make the runs that the page publishes, and a home with their base; returns the home."""
    home = folder / "home"
    (home / "bases" / "embedded-nf4").mkdir(parents=True)
    write_json(home / "bases" / "embedded-nf4" / "base.json", base_document())
    better = {
        "base": {"validation_loss": 3.125, "exact_match": 0.0},
        "adapter": {"validation_loss": 0.047, "exact_match": 0.965},
    }
    diverged = lora_tensors(modules_named("q_proj", "v_proj"))
    next(iter(diverged.values())).flat[0] = np.nan
    (folder / "prod.toml").write_text("".join(TOML.findall(PAGE.read_text())))
    write_adapter(folder / "run-1" / "adapter", seed=1)
    write_adapter(folder / "run-2" / "adapter", seed=2, manifest=manifest_document(metrics=better))
    write_adapter(folder / "run-3" / "adapter", tensors=diverged)
    write_adapter(folder / "run-4" / "adapter", seed=4, manifest=manifest_document(OTHER_FINGERPRINT))
    return home


def _run_block(block: str, home: Path) -> str:
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "```console\n" + "\n".join(_run(command, home) for command in commands) + "```"


def _run(command: str, home: Path) -> str:
    name, *arguments = shlex.split(command.removeprefix("$ "))
    assert name == "loraplex", command
    group = click.Group(commands={str(child.name): child for child in COMMANDS})
    result = CliRunner().invoke(group, arguments, env={"LORAPLEX_HOME": str(home)})
    output = result.output
    for pattern, fixed in FIXED:
        output = pattern.sub(fixed, output)
    return f"{command}\n{output}"


def _codes_table() -> str:
    rows = [f"| `{reason.value}` | {advice.meaning} | {advice.next_step} |" for reason, advice in ADVICE.items()]
    return "\n".join(["| code | meaning | what to do next |", "|---|---|---|", *rows]) + "\n"


def main() -> None:
    """Rewrite the page."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        PAGE.write_text(render(PAGE.read_text(), prepare(Path(folder))))


if __name__ == "__main__":
    main()
