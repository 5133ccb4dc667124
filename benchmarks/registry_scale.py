"""What do resolving and listing cost with 100,000 versions of 10,000 adapters?

Run: `python -m benchmarks.registry_scale [--adapters N] [--versions N] [--registry postgresql://...] [--quick]
[--json FILE]`

The database is filled by rows in bulk, then asked in process: resolving without the remembered answers (by alias, by
number, the newest), and pages of 100 at random places, as the operator and as a tenant's reader. `--registry` names an
empty PostgreSQL database instead of a SQLite file.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import registry
from registry.catalog import Catalog
from registry.names import AdapterRef
from registry.principal import Role
from registry.resolution import Resolution
from tests.registry.adapter_folders import base_document
from tests.registry.campaigns.filling import fill

TENANTS = 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--versions", type=int, default=10, help="versions of each adapter")
    parser.add_argument("--asks", type=int, default=3_000)
    parser.add_argument("--registry", help="an empty PostgreSQL database")
    parser.add_argument("--quick", action="store_true", help="1,000 adapters, 300 asks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.adapters, options.asks = 1_000, 300
    with tempfile.TemporaryDirectory() as folder:
        where = options.registry or Path(folder) / "registry"
        with registry.open(where, blobs=Path(folder) / "blobs") as reg:
            reg.register_base(base_document())
            names = fill(reg._database, tenants=TENANTS, adapters=options.adapters, versions=options.versions)
            times = measure(reg, names, options.asks)
    table = Table("ask", "p50 ms", "p99 ms", title=f"{options.adapters * options.versions:,} versions")
    for name, (p50, p99) in times.items():
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"adapters": options.adapters, "versions": options.versions, "ms": times}))


def measure(reg: registry.Registry, names: list[str], asks: int) -> dict[str, tuple[float, float]]:
    """p50 and p99 in milliseconds, by what is asked."""
    chance = random.Random(4)
    operator = registry.Principal.operator()
    reader = registry.Principal(tenant="tenant-007", role=Role.READER, token_id="tok_reader")  # noqa: S106 - a name
    own = [name for name in names if name.startswith("tenant-007/")]

    resolution = Resolution(reg._database, Catalog(reg._database))

    def look_up(selector: str) -> Callable[[], object]:
        return lambda: resolution.look_up(AdapterRef.parse(chance.choice(names) + selector), operator)

    actions: dict[str, Callable[[], object]] = {
        "resolve an alias": look_up("@prod"),
        "resolve a number": look_up("@2"),
        "resolve the newest": look_up(""),
        "resolve as a reader": lambda: resolution.look_up(AdapterRef.parse(chance.choice(own)), reader),
        "page of adapters": lambda: reg.page_adapters(operator, cursor=chance.choice(names)),
        "page as a reader": lambda: reg.page_adapters(reader, cursor=chance.choice(names)),
        "page of versions": lambda: reg.page_versions(chance.choice(names), operator),
    }
    return {name: _percentiles(action, asks if "resolve" in name else asks // 10) for name, action in actions.items()}


def _percentiles(action: Callable[[], object], count: int) -> tuple[float, float]:
    action()
    times = []
    for _ in range(count):
        began = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - began))
    times.sort()
    return times[count // 2], times[int(count * 0.99)]


if __name__ == "__main__":
    main()
