"""The engine process: messages in, steps, messages out.

It does: connect to the API process, load the base, run the loop, send snapshots, and end when the API process is gone.
It does not: anything a request asks for (`engine`).
Run by the API process as `python -m serving.engine --settings '<json of serving.messages.EngineSettings>'`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import time
from pathlib import Path

import msgspec
import torch
import zmq

from basemodel.errors import BaseModelError
from serving.engine.build import build_engine, settle, warm_up
from serving.engine.engine import Engine
from serving.engine.errors import EngineError
from serving.messages import (
    Abort,
    EngineSettings,
    Failed,
    FromEngine,
    Generate,
    Keep,
    Outputs,
    Preload,
    Ready,
    Shutdown,
    decode_to_engine,
    encode,
)

logger = logging.getLogger(__name__)
STATS_EVERY_SECONDS = 0.25
IDLE_POLL_MS = 200
# While requests wait for an adapter that is being read, the loop looks again after this time.
LOADING_POLL_MS = 1


def main() -> int:
    """Entry point of the process. Exit status 0 after a shutdown, 1 where the engine could not start."""
    parser = argparse.ArgumentParser(prog="python -m serving.engine")
    parser.add_argument("--settings", required=True, help="JSON of serving.messages.EngineSettings")
    settings = msgspec.json.decode(parser.parse_args().settings, type=EngineSettings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s engine %(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the API process decides when to end
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.linger = 1000
    socket.connect(settings.socket)
    link = EngineLink(socket, parent_pid=os.getppid())
    try:
        return _serve(settings, link)
    finally:
        socket.close()
        context.term()
        if link.is_orphaned:
            _remove_socket(settings.socket)


class EngineLink:
    """The engine's end of the socket. `parent_pid` is the API process, without which there is no reason to run."""

    def __init__(self, socket: zmq.Socket[bytes], parent_pid: int) -> None:
        self._socket = socket
        self._parent_pid = parent_pid

    def send(self, message: FromEngine) -> None:
        """Send a message; where the API process reads too slowly this waits, and so do the requests."""
        self._socket.send(encode(message))

    def receive(self, wait_ms: int) -> list[Generate | Abort | Preload | Keep | Shutdown]:
        """All messages that are there, after waiting up to `wait_ms` for the first."""
        messages = []
        if self._socket.poll(wait_ms):
            while self._socket.poll(0):
                messages.append(decode_to_engine(self._socket.recv()))
        return messages

    @property
    def is_orphaned(self) -> bool:
        """Whether the API process has ended."""
        return os.getppid() != self._parent_pid


def _serve(settings: EngineSettings, link: EngineLink) -> int:
    begin = time.perf_counter()
    try:
        engine = build_engine(settings)
        warm_up(engine, settings)
        settle()
    except (BaseModelError, EngineError, torch.OutOfMemoryError, ValueError) as error:
        link.send(Failed(message=str(error)))
        return 1
    link.send(_ready(engine, settings, time.perf_counter() - begin))
    loop(engine, link)
    engine.pool.close()
    engine.constrained.close()
    return 0


def loop(engine: Engine, link: EngineLink) -> None:
    """Steps until a Shutdown message, or until the API process is gone."""
    stats_at = 0.0
    while True:
        stepping = bool(engine.scheduler.running)
        for message in link.receive(0 if stepping else LOADING_POLL_MS if engine.has_work else IDLE_POLL_MS):
            if isinstance(message, Generate):
                engine.add(message)
            elif isinstance(message, Abort):
                engine.abort(message.request_id)
            elif isinstance(message, Preload):
                engine.preload(message.adapter)
            elif isinstance(message, Keep):
                engine.keep(message.adapters)
            else:
                return
        outputs = engine.step() if engine.has_work else []
        if outputs:
            link.send(Outputs(outputs=outputs))
        now = time.monotonic()
        if now - stats_at >= STATS_EVERY_SECONDS:
            link.send(engine.stats())
            stats_at = now
            if link.is_orphaned:
                logger.warning("the API process is gone; ending")
                return


def _remove_socket(address: str) -> None:
    """What the API process would have removed: its socket, and the folder that it made for it."""
    path = Path(address.removeprefix("ipc://"))
    with contextlib.suppress(OSError):  # not empty, or another's: then it stays
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _ready(engine: Engine, settings: EngineSettings, seconds: float) -> Ready:
    base = engine.runner.base
    return Ready(
        base=base.description.to_json(),
        base_folder=str(base.folder.resolve()),
        device=settings.device,
        context_tokens=engine.context_tokens,
        kv_blocks=engine.scheduler.blocks.total,
        kv_block_tokens=settings.kv_block_tokens,
        adapter_slots=settings.adapter_slots,
        max_running=settings.max_running,
        load_seconds=seconds,
        end_token_ids=tuple(sorted(engine.end_token_ids)),
    )
