"""How many resolves a second does the registry's server answer, and how long does a publish take until it is servable?

Run: `python -m benchmarks.registry_resolve [--seconds N] [--connections N] [--quick] [--json FILE]`

The server is `loraplex registry serve` in a process of its own, the client a single process with several keep-alive
connections, each with one request under way: both on this machine. `/livez` of the same server is what HTTP alone
costs here; the ratio is within the run. In process it resolves with the answer remembered, and looked up again.
Servable: from the call of publish over HTTP to the verified folder that a server would load.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import registry
from benchmarks.registry_server import HOST, base_document, registry_server, write_adapter
from registry.catalog import Catalog
from registry.client import RemoteRegistry
from registry.names import AdapterRef
from registry.resolution import Resolution

NAME = "acme/bench"
SMALL_BYTES = 2 << 20


@dataclass(frozen=True)
class Result:
    """Per second over HTTP, microseconds in process, seconds until servable (the median of several)."""

    resolves_per_s: float
    http_alone_per_s: float
    resolve_p99_ms: float
    remembered_us: float
    looked_up_us: float
    servable_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--publishes", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="2 seconds, 2 publishes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.publishes = 2.0, 2
    result = measure(options.seconds, options.connections, options.publishes)
    table = Table("measure", "value")
    for name, value in asdict(result).items():
        table.add_row(name, f"{value:.3f}" if value < 10 else f"{value:,.0f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(asdict(result)))


def measure(seconds: float, connections: int, publishes: int) -> Result:
    """All of it, on a registry in a temporary folder."""
    operator = registry.Principal.operator()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with registry.open(folder / "data") as reg:
            reg.register_base(base_document(1))
            for seed in range(2):
                source = write_adapter(folder / f"first-{seed}", size_bytes=SMALL_BYTES, seed=seed)
                reg.publish(source, NAME, principal=operator, base_fingerprint=base_document(1)["fingerprint"])
            reg.promote(f"{NAME}@1", "prod", principal=operator)
            ref = AdapterRef.parse(f"{NAME}@prod")
            remembered = _microseconds(lambda: reg.resolve(str(ref), principal=operator), 20_000)
            resolution = Resolution(reg._database, Catalog(reg._database))
            looked_up = _microseconds(lambda: resolution.look_up(ref, operator), 1_000)
        with registry_server(folder / "data") as port:
            paths = ("/livez", f"/registry/v1/resolve?ref={NAME.replace('/', '%2F')}%40prod")
            asyncio.run(_ask(port, paths[1], 0.5, connections))
            alone, _ = asyncio.run(_ask(port, paths[0], seconds, connections))
            rate, times = asyncio.run(_ask(port, paths[1], seconds, connections))
            servable = _servable(port, folder, publishes)
    p99 = sorted(times)[int(len(times) * 0.99)]
    return Result(rate, alone, 1e3 * p99, remembered, looked_up, servable)


def _microseconds(action: Callable[[], object], count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
        action()
    return (time.perf_counter() - began) / count * 1e6


async def _ask(port: int, path: str, seconds: float, connections: int) -> tuple[float, list[float]]:
    """Requests a second, and the time of each."""
    raw = f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
    deadline = time.perf_counter() + seconds
    began = time.perf_counter()
    times = await asyncio.gather(*(_connection(port, raw, deadline) for _ in range(connections)))
    took = time.perf_counter() - began
    flat = [one for part in times for one in part]
    return len(flat) / took, flat


async def _connection(port: int, raw: bytes, deadline: float) -> list[float]:
    reader, writer = await asyncio.open_connection(HOST, port)
    times = []
    while (began := time.perf_counter()) < deadline:
        writer.write(raw)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        lower = head.lower()
        length = lower[lower.index(b"content-length:") + 15 :].split(b"\r\n", 1)[0]
        await reader.readexactly(int(length))
        times.append(time.perf_counter() - began)
    writer.close()
    return times


def _servable(port: int, folder: Path, publishes: int) -> float:
    operator = registry.Principal.operator()
    fingerprint = base_document(1)["fingerprint"]
    took = []
    with RemoteRegistry(f"http://{HOST}:{port}") as remote:
        for turn in range(publishes):
            source = write_adapter(folder / f"next-{turn}", size_bytes=SMALL_BYTES, seed=100 + turn)
            began = time.perf_counter()
            version = remote.publish(source, NAME, principal=operator, base_fingerprint=fingerprint)
            remote.promote(f"{NAME}@{version.number}", "prod", principal=operator)
            found = remote.resolve(f"{NAME}@prod", principal=operator)
            remote.pull(found, folder / f"served-{turn}")
            took.append(time.perf_counter() - began)
    return statistics.median(took)


if __name__ == "__main__":
    main()
