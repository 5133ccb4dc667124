"""`loraplex base`: prepare, list, show and register quantized bases.

A base is quantized once into HOME/bases; the trainer and the server load those same bytes. `train` and `serve` prepare
what they need by themselves: these commands are for doing it ahead of time, and for looking.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from registry.cli.home import home_option
from registry.cli.options import RegistryGroup
from registry.cli.place import REGISTRY_FOLDER, Place, open_place, place_options

MODES = ("nf4", "bf16", "fp32")
MIB = 1 << 20

source_argument = click.argument("source", default="embedded")
mode_option = click.option(
    "--mode", type=click.Choice(MODES), default="nf4", show_default=True, help="How the base is stored."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=RegistryGroup)
def base() -> None:
    """Prepare and inspect quantized bases."""


@base.command()
@source_argument
@mode_option
@home_option
@json_option
def prepare(source: str, mode: str, home: Path, *, as_json: bool) -> None:
    """Quantize SOURCE into the home, if that was not done before.

    SOURCE is `embedded`, a model folder, or a Hub id such as Qwen/Qwen2.5-0.5B-Instruct[@revision].
    """
    folder, description = _prepare(source, mode, home)
    _print_base(folder, description, as_json=as_json)


@base.command()
@source_argument
@mode_option
@home_option
@json_option
def show(source: str, mode: str, home: Path, *, as_json: bool) -> None:
    """Show what SOURCE is as a quantized base: fingerprint, settings, modules."""
    folder, description = _prepare(source, mode, home)
    _print_base(folder, description, as_json=as_json, with_modules=True)


@base.command("ls")
@home_option
@json_option
def list_bases(home: Path, *, as_json: bool) -> None:
    """List the quantized bases in the home."""
    found = [(file.parent, json.loads(file.read_text())) for file in sorted((home / "bases").glob("*/base.json"))]
    if as_json:
        click.echo(json.dumps([_summary(folder, document) for folder, document in found], indent=2))
        return
    if not found:
        click.echo(f"No base in {home / 'bases'} yet. Make one: loraplex base prepare embedded")
        return
    table = Table("name", "quantization", "fingerprint", "architecture", "context", "size", box=None, pad_edge=False)
    for folder, document in found:
        row = _summary(folder, document)
        size = f"{row['bytes'] / MIB:.1f} MiB"
        table.add_row(
            row["name"], row["mode"], row["fingerprint"][:12], row["architecture"], str(row["context_tokens"]), size
        )
    Console().print(table)


@base.command()
@source_argument
@mode_option
@place_options
@json_option
def register(source: str, mode: str, home: Path, registry: Place | None, *, as_json: bool) -> None:
    """Make SOURCE known to the registry, so that adapters for it can be published from elsewhere."""
    _, description = _prepare(source, mode, home)
    with open_place(home, registry, create=True) as opened:
        opened.register_base(description)
    name, fingerprint, place = description["name"], description["fingerprint"], str(registry or home / REGISTRY_FOLDER)
    if as_json:
        click.echo(json.dumps({"name": name, "mode": mode, "fingerprint": fingerprint, "registry": place}, indent=2))
    else:
        click.echo(f"{name} ({mode}, {fingerprint[:12]}) is registered in {place}")


def _prepare(source: str, mode: str, home: Path) -> tuple[Path, dict[str, Any]]:
    from basemodel.snapshot import prepare_snapshot  # torch: only the commands that quantize wait for it

    snapshot = prepare_snapshot(source, mode=mode, cache_dir=home / "bases")  # type: ignore[arg-type]  # click checked it
    return snapshot.folder, snapshot.description.to_json()


def _summary(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": document["name"],
        "revision": document["revision"],
        "mode": document["quantization"]["mode"],
        "fingerprint": document["fingerprint"],
        "architecture": document["architecture"],
        "context_tokens": document["context_tokens"],
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "folder": str(folder),
    }


def _print_base(folder: Path, document: dict[str, Any], *, as_json: bool, with_modules: bool = False) -> None:
    if as_json:
        click.echo(json.dumps(document | {"folder": str(folder)}, indent=2))
        return
    quantization = document["quantization"]
    mode = quantization["mode"]
    if mode == "nf4":
        double = "double quantization" if quantization["double_quantization"] else "single quantization"
        mode += f", blocks of {quantization['block_size']}, {double}"
    rows = {
        "name": document["name"] + (f"@{document['revision']}" if document["revision"] else ""),
        "fingerprint": document["fingerprint"],
        "quantization": f"{mode}, {quantization['compute_dtype']} compute",
        "architecture": document["architecture"],
        "vocabulary": f"{document['vocabulary_size']} tokens",
        "context": f"{document['context_tokens']} tokens",
        "folder": str(folder),
    }
    for name, value in rows.items():
        click.echo(f"{name:13} {value}")
    if with_modules:
        for path, module in document["modules"].items():
            stored = mode.partition(",")[0] if module["quantized"] else quantization["compute_dtype"]
            click.echo(f"  {path:40} {module['out_features']} x {module['in_features']}  {module['kind']}, {stored}")
