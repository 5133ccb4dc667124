"""What the commands print: tables and sentences for people (rich), and JSON for programs.

Text that came from an adapter or another person is printed as plain characters: no markup, no escape sequences.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from registry.base import BaseRecord
from registry.printable import printable
from registry.publication import Publication
from registry.version import AdapterSummary, AliasMove, MoveKind, Version

PLAIN_WIDTH = 200
"""Columns where the output is no terminal: wide enough that nothing is cut."""
DIGEST_DIGITS_SHOWN = 12
FACT_CHARACTERS = 300
_UNITS = ("B", "kB", "MB", "GB", "TB")


def print_json(value: Any) -> None:
    """Print a value (dataclasses, enums and times included) as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def version_document(version: Version, *, with_manifest: bool = True) -> dict[str, Any]:
    """A version as JSON; without its manifest the metrics are still there."""
    document: dict[str, Any] = msgspec.to_builtins(version)
    document["metrics"] = _metrics(version)
    if not with_manifest:
        del document["manifest"]
    return document


def print_publication(outcome: Publication, base: BaseRecord, alias: str | None) -> None:
    """What was published, how it was judged, and what to do next."""
    version = outcome.version
    name = f"{version.adapter}@{version.number}"
    click.echo(f"Published {name}" if outcome.is_new else f"These files are {name} already; nothing was added")
    facts = _facts_of(version, base)
    if alias is not None:
        facts["alias"] = f"{alias} points at version {version.number}"
    _print_facts(facts)
    if alias is None:
        click.echo(f"Next: loraplex promote {name} --alias prod")
    else:
        server = f"loraplex serve --base {shlex.quote(printable(base.name))}"
        click.echo(f"Next: ask for model {version.adapter}@{alias} on a server of this base ({server})")


def print_adapters(summaries: Sequence[AdapterSummary], bases: Mapping[str, BaseRecord]) -> None:
    """All adapters, one line each."""
    if not summaries:
        click.echo("No adapters yet. Publish one: loraplex publish FOLDER TENANT/NAME")
        return
    table = table_of("ADAPTER", "NEWEST", "ALIASES", "BASE", "RANK", "SIZE", "VISIBILITY", "UPDATED")
    for summary in summaries:
        aliases = ", ".join(f"{alias} → {number}" for alias, number in summary.aliases.items())
        table.add_row(
            summary.adapter,
            str(summary.newest_number),
            aliases or "-",
            _base_name(bases[summary.base_fingerprint]),
            str(summary.rank),
            size_text(summary.adapter_bytes),
            summary.visibility.value,
            time_text(summary.updated_at),
        )
    console().print(table)


def print_versions(versions: Sequence[Version], pointing: Mapping[int, Sequence[str]]) -> None:
    """The versions of one adapter, newest first, with the names of what points at each."""
    newest = versions[0]
    click.echo(f"{newest.adapter} ({newest.visibility.value}), {len(versions)} version{'s' * (len(versions) > 1)}")
    columns = ("VERSION", "DIGEST", "ALIASES", "RANK", "SIZE", "EXACT MATCH", "LOSS", "PUBLISHED", "BY", "MESSAGE")
    table = table_of(*columns)
    for version in versions:
        metrics = _metrics(version).get("adapter", {})
        table.add_row(
            str(version.number),
            _short(version.digest),
            ", ".join(pointing.get(version.number, ())) or "-",
            str(version.rank),
            size_text(version.adapter_bytes),
            _figure("exact_match", metrics.get("exact_match")),
            _figure("validation_loss", metrics.get("validation_loss")),
            time_text(version.created_at),
            version.created_by,
            Text(printable(version.message.partition("\n")[0])),
        )
    console().print(table)


def print_aliases(adapter: str, aliases: Mapping[str, int]) -> None:
    """The aliases of one adapter, and where they point."""
    if not aliases:
        click.echo(f"{adapter} has no aliases yet. Make one: loraplex promote {adapter}@NUMBER --alias prod")
        return
    table = table_of("ALIAS", "VERSION")
    for alias, number in aliases.items():
        table.add_row(alias, str(number))
    console().print(table)


def print_histories(histories: Mapping[str, Sequence[AliasMove]]) -> None:
    """The moves of every alias, newest first."""
    table = table_of("ALIAS", "MOVE", "FROM", "TO", "WHEN", "BY", "EVIDENCE")
    for alias, moves in histories.items():
        for move in moves:
            origin = "-" if move.from_number is None else str(move.from_number)
            goal = "-" if move.to_number is None else str(move.to_number)
            row = (alias, move.kind.value, origin, goal, time_text(move.moved_at), move.actor)
            table.add_row(*row, Text(printable(move.evidence)))
    console().print(table)


