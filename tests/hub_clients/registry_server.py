"""A registry of our own on a port: the command that users run, over a folder with another tenant and a larger base."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import registry
from tests.registry.adapter_folders import base_document, config_document, write_adapter

FINGERPRINT = "5e" * 32
HIDDEN, LAYERS, RANK = 2048, 6, 64
PREFIX = "base_model.model."
START_SECONDS = 120


@dataclass
class RunningRegistry:
    """The server's address, the same registry in process, and what has to be known to use it."""

    url: str
    registry: registry.Registry
    folder: Path
    log_path: Path

    def new_tenant(self, name: str) -> dict[str, str]:
        """Make a tenant; its tokens by role."""
        self.registry.create_tenant(name)
        return {role: self.registry.create_token(name, role).secret for role in ("publisher", "admin")}


def large_base() -> dict[str, Any]:
    """base.json of a base that is large enough for an adapter of 12 MB."""
    document = base_document(FINGERPRINT, name="large")
    modules = {
        f"model.layers.{layer}.self_attn.{part}": {
            "kind": "linear",
            "out_features": HIDDEN,
            "in_features": HIDDEN,
            "quantized": True,
        }
        for layer in range(LAYERS)
        for part in ("q_proj", "v_proj")
    }
    return document | {"modules": modules}


def large_adapter(folder: Path, *, seed: int = 0) -> Path:
    """A sound adapter of 12 MB on that base, as stock PEFT writes one: without a manifest of ours."""
    generator = np.random.default_rng(seed)
    tensors = {}
    for module in large_base()["modules"]:
        tensors[f"{PREFIX}{module}.lora_A.weight"] = _random(generator, (RANK, HIDDEN))
        tensors[f"{PREFIX}{module}.lora_B.weight"] = _random(generator, (HIDDEN, RANK))
    config = config_document(r=RANK, base_model_name_or_path="large")
    return write_adapter(folder, config=config, tensors=tensors, has_manifest=False)


@contextmanager
def running_registry(folder: Path) -> Iterator[RunningRegistry]:
    """Start the server over a new registry; it ends by SIGTERM, and its exit status is checked."""
    data, log_path = folder / "registry", folder / "server.log"
    with registry.open(data) as opened:
        opened.register_base(large_base())
        opened.register_base(base_document())
        opened.create_tenant("umbrella")
        opened.create_token("umbrella", "reader")  # from here on, everybody needs a token
        small = write_adapter(folder / "foreign")
        opened.publish(small, "umbrella/secret", principal=registry.Principal.operator())
        command = [sys.executable, "-m", "loraplex", "registry", "serve", "--data", str(data), "--port", "0"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        try:
            url = _wait_for_address(process, log_path)
            yield RunningRegistry(url, opened, data, log_path)
        finally:
            process.terminate()
            assert process.wait(60) == 0, log_path.read_text()


def _wait_for_address(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = re.search(r"http://\S+:\d+", log_path.read_text())
        if found:
            return found.group()
        assert process.poll() is None, log_path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"the server did not start: {log_path.read_text()}")


def _random(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    return (generator.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float32)
