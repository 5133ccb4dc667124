"""`loraplex version`: the versions that belong into every bug report."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import click

PACKAGES = ("loraplex", "torch", "transformers", "peft", "bitsandbytes", "safetensors", "huggingface_hub", "litestar")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(*, as_json: bool) -> None:
    """Show the versions of loraplex and what it stands on."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    if as_json:
        click.echo(json.dumps(versions, indent=2))
        return
    for name in ("loraplex", "python", *PACKAGES[1:]):
        click.echo(f"{name:16} {versions[name] or 'not installed'}")


def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None
