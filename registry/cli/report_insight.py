"""What the commands about lineage and differences print for people."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from registry.cli.report import DIGEST_DIGITS_SHOWN, console, table_of
from registry.lineage import Lineage, LineageNode, NodeKind, Relation
from registry.printable import printable
from registry.version_diff import Change, ModuleDiff, VersionDiff

MODULES_SHOWN = 64


def print_lineage(graph: Lineage) -> None:
    """The versions as a tree of children under their parents, then the bases and data that they stand on."""
    nodes = {node.node_id: node for node in graph.nodes}
    parents = {edge.source: edge.target for edge in graph.edges if edge.relation is Relation.PARENT}
    children: dict[str | None, list[LineageNode]] = {}
    for node in sorted(graph.nodes, key=lambda node: node.names):
        if node.kind is NodeKind.VERSION:
            children.setdefault(parents.get(node.node_id), []).append(node)
    pending = [(node, 0) for node in reversed(children.get(None, []))]
    while pending:
        node, depth = pending.pop()
        mark = " *" if node.node_id == graph.root else ""
        click.echo(f"{'  ' * depth}{_name_of(node)}{mark}  {_facts_of(node)}".rstrip())
        pending += [(child, depth + 1) for child in reversed(children.get(node.node_id, []))]
    for node in nodes.values():
        if node.kind is not NodeKind.VERSION:
            name = printable(", ".join(node.names)) or "-"
            click.echo(f"{node.kind.value:<5} {node.node_id.removeprefix('sha256:')[:DIGEST_DIGITS_SHOWN]}  {name}")
    if graph.is_truncated:
        click.echo("There is more than is shown here.")


def print_diff(diff: VersionDiff) -> None:
    """Each part that differs."""
    bases = "the same base" if diff.same_base else "different bases"
    click.echo(f"{diff.before} → {diff.after}, for {bases}")
    for title, changes in (("FILE", diff.files), ("CONFIG", diff.config), ("METRIC", diff.metrics)):
        if changes:
            _print_changes(title, changes)
    if diff.modules is not None:
        _print_modules(diff.modules)


def _print_changes(title: str, changes: tuple[Change, ...]) -> None:
    table = table_of(title, "BEFORE", "AFTER")
    for change in changes:
        cells = (change.name, _shown(change.before), _shown(change.after))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    click.echo()
    console().print(table)


def _print_modules(modules: tuple[ModuleDiff, ...]) -> None:
    """The modules that changed most come first."""
    table = table_of("MODULE", "RANK", "NORM", "DISTANCE", "COSINE BA", "COSINE A", "COSINE B")
    ordered = sorted(modules, key=lambda module: (-(module.distance or float("inf")), module.module))
    for module in ordered[:MODULES_SHOWN]:
        table.add_row(
            Text(printable(module.module)),
            f"{_number(module.rank_before)} → {_number(module.rank_after)}",
            f"{_number(module.norm_before)} → {_number(module.norm_after)}",
            _number(module.distance),
            _number(module.cosine),
            _number(module.cosine_a),
            _number(module.cosine_b),
        )
    click.echo()
    console().print(table)
    if len(modules) > MODULES_SHOWN:
        click.echo(f"... and {len(modules) - MODULES_SHOWN} more; --json shows all")


def _name_of(node: LineageNode) -> str:
    return printable(", ".join(node.names))


def _facts_of(node: LineageNode) -> str:
    facts = node.facts
    figures = [f"{name} {value:.4g}" for name, value in (facts.get("metrics") or {}).items() if value is not None]
    return printable(", ".join([node.node_id[: len("sha256:") + DIGEST_DIGITS_SHOWN], *figures[:4]]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.6g}" if isinstance(value, float) else str(value)
