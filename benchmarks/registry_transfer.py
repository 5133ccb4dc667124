"""How fast do 100 MB enter and leave the registry, against a copy of the file and against bare HTTP?

Run: `python -m benchmarks.registry_transfer [--megabytes N] [--repeats N] [--quick] [--json FILE]`

Each repeat does all of them in turn, so that a change of the machine's speed meets all; medians are reported.
copy: read the file, write another, fsync. raw: PUT and GET of the same bytes to a server that only writes them and
syncs (`raw_http.py`). hub: hash, LFS batch and PUT, as a Hub client uploads a file, and GET of /resolve. client: what
of that upload is the client's own, hash and PUT to a server that discards. huggingface_hub: the stock client itself,
with one more file each time, without hf_xet and without the commit. rest: publish, which also judges the adapter
(header, shapes, every value finite), and pull into a folder, which verifies and syncs. Bodies are sent in blocks of
64 KiB, as stock clients (httpx) do. What is downloaded raw and from the Hub is written to a file, without fsync.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, HfApi, constants
from rich.console import Console
from rich.table import Table

import registry
from benchmarks.raw_http import DISCARD
from benchmarks.registry_server import (
    FINGERPRINT,
    HOST,
    base_document,
    free_port,
    layers_of,
    registry_server,
    request,
    served,
    write_adapter,
)
from registry.client import RemoteRegistry

NAME = "acme/bench"
WEIGHTS = "adapter_model.safetensors"
CHUNK_BYTES = 1 << 20
LFS = "application/vnd.git-lfs+json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments` (None: those of the command line), measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are; a temporary folder if not given")
    parser.add_argument("--quick", action="store_true", help="16 MB, 2 repeats")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.quick:
        options.megabytes, options.repeats = 16, 2
    constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_PROGRESS_BARS = True
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        seconds = measure(Path(folder), options.megabytes * 1_000_000, options.repeats)
    _print(seconds, options.megabytes)
    if options.json:
        options.json.write_text(json.dumps({"megabytes": options.megabytes, "seconds": seconds}))


def measure(folder: Path, size_bytes: int, repeats: int) -> dict[str, float]:
    """Seconds of each transfer, the median of the repeats."""
    with registry.open(folder / "data") as reg:
        reg.register_base(base_document(layers_of(size_bytes)))
    (folder / "raw").mkdir()
    taken: dict[str, list[float]] = {}
    with ExitStack() as stack:
        raw_port = free_port()
        stack.enter_context(
            served([sys.executable, "-m", "benchmarks.raw_http", str(raw_port), str(folder / "raw")], raw_port)
        )
        port = stack.enter_context(registry_server(folder / "data"))
        remote = stack.enter_context(RemoteRegistry(f"http://{HOST}:{port}"))
        hub = _Hub(port)
        for turn in range(repeats):
            sources = [
                write_adapter(folder / f"{kind}-{turn}", size_bytes=size_bytes, seed=3 * turn + index)
                for index, kind in enumerate(("hub", "rest", "stock"))
            ]
            for name, took in _once(folder, sources, raw_port, hub, remote).items():
                taken.setdefault(name, []).append(took)
            for source in sources:
                shutil.rmtree(source)
    return {name: statistics.median(times) for name, times in taken.items()}


def _once(folder: Path, sources: list[Path], raw_port: int, hub: _Hub, remote: RemoteRegistry) -> dict[str, float]:
    operator = registry.Principal.operator()
    weights, copied, got = sources[0] / WEIGHTS, folder / "copied", folder / "got"
    taken = {"copy": _timed(lambda: _copy(weights, copied))}
    taken["upload raw"] = _timed(lambda: _put(raw_port, "/weights", weights))
    taken["download raw"] = _timed(lambda: _get(raw_port, "/weights", got))
    taken["upload client"] = _timed(lambda: _discarded(raw_port, weights))
    taken["upload hub"] = _timed(lambda: hub.upload(weights))
    hub.commit(sources[0])
    taken["download hub"] = _timed(lambda: _get(hub.port, f"/{NAME}/resolve/main/{WEIGHTS}", got))
    assert got.stat().st_size == weights.stat().st_size
    stock = sources[2] / WEIGHTS
    taken["upload huggingface_hub"] = _timed(lambda: hub.upload_by_stock_client(stock))
    published: list[registry.Version] = []
    taken["publish rest"] = _timed(
        lambda: published.append(remote.publish(sources[1], NAME, principal=operator, base_fingerprint=FINGERPRINT))
    )
    taken["pull rest"] = _timed(lambda: remote.pull(published[0], folder / "pulled"))
    shutil.rmtree(folder / "pulled")
    return taken


class _Hub:
    """What a Hub client does for one large file: LFS batch, PUT, commit."""

    def __init__(self, port: int) -> None:
        self.port = port
        body = json.dumps({"name": NAME.partition("/")[2], "organization": NAME.partition("/")[0]})
        self._ask("POST", "/api/repos/create", body, "application/json")

    def upload(self, path: Path) -> None:
        """The client hashes the file first, as huggingface_hub does; that is part of the time."""
        with path.open("rb") as stream:
            oid = hashlib.file_digest(stream, "sha256").hexdigest()
        wanted = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": path.stat().st_size}]}
        raw = self._ask(
            "POST", f"/{NAME}.git/info/lfs/objects/batch", json.dumps(wanted | {"hash_algo": "sha256"}), LFS
        )
        address = urlsplit(json.loads(raw)["objects"][0]["actions"]["upload"]["href"])
        _put(self.port, f"{address.path}?{address.query}", path)

    def upload_by_stock_client(self, path: Path) -> None:
        """As `upload`, by huggingface_hub."""
        api = HfApi(endpoint=f"http://{HOST}:{self.port}", token=False)
        api.preupload_lfs_files(NAME, [CommitOperationAdd(f"{path.parent.name}/{path.name}", path)])

    def commit(self, folder: Path) -> None:
        """Make the uploaded file the tree of the main branch."""
        raw = (folder / WEIGHTS).read_bytes()
        file = {"path": WEIGHTS, "algo": "sha256", "oid": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        lines = [{"key": "header", "value": {"summary": "bench", "description": ""}}, {"key": "lfsFile", "value": file}]
        body = "\n".join(json.dumps(line) for line in lines)
        self._ask("POST", f"/api/models/{NAME}/commit/main", body, "application/x-ndjson")

    def _ask(self, method: str, path: str, body: str, content_type: str) -> bytes:
        status, raw = request(self.port, method, path, body.encode(), **{"Content-Type": content_type})
        if status not in (200, 201):
            raise RuntimeError(f"{method} {path}: {status} {raw[:500]!r}")
        return raw


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, CHUNK_BYTES)
        writing.flush()
        os.fsync(writing.fileno())


def _discarded(port: int, source: Path) -> None:
    with source.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")
    _put(port, DISCARD, source)


def _put(port: int, path: str, source: Path) -> None:
    with source.open("rb") as stream:
        length = str(source.stat().st_size)
        status, body = request(port, "PUT", path, stream, **{"Content-Length": length})
    if status != 200:
        raise RuntimeError(f"PUT {path}: {status} {body[:500]!r}")


def _get(port: int, path: str, target: Path) -> None:
    connection = http.client.HTTPConnection(HOST, port, timeout=300)
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"GET {path}: {answer.status}")
    with target.open("wb") as writing:
        shutil.copyfileobj(answer, writing, CHUNK_BYTES)
    connection.close()


def _print(seconds: dict[str, float], megabytes: int) -> None:
    table = Table("transfer", "MB/s", "of the copy", "of raw HTTP")
    for name, took in seconds.items():
        raw = seconds["upload raw" if name.startswith(("upload", "publish")) else "download raw"]
        table.add_row(name, f"{megabytes / took:,.0f}", f"{seconds['copy'] / took:.2f}", f"{raw / took:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
