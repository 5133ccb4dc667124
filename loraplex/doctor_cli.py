"""`loraplex doctor`: run every check and print what was found. Exit status 1 if one failed; warnings do not count."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from loraplex.doctor import Check, examine
from loraplex.lazy_group import LazyGroup
from registry.cli.place import REGISTRY_FOLDER, Place, open_briefly, place_options

SIGNS = {"ok": ("ok     ", "green"), "warning": ("warning", "yellow"), "failed": ("failed ", "red")}


@click.command()
@place_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that would be served on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port to look at.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, home: Path, registry: Place | None, host: str, port: int, *, as_json: bool) -> None:
    """Check this machine, and say how to mend what is wrong."""
    checks: list[Check] = []
    console = Console(highlight=False)
    place = registry or home / REGISTRY_FOLDER
    root = ctx.find_root().command
    assert isinstance(root, LazyGroup)
    variables = root.variables_read()
    for check in examine(home, place, lambda: open_briefly(ctx, home, registry), host, port, variables=variables):
        checks.append(check)
        if not as_json:
            sign, color = SIGNS[check.status]
            console.print(Text.assemble((sign, color), f"  {check.name:14} {check.detail}"), soft_wrap=True)
            if check.advice:
                console.print(Text(f"{'':24}-> {check.advice}", style="dim"), soft_wrap=True)
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    if any(check.status == "failed" for check in checks):
        sys.exit(1)
