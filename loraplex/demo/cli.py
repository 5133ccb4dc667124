"""`loraplex demo`: the whole way, from data to a server that answers for three adapters in one batch."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

from loraplex.errors import MissingExtraError
from loraplex.home import HomePath

DEMO_HOME = "~/.loraplex/demo"
PLAIN_WIDTH = 110


@click.command()
@click.option("--once", is_flag=True, help="End after the demo, instead of leaving the server running.")
@click.option("--quick", is_flag=True, help="Less data and fewer steps: the same way, with weaker adapters.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write the results there.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the server.  [default: 8000 if free, else any]")
@click.option("--base", help="Another base: a model folder or a Hub id.  [default: the embedded one]")
@click.option(
    "--home",
    type=HomePath(file_okay=False),
    envvar="LORAPLEX_HOME",
    default=DEMO_HOME,
    show_default=True,
    help="Folder of the demo's base, registry, runs and caches.",
)
def demo(home: Path, json_file: Path | None, port: int | None, base: str | None, *, once: bool, quick: bool) -> None:
    """Train three adapters over one 4-bit base, publish them, and serve them in one batch.

    Takes about six minutes on two CPU cores, then leaves the server running until Ctrl-C.
    """
    for package in ("openai", "httpx"):
        if find_spec(package) is None:
            raise MissingExtraError("demo", package=package, extra="demo")
    from loraplex.demo.session import run_session  # torch: `loraplex demo --help` must not wait for it

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    run_session(console, home.resolve(), port, base, json_file, once=once, quick=quick)