def print_version(version: Version, base: BaseRecord, pointing: Mapping[int, Sequence[str]]) -> None:
    """One version: identity, base, metrics, lineage, files, and the names of what points at it."""
    click.echo(f"\n{version.adapter}@{version.number}")
    facts = _facts_of(version, base) | {"aliases": ", ".join(pointing.get(version.number, ())) or "none"}
    facts["published"] = f"{time_text(version.created_at)} by {version.created_by}"
    if version.message:
        facts["message"] = version.message
    _print_facts(facts | _servers(version) | _lineage(version))
    metrics = _metrics(version)
    names = sorted(metrics.get("base", {}).keys() | metrics.get("adapter", {}).keys())
    if names:
        table = table_of("METRIC", "BASE", "ADAPTER")
        for name in names:
            sides = (_figure(name, metrics.get(side, {}).get(name)) for side in ("base", "adapter"))
            table.add_row(Text(printable(name)), *sides)
        console().print(table)
    table = table_of("FILE", "SIZE", "SHA-256")
    for file in version.files:
        table.add_row(Text(printable(file.path)), size_text(file.size), file.sha256)
    console().print(table)


def print_pull(version: Version, folder: Path) -> None:
    """Where the files are now."""
    click.echo(
        f"{version.adapter}@{version.number} is in {printable(str(folder))}: {len(version.files)} files, verified"
    )
    click.echo(f"  digest    {version.digest}")


def print_move(move: AliasMove) -> None:
    """Where the alias points now, and where it did before; or that it is gone."""
    if move.to_number is None:
        click.echo(f"{move.adapter}@{move.alias} is deleted (it pointed at version {move.from_number})")
        click.echo(f"Undo: loraplex promote {move.adapter}@{move.from_number} --alias {move.alias}")
        return
    origin = "nowhere" if move.from_number is None else f"version {move.from_number}"
    click.echo(f"{move.adapter}@{move.alias} now points at version {move.to_number} (before: {origin})")
    if move.kind is MoveKind.PROMOTE and move.from_number is not None:
        click.echo(f"Undo: loraplex rollback {move.adapter} --alias {move.alias}")


def _facts_of(version: Version, base: BaseRecord) -> dict[str, str]:
    """What the registry found by judging."""
    source = "recorded by the trainer" if version.base_verified else "fits by its shapes, not verified"
    return {
        "digest": version.digest,
        "base": f"{_base_name(base)}, fingerprint {base.fingerprint[:DIGEST_DIGITS_SHOWN]} ({source})",
        **_kind_of(version),
        "access": version.visibility.value,
    }


def _kind_of(version: Version) -> dict[str, str]:
    size = size_text(version.adapter_bytes)
    if version.experts:
        experts = ", ".join(_short(digest) for digest in version.experts)
        return {"mixture": f"a gate of {size} over {len(version.experts)} experts: {experts}"}
    return {"adapter": f"rank {version.rank} on {', '.join(version.target_modules)}; {size}"}


def _servers(version: Version) -> dict[str, str]:
    """Who can serve it, as far as a release that knew has judged it."""
    return {} if version.serving is None else version.serving.sentences()


def _lineage(version: Version) -> dict[str, str]:
    """Where the version comes from, as far as its manifest says."""
    manifest = version.manifest or {}
    training = manifest.get("training") or {}
    data = training.get("data") or {}
    facts = {
        "parent": manifest.get("parent"),
        "method": training.get("method"),
        "data": data.get("digest"),
        "rows": _rows(data),
        "steps": training.get("steps"),
        "seed": training.get("seed"),
        "seconds": training.get("seconds"),
        "hardware": training.get("hardware"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _rows(data: Mapping[str, Any]) -> str | None:
    if data.get("train_rows") is None:
        return None
    return f"{data['train_rows']} for training, {data.get('validation_rows') or 0} for validation"


def _metrics(version: Version) -> dict[str, dict[str, float | None]]:
    return ((version.manifest or {}).get("metrics")) or {}


def _print_facts(facts: Mapping[str, str]) -> None:
    for name, value in facts.items():
        clipped = value if len(value) <= FACT_CHARACTERS else value[:FACT_CHARACTERS] + "..."
        click.echo(f"  {name:<10}{printable(clipped)}")


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if name == "exact_match" else f"{value:.4g}"


def _base_name(base: BaseRecord) -> str:
    revision = "" if base.revision is None else f"@{base.revision[:DIGEST_DIGITS_SHOWN]}"
    return printable(f"{base.name}{revision} {base.quantization.mode}")


def _short(digest: str) -> str:
    return digest[: len("sha256:") + DIGEST_DIGITS_SHOWN]


def size_text(size_bytes: int) -> str:
    """A number of bytes for people."""
    amount, unit = float(size_bytes), 0
    while amount >= 1000 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{size_bytes} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def time_text(moment: datetime | None) -> str:
    """A moment, to the minute."""
    return "-" if moment is None else moment.strftime("%Y-%m-%d %H:%M UTC")


def table_of(*columns: str) -> Table:
    """An empty table with these columns."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def console() -> Console:
    """Where tables are printed: as wide as the terminal, or wide enough for everything."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, markup=False, highlight=False, emoji=False)
