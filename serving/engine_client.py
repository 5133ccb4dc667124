"""The API process's side of the engine: one running engine at a time, and the streams of the requests in it.

It does: start the engine, watch it, start it again when it is lost, route its outputs to the requests.
It does not: resolve adapters or count tokens, and it never imports `serving.engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from enum import Enum

from serving.engine_process import EngineProcess
from serving.engine_totals import EngineTotals
from serving.errors import (
    EngineError,
    EngineLostError,
    EngineStartError,
    EngineUnavailableError,
    ServingError,
    ShuttingDownError,
)
from serving.messages import (
    Abort,
    AdapterUse,
    EngineSettings,
    Failed,
    Fault,
    FromEngine,
    Generate,
    Keep,
    Output,
    Outputs,
    Preload,
    Ready,
    Stats,
)
from serving.settings import SupervisionSettings

logger = logging.getLogger(__name__)

OnReady = Callable[[Ready], Awaitable[Sequence[AdapterUse]]]
Inbox = asyncio.Queue[Output | EngineError]


class EngineState(Enum):
    """Where the engine is in its life, as the API process sees it."""

    STARTING = "it is starting"
    READY = "it is ready"
    RESTARTING = "it was lost and is starting again"
    STOPPING = "the server is shutting down"
    GIVEN_UP = "it failed too often"


class EngineClient:
    """Supervises the engine and streams its outputs. Used on one event loop; nobody else changes its state.

    `on_ready` runs after each start of the engine and before the first request, and says which adapters to preload;
    what it raises ends that start.
    """

    def __init__(
        self, settings: SupervisionSettings, settings_for: Callable[[str], EngineSettings], *, on_ready: OnReady
    ) -> None:
        self._settings = settings
        self._settings_for = settings_for
        self._on_ready = on_ready
        self._engine: EngineProcess | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._kept: tuple[AdapterUse, ...] = ()
        self.failure: EngineError | None = None  # why it was given up
        self._heard_at = 0.0
        self._ready_at: float | None = None
        self.state = EngineState.STARTING
        self.ready: Ready | None = None
        self.stats: Stats | None = None
        self.totals = EngineTotals()
        self.starts = 0
        self.was_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether an engine takes requests and has spoken within `silence_seconds`."""
        return self.state is EngineState.READY and self.silent_seconds <= self._settings.silence_seconds

    @property
    def silent_seconds(self) -> float:
        """Seconds since the engine's last message."""
        return time.monotonic() - self._heard_at

    @property
    def in_flight(self) -> int:
        """Requests that the engine holds for this process."""
        return len(self._inboxes)

    @property
    def process_id(self) -> int | None:
        """The running engine's process id."""
        return None if self._engine is None else self._engine.process_id

    def start(self) -> None:
        """Begin to start the engine; `wait_settled` tells how the first start ended."""
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def wait_settled(self) -> Ready | None:
        """Wait until the engine is ready for the first time; None where its start failed or was called off."""
        await self._settled.wait()
        return self.ready

    async def wait_given_up(self) -> None:
        """Return when the engine will not be started again (it failed too often, or the server stops)."""
        if self._supervisor is not None:
            await asyncio.wait({self._supervisor})

    def fail_in_flight(self) -> None:
        """End every request that is still in the engine, and take no more: the server's grace is over."""
        self.state = EngineState.STOPPING
        self._fail_all(ShuttingDownError())

    async def stop(self) -> None:
        """End the engine and fail what is still in flight."""
        self.fail_in_flight()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)

    async def stream(self, request: Generate) -> AsyncGenerator[Output, None]:
        """Run one request: its outputs up to the one with a finish reason.

        Leaving the generator early aborts the request in the engine. Raises EngineUnavailableError, EngineBusyError,
        EngineLostError when the engine ends under the request, and ShuttingDownError when the server does.
        """
        inbox = self._open(request)
        finished = False
        try:
            while not finished:
                item = await inbox.get()
                if isinstance(item, EngineError):
                    finished = True
                    raise item
                finished = item.finish_reason is not None
                yield item
        finally:
            del self._inboxes[request.request_id]
            if not finished:
                self._tell(Abort(request_id=request.request_id))

    def _open(self, request: Generate) -> Inbox:
        if self.state is EngineState.STOPPING:
            raise ShuttingDownError
        if self._engine is None or self.state is not EngineState.READY:
            raise EngineUnavailableError(self.state.value)
        assert request.request_id not in self._inboxes, "request ids are unique"
        self._engine.send(request, limit=self._settings.queued_messages)
        inbox = self._inboxes[request.request_id] = Inbox()
        return inbox

    def preload(self, adapter: AdapterUse) -> None:
        """Bring an adapter into the engine's memory, if there is an engine; nobody is told when it is there."""
        self._tell(Preload(adapter=adapter))

    def keep(self, adapters: tuple[AdapterUse, ...]) -> None:
        """Have these adapters kept in the memory of the engine, and of those that are started after it."""
        self._kept = adapters
        self._tell(Keep(adapters=adapters))

    def _tell(self, message: Abort | Preload | Keep) -> None:
        """Send to the engine if there is one: a lost engine has nothing to abort or to preload."""
        if self._engine is not None and self.state is EngineState.READY:
            self._engine.send(message, limit=self._settings.queued_messages)

    async def _supervise(self) -> None:
        """Start the engine; whenever it is lost, fail its requests and start it again, more and more slowly."""
        failures_in_a_row = 0
        try:
            while True:
                self._ready_at = None
                error = await self._run_engine()
                failures_in_a_row = 1 if self._was_steady() else failures_in_a_row + 1
                if not self.was_ready or failures_in_a_row > self._settings.restart_limit:
                    self._give_up(error)
                    return
                delay_seconds = self._settings.first_backoff_seconds * 2 ** (failures_in_a_row - 1)
                delay_seconds = min(delay_seconds, self._settings.longest_backoff_seconds)
                logger.error("engine lost, starting it again in %.2f s: %s", delay_seconds, error)
                await asyncio.sleep(delay_seconds)
        except Exception:
            logger.exception("the supervision of the engine failed")
            self._give_up(self._lose(EngineStartError("its supervision failed, see the log")))
            raise
        finally:
            self._settled.set()

    async def _run_engine(self) -> EngineError:
        """One start of the engine, until it is lost; returns why. Cancelling it ends the engine in order."""
        grace_seconds = 0.0
        is_listening = False
        try:
            self.starts += 1
            self._engine = await EngineProcess.launch(
                self._settings.command, self._settings_for, queued_messages=self._settings.queued_messages
            )
            async with contextlib.aclosing(self._engine.messages(self._longest_silence_seconds)) as messages:
                async for message in messages:
                    self._heard_at = time.monotonic()
                    await self._take(message)
            raise EngineLostError(None)
        except EngineLostError as error:
            return self._lose(error if self.ready else EngineStartError(f"{error} Its log says why."))
        except ServingError as error:
            return self._lose(error if isinstance(error, EngineError) else EngineStartError(str(error)))
        except asyncio.CancelledError:
            grace_seconds = self._settings.stop_seconds
            is_listening = self.ready is not None
            raise
        finally:
            engine, self._engine = self._engine, None
            if engine is not None:
                await _uninterrupted(engine.stop(grace_seconds, is_listening=is_listening))

    def _was_steady(self) -> bool:
        """Whether the engine that has just ended had worked for a while: its end is then no sign of a loop."""
        return self._ready_at is not None and time.monotonic() - self._ready_at > self._settings.steady_seconds

    def _longest_silence_seconds(self) -> float:
        return self._settings.stall_seconds if self.ready is not None else self._settings.start_seconds

    async def _take(self, message: FromEngine) -> None:
        match message:
            case Outputs(outputs=outputs):
                for output in outputs:
                    # A request that was aborted meanwhile has no inbox any more.
                    if (inbox := self._inboxes.get(output.request_id)) is not None:
                        inbox.put_nowait(output)
            case Stats():
                self.totals.add(self.stats, message)
                self.stats = message
            case Ready():
                adapters = await self._on_ready(message)
                self._heard_at = self._ready_at = time.monotonic()
                self.ready = message
                self.was_ready = True
                self.state = EngineState.READY
                for adapter in adapters:
                    self._tell(Preload(adapter=adapter))
                if self._kept:
                    self._tell(Keep(adapters=self._kept))
                self._settled.set()
            case Failed(message=reason):
                raise EngineStartError(reason)

    def _lose(self, error: EngineError) -> EngineError:
        """Turn readiness off and give every request in flight its clean end, at once."""
        self.ready = None
        self.stats = None
        self.state = EngineState.RESTARTING
        self._fail_all(error)
        return error

    def _give_up(self, error: EngineError) -> None:
        self.failure = error
        self.state = EngineState.GIVEN_UP
        logger.error("engine not started again: %s", error)

    def _fail_all(self, error: EngineError) -> None:
        for inbox in self._inboxes.values():
            inbox.put_nowait(error)


async def _uninterrupted(work: Coroutine[None, None, None]) -> None:
    """Finish the work even when this task is cancelled meanwhile: it leaves nothing behind."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def fault_of(output: Output) -> Fault:
    """The fault of an output whose finish reason is `error` or `aborted`."""
    return output.fault or Fault(code="internal", message="The request was stopped by the engine.")
