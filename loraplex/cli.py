"""The `loraplex` command."""

from __future__ import annotations

import click

from loraplex import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="loraplex")
def main() -> None:
    """One 4-bit base model, thousands of LoRA adapters, one server."""
