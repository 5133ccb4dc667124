"""`loraplex demo`: the whole way, from data to a server that answers for three adapters in one batch.

It does: read the flags, and end Ctrl-C and SIGTERM with a line that says what is left.
It does not: run the demo (`session`).
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console

from loraplex.demo.interruption import Terminated, sigterm_interrupts
from loraplex.errors import MissingExtraError
from registry.cli.home import HomePath

DEMO_HOME = "~/.loraplex/demo"
DEMO_FOLDER = "demo"
PLAIN_WIDTH = 110
INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE = 130, 143


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
    help="Folder of the demo's base, registry, runs and caches; where LORAPLEX_HOME names yours, `demo` in it.",
)
@click.pass_context
def demo(
    ctx: click.Context,
    home: Path,
    json_file: Path | None,
    port: int | None,
    base: str | None,
    *,
    once: bool,
    quick: bool,
) -> None:
    """Train three adapters over one 4-bit base, publish them, and serve them in one batch.

    Takes about six minutes on two CPU cores, then leaves the server running until Ctrl-C or SIGTERM.
    """
    for package in ("openai", "httpx"):
        if find_spec(package) is None:
            raise MissingExtraError("demo", package=package, extra="demo")
    home = demo_home(ctx, home)
    try:
        with sigterm_interrupts():
            from loraplex.demo.session import run_session  # torch: `loraplex demo --help` must not wait for it

            console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)
            run_session(console, home, port, base, json_file, once=once, quick=quick)
    except KeyboardInterrupt as interruption:
        click.echo(
            f"\nStopped: nothing of the demo is running any more. What it made so far is in {home}; to begin anew, "
            "give the same command again.",
            err=True,
        )
        ctx.exit(TERMINATED_EXIT_CODE if isinstance(interruption, Terminated) else INTERRUPTED_EXIT_CODE)


def demo_home(ctx: click.Context, given: Path) -> Path:
    """A folder of the demo's own: it makes tenants and tokens, which the registry of the user's home must not get."""
    is_users_home = ctx.get_parameter_source("home") in (ParameterSource.ENVIRONMENT, ParameterSource.DEFAULT_MAP)
    return (given / DEMO_FOLDER if is_users_home else given).resolve()
