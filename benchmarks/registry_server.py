"""A registry's server in a process of its own, for the benchmarks; and an adapter of any size, with its base."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HOST = "127.0.0.1"
START_SECONDS = 60
BLOCK_BYTES = 1 << 16
FINGERPRINT = "ab" * 32
WIDTH = 4096
RANK = 64
LORA_PAIR_BYTES = 2 * RANK * WIDTH * 4


@contextmanager
def registry_server(data: Path) -> Iterator[int]:
    """`loraplex registry serve` over the folder; its port. It ends with the block."""
    port = free_port()
    command = [sys.executable, "-m", "loraplex", "registry", "serve", "--data", str(data), "--port", str(port)]
    with served(command, port):
        yield port


@contextmanager
def served(command: list[str], port: int) -> Iterator[None]:
    """A process that listens on the port while the block runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(timeout=START_SECONDS)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def request(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    """One request on a connection of its own; the status and the body."""
    connection = http.client.HTTPConnection(HOST, port, timeout=300, blocksize=BLOCK_BYTES)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def base_document(layers: int) -> dict[str, Any]:
    """base.json of a base with one wide module a layer."""
    module = {"kind": "linear", "out_features": WIDTH, "in_features": WIDTH, "quantized": True}
    return {
        "schema": 1,
        "name": "wide",
        "revision": None,
        "fingerprint": FINGERPRINT,
        "quantization": {
            "mode": "nf4",
            "block_size": 64,
            "double_quantization": True,
            "compute_dtype": "bfloat16",
        },
        "architecture": "LlamaForCausalLM",
        "vocabulary_size": 96,
        "context_tokens": 128,
        "modules": {f"model.layers.{layer}.self_attn.q_proj": dict(module) for layer in range(layers)},
    }


def write_adapter(folder: Path, *, size_bytes: int, seed: int) -> Path:
    """An adapter of about so many bytes for the base with as many layers; its weights differ by the seed."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers_of(size_bytes)):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = generator.random((RANK, WIDTH), dtype=np.float32)
        tensors[f"{name}.lora_B.weight"] = generator.random((WIDTH, RANK), dtype=np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    config |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": "wide"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def layers_of(size_bytes: int) -> int:
    """How many layers an adapter of so many bytes has."""
    return max(1, round(size_bytes / LORA_PAIR_BYTES))
