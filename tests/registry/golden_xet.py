"""Golden bytes of real Xet clients: what hf_xet sends for a few files. Run to make them anew:

    python -m tests.registry.golden_xet PYTHON...     each PYTHON has a huggingface_hub with some hf_xet

Each release has a folder in tests/registry/golden_xet/: its xorbs by their hash, and `shard-N`. The files themselves
are made by `originals`, which needs no more than the standard library, because it runs inside of the clients, too.
"""

from __future__ import annotations

import http.server
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

FOLDER = Path(__file__).parent / "golden_xet"
CLIENT = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from golden_xet import originals
import hf_xet, importlib.metadata
from huggingface_hub._commit_api import CommitOperationAdd, _upload_xet_files
folder = pathlib.Path(sys.argv[2])
additions = []
for name, content in originals().items():
    (folder / name).write_bytes(content)
    additions.append(CommitOperationAdd(name, str(folder / name)))
    additions[-1].upload_info
_upload_xet_files(additions=additions, repo_type="model", repo_id="acme/x", headers={}, endpoint=sys.argv[3],
                  revision="main")
print(importlib.metadata.version("hf_xet"))
"""


def originals() -> dict[str, bytes]:
    """The files that were uploaded: each kind of packing, chunks that repeat, and a file of one byte."""
    generator = random.Random(20)
    text = b"".join(b"line %d of a text that packs well\n" % number for number in range(1500))
    return {
        "random.bin": generator.randbytes(20_000),
        "floats.bin": struct.pack("<10000f", *(generator.gauss(0, 0.02) for _ in range(10_000))),
        "text.bin": text,
        "longer.bin": b"before " + text + b"after",
        "zeros.bin": bytes(700_000),
        "one.bin": b"x",
    }


class _Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bodies: list[tuple[str, bytes]]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if "xet-write-token" not in self.path:
            self._answer(404, {"error": "no"})
            return
        url, expires_at = f"http://{self.headers['host']}/cas/golden", int(time.time()) + 3600
        document = {"accessToken": "token", "exp": expires_at, "casUrl": url}
        self._answer(200, document, {"X-Xet-Access-Token": "token", "X-Xet-Token-Expiration": str(expires_at),
                                     "X-Xet-Cas-Url": url})  # fmt: skip

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if "grants" in self.path or "/v2/" in self.path or "telemetry" in self.path:
            self._answer(404, {"error": "no"})
            return
        self.bodies.append((self.path, body))
        self._answer(200, {"was_inserted": True} if "xorb" in self.path else {"result": 1})

    def _answer(self, status: int, document: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def main(pythons: list[str]) -> None:
    """Let each client upload, and keep what it sent."""
    for python in pythons:
        bodies: list[tuple[str, bytes]] = []
        handler = type("Receiver", (_Receiver,), {"bodies": bodies})
        with (
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
            tempfile.TemporaryDirectory() as work,
        ):
            threading.Thread(target=server.serve_forever, daemon=True).start()
            endpoint = f"http://127.0.0.1:{server.server_address[1]}"
            command = [python, "-c", CLIENT, str(Path(__file__).parent), work, endpoint]
            environment = {**os.environ, "HF_HOME": work + "/home", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
            environment.pop("HF_HUB_OFFLINE", None)
            run = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
            server.shutdown()
        folder = FOLDER / run.stdout.split()[-1]
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        shards = 0
        for path, body in bodies:
            if "shard" in path:
                shards += 1
            (folder / (f"shard-{shards}" if "shard" in path else path.rpartition("/")[2])).write_bytes(body)


if __name__ == "__main__":
    main(sys.argv[1:])
