"""The engine as a process: it starts, answers, says why it cannot start, and never outlives its parent."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import zmq

from basemodel.snapshot import Snapshot
from serving.messages import (
    EngineSettings,
    Failed,
    FromEngine,
    Generate,
    Outputs,
    Ready,
    Sampling,
    Shutdown,
    Stats,
    ToEngine,
    decode_from_engine,
    encode,
)

START_SECONDS = 90


class Peer:
    """The API process's end of the socket."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.address = f"ipc://{folder}/engine.sock"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.bind(self.address)

    def send(self, message: ToEngine) -> None:
        self._socket.send(encode(message))

    def wait_for(self, kind: type[FromEngine], seconds: float = START_SECONDS) -> FromEngine:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._socket.poll(100):
                message = decode_from_engine(self._socket.recv())
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__} within {seconds} s")

    def close(self) -> None:
        self._socket.close(linger=0)
        self._context.term()


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "socket")
    yield peer
    peer.close()


def _command(peer: Peer, snapshot: Snapshot, base: str) -> list[str]:
    settings = EngineSettings(
        socket=peer.address,
        base=base,
        compute_dtype="float32",
        bases_folder=str(snapshot.folder.parent),
        kv_cache_tokens=96,
        threads=1,
    )
    return [sys.executable, "-m", "serving.engine", "--settings", msgspec.json.encode(settings).decode()]


def test_it_serves_over_its_socket_and_ends_when_told(peer: Peer, llama: Snapshot) -> None:
    source = str(llama.folder.parent.parent / "source-llama")
    process = subprocess.Popen(_command(peer, llama, source), stderr=subprocess.PIPE, text=True)
    ready = peer.wait_for(Ready)
    assert isinstance(ready, Ready)
    assert ready.base["fingerprint"] == llama.description.fingerprint
    assert (Path(ready.base_folder) / "tokenizer.json").is_file()
    assert ready.context_tokens == 96 < llama.description.context_tokens  # no request can be longer than the cache
    sampling = Sampling(max_tokens=4, temperature=0, ignore_eos=True)
    peer.send(Generate(request_id="r", tenant="t", prompt_token_ids=[5, 6], sampling=sampling))
    tokens: list[int] = []
    while len(tokens) < 4:
        outputs = peer.wait_for(Outputs)
        assert isinstance(outputs, Outputs)
        tokens += outputs.outputs[0].token_ids
    assert outputs.outputs[0].finish_reason == "length"
    assert isinstance(peer.wait_for(Stats), Stats)
    peer.send(Shutdown())
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the last bits of a request's logits may change" in said, "float32 is not computed by the CPU kernels"


def test_it_says_why_it_cannot_start(peer: Peer, llama: Snapshot, tmp_path: Path) -> None:
    process = subprocess.Popen(_command(peer, llama, str(tmp_path)))
    failed = peer.wait_for(Failed)
    assert isinstance(failed, Failed)
    assert "config.json" in failed.message
    assert process.wait(timeout=20) == 1


def test_it_ends_when_its_parent_is_killed(peer: Peer, llama: Snapshot) -> None:
    """The parent gets no chance to say good-bye."""
    source = str(llama.folder.parent.parent / "source-llama")
    command = _command(peer, llama, source)
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, time; subprocess.Popen({command!r}); time.sleep(600)"]
    )
    peer.wait_for(Ready)
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs([child], timeout=20)[1], "the engine is an orphan"
    assert not Path(peer.address.removeprefix("ipc://")).parent.exists(), "the socket's folder is left"


def test_what_an_engine_is_built_of_is_not_searched_for_garbage() -> None:
    script = "import gc; from serving.engine.build import settle; settle(); print(gc.get_freeze_count(), gc.collect(2))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=100)
    frozen, found = map(int, done.stdout.split())
    assert frozen > 100_000
    assert found < 1_000
