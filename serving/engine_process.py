"""One start of the engine: its private socket, its process, and the messages between them.

It does: make a private folder with an ipc:// socket, start the process, send and receive, notice its death, end it.
It does not: start it again or know requests (`serving.engine_client`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from serving.errors import EngineBusyError, EngineLostError, EngineStartError
from serving.messages import Abort, EngineSettings, FromEngine, Shutdown, ToEngine, decode_from_engine, encode

LAST_WORDS_MS = 50

logger = logging.getLogger(__name__)


class EngineProcess:
    """The engine process with its socket. Owned by one `EngineClient`, used on its event loop only."""

    def __init__(self, folder: Path, context: zmq.asyncio.Context, socket: zmq.asyncio.Socket) -> None:
        self._folder = folder
        self._context = context
        self._socket = socket
        self._process: asyncio.subprocess.Process | None = None
        self._outgoing: deque[ToEngine] = deque()
        self._outgoing_ready = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    @classmethod
    async def launch(
        cls, command: Sequence[str], settings_for: Callable[[str], EngineSettings], *, queued_messages: int
    ) -> EngineProcess:
        """Bind a socket in a folder that only this user can enter, and start the engine on it."""
        folder = Path(tempfile.mkdtemp(prefix="loraplex-"))
        address = f"ipc://{folder / 'engine'}"
        context = zmq.asyncio.Context(io_threads=1)
        socket = context.socket(zmq.PAIR)
        engine = cls(folder, context, socket)
        try:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, queued_messages)
            socket.bind(address)
            settings = msgspec.json.encode(settings_for(address)).decode()
            # A session of its own: Ctrl-C in the terminal must reach the server alone, which then drains the engine.
            engine._process = await asyncio.create_subprocess_exec(
                *command, "--settings", settings, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        except (OSError, zmq.ZMQError) as error:
            await engine.stop(0.0)
            raise EngineStartError(f"its process or socket could not be made ({error})") from error
        engine._sender = asyncio.create_task(engine._send_queued(), name="engine-sender")
        return engine

    @property
    def process_id(self) -> int | None:
        """The operating system's id of the process."""
        return None if self._process is None else self._process.pid

    @property
    def queued(self) -> int:
        """Messages that the engine has not yet taken from this process."""
        return len(self._outgoing)

    def send(self, message: ToEngine, *, limit: int) -> None:
        """Queue a message. An `Abort` always fits: there is at most one for each request that was let in."""
        if len(self._outgoing) >= limit and not isinstance(message, Abort):
            raise EngineBusyError(len(self._outgoing))
        self._outgoing.append(message)
        self._outgoing_ready.set()

    async def messages(self, silence_seconds: Callable[[], float]) -> AsyncGenerator[FromEngine, None]:
        """Everything that the engine says until it ends; then EngineLostError.

        It is also lost when it says nothing for as long as `silence_seconds()` asks at that moment.
        """
        process = self._running()
        death = asyncio.create_task(process.wait())
        incoming = self._receive()
        try:
            while True:
                events: set[asyncio.Future[Any]] = {death, incoming}
                await asyncio.wait(events, timeout=silence_seconds(), return_when=asyncio.FIRST_COMPLETED)
                if incoming.done():
                    message = _decoded(incoming.result())
                    incoming = self._receive()
                    yield message
                elif death.done():
                    # What it wrote before it ended may still be on its way through the socket.
                    await asyncio.wait({incoming}, timeout=LAST_WORDS_MS / 1000)
                    if not incoming.done():
                        raise EngineLostError(death.result())
                else:
                    raise EngineLostError(None)
        finally:
            death.cancel()
            incoming.cancel()

    async def stop(self, grace_seconds: float, *, is_listening: bool = False) -> None:
        """End the process: ask where it listens, then terminate, then kill. Leaves no process, socket or folder."""
        if self._process is not None:
            if is_listening and self._process.returncode is None:
                self._outgoing.append(Shutdown())
                self._outgoing_ready.set()
                await self._ended(grace_seconds)
            if self._process.returncode is None:
                self._signal(signal.SIGTERM)
                await self._ended(grace_seconds)
            self._signal(signal.SIGKILL)  # also what the engine itself started and left
            await self._process.wait()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        self._socket.close(linger=0)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self) -> asyncio.Future[bytes]:
        incoming: asyncio.Future[bytes] = asyncio.ensure_future(self._socket.recv())
        return incoming

    async def _ended(self, seconds: float) -> None:
        """Wait for the end of the process, at most so long."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._running().wait(), seconds)

    def _signal(self, signal_number: signal.Signals) -> None:
        """Signal the engine's whole process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._running().pid, signal_number)

    async def _send_queued(self) -> None:
        while True:
            await self._outgoing_ready.wait()
            self._outgoing_ready.clear()
            while self._outgoing:
                await self._socket.send(encode(self._outgoing[0]))
                self._outgoing.popleft()

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "launch() has not started the process"
        return self._process


def _decoded(data: bytes) -> FromEngine:
    """A message; one that cannot be read means that the engine is not to be trusted any more."""
    try:
        message: FromEngine = decode_from_engine(data)
    except msgspec.MsgspecError as error:
        logger.error("the engine sent a message that is not one: %s", error)
        raise EngineLostError(None) from error
    return message
