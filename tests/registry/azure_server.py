"""Azurite, Microsoft's emulator of Azure's blob storage, for the tests of the blob store. It is no part of the setup.

It brings 365 MB of Node packages: `npm install -g azurite` puts `azurite-blob` on the PATH, and without it these tests
are skipped. Its account and key are made here, for one run.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import pytest
from obstore.store import AzureStore

ACCOUNT, CONTAINER = "team", "adapters"
API_VERSION = "2021-08-06"
START_SECONDS = 60


@dataclass
class AzureServer:
    """A running server with one container."""

    endpoint: str
    key: str

    def url(self, prefix: str, **options: str) -> str:
        """The address of the blobs below a prefix."""
        rest = "".join(f"&{name}={value}" for name, value in options.items())
        return f"az://{ACCOUNT}/{CONTAINER}/{prefix}?endpoint={self.endpoint}{rest}"

    def bucket(self) -> AzureStore:
        """The whole container, for tests that look at or damage what is in it."""
        config = {"account_name": ACCOUNT, "account_key": self.key, "endpoint": self.endpoint}
        return AzureStore(CONTAINER, config=config, client_options={"allow_http": True})  # type: ignore[arg-type]


@contextmanager
def azure_server(folder: Path) -> Iterator[AzureServer]:
    """Start it in a process of its own, and make the container."""
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("Azurite is not installed: npm install -g azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    options = ["--inMemoryPersistence", "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen(
        [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options],
        cwd=folder,
        env=os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{key}"},
        stdout=subprocess.DEVNULL,
    )
    try:
        server = AzureServer(f"http://127.0.0.1:{port}/{ACCOUNT}", key)
        _make_container(server, process)
        yield server
    finally:
        process.kill()
        process.wait(timeout=START_SECONDS)


def _make_container(server: AzureServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(_creation(server), timeout=5).close()
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert process.poll() is None, "Azurite did not start"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            return


def _creation(server: AzureServer) -> urllib.request.Request:
    """Signed by hand (Shared Key): obstore makes no containers."""
    headers = f"x-ms-date:{formatdate(usegmt=True)}\nx-ms-version:{API_VERSION}"
    resource = f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    signed = hmac.new(
        base64.b64decode(server.key), f"PUT{chr(10) * 12}{headers}\n{resource}".encode(), hashlib.sha256
    ).digest()
    request = urllib.request.Request(f"{server.endpoint}/{CONTAINER}?restype=container", method="PUT")
    for line in headers.splitlines():
        name, _, value = line.partition(":")
        request.add_header(name, value)
    request.add_header("Authorization", f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}")
    request.add_header("Content-Length", "0")
    return request
