"""A commit as a Hub client makes it, over HTTP, to a server in this very process: it dies when the server does.

Weights go in parts, a second large file in one piece, the configuration inline; then they are committed. The result is
told only when the answer to the commit has arrived.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpcore
import httpx
import uvicorn
import uvicorn.lifespan.off
import uvicorn.protocols.http.httptools_impl

import registry
from registry.errors import StorageError
from registry.http.authenticator import Authenticator
from registry.hub.app import create_hub_app
from registry.hub.context import HubSettings

WEIGHTS = "adapter_model.safetensors"
PART_BYTES = 5_000
"""The tiny adapter's weights are two parts."""
NOTES_REPEATS = 30
START_SECONDS = 30
INHERITED = (httpcore, uvicorn.lifespan.off, uvicorn.protocols.http.httptools_impl)
"""Loaded when they are first needed otherwise, in each worker anew."""


def hub_commit(reg: registry.Registry, *, folder: str, name: str) -> str:
    """Upload the adapter in the folder and commit it to main; returns the commit's id. Raises StorageError."""
    with _serving(reg) as url, httpx.Client(base_url=url, timeout=60, verify=False) as client:
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        large = {WEIGHTS: files.pop(WEIGHTS)}
        large["notes.dat"] = _sha256(large[WEIGHTS]).encode() * NOTES_REPEATS  # the same when it is done again
        objects = [{"oid": _sha256(raw), "size": len(raw)} for raw in large.values()]
        body = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": objects}
        found = _checked(client.post(f"/{name}.git/info/lfs/objects/batch", json=body)).json()["objects"]
        for raw, document in zip(large.values(), found, strict=True):
            _upload(client, raw, document)
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "over the Hub protocol"}}]
        lines += [
            {"key": "file", "value": {"path": path, "content": base64.b64encode(raw).decode(), "encoding": "base64"}}
            for path, raw in files.items()
        ]
        lines += [
            {"key": "lfsFile", "value": {"path": path, "oid": _sha256(raw), "algo": "sha256", "size": len(raw)}}
            for path, raw in large.items()
        ]
        content = "\n".join(map(json.dumps, lines))
        answer = _checked(client.post(f"/api/models/{name}/commit/main", content=content))
        return str(answer.json()["commitOid"])


def _upload(client: httpx.Client, raw: bytes, document: dict[str, Any]) -> None:
    if "actions" not in document:  # it was sent before
        return
    action = document["actions"]["upload"]
    parts = sorted((int(key), url) for key, url in action.get("header", {}).items() if key.isdecimal())
    if not parts:
        _checked(client.put(action["href"], content=raw))
    else:
        etags = []
        for number, url in parts:
            piece = raw[(number - 1) * PART_BYTES : number * PART_BYTES]
            etag = _checked(client.put(url, content=piece)).headers["etag"]
            etags.append({"partNumber": number, "etag": etag})
        _checked(client.post(action["href"], json={"oid": document["oid"], "parts": etags}))
    verify = document["actions"]["verify"]["href"]
    _checked(client.post(verify, json={"oid": document["oid"], "size": document["size"]}))


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code == 503:
        raise StorageError(answer.text)
    assert answer.status_code == 200, answer.text
    return answer


@contextmanager
def _serving(reg: registry.Registry) -> Iterator[str]:
    authenticator = Authenticator(reg, is_loopback=True, remember_seconds=0.0)
    settings = HubSettings(part_bytes=PART_BYTES)
    app = create_hub_app(reg, authenticate=authenticator.principal_of_scope, settings=settings)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, http="httptools", ws="none", log_level="critical", lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.002)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            app.close()
            authenticator.close()


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
