"""The API process's side of the compiling processes: is this schema, pattern or grammar one that can be followed?

It does: keep a few worker processes (started with the first grammar, ended when they were idle for long), give each
tenant one of them at a time, end one that takes too long, and remember verdicts. It does not: compile (`worker`).

Verdicts are remembered per tenant: how fast an answer comes tells nobody what another tenant's schemas are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

from serving.grammars.errors import GrammarRefusedError
from serving.grammars.source import MOST_SCHEMA_CHARACTERS, GrammarSource
from serving.grammars.verdicts import Verdict, WorkerReply, WorkerSettings

logger = logging.getLogger(__name__)

WORKERS = 2
COMPILE_SECONDS = 2
COMPILE_BYTES = 768 * 1024 * 1024
# Wall-clock backstops, for a machine so busy that processor time does not pass.
START_SECONDS = 120.0
ANSWER_SECONDS = 30.0
REMEMBERED_VERDICTS = 512
REMEMBERED_CHARACTERS = 16 * 1024 * 1024
LINE_BYTES = 64 * MOST_SCHEMA_CHARACTERS
TOO_MUCH = f"it takes more than {COMPILE_SECONDS} s or {COMPILE_BYTES >> 20} MiB to compile; make it smaller"


Key = tuple[str, bytes]


class GrammarChecker:
    """Used on one event loop. `judged` hears `compiled` or `refused` for each source that was not known. A process that
    was not asked for `idle_seconds` ends; the next source starts one.
    """

    def __init__(self, settings: WorkerSettings, *, idle_seconds: float, judged: Callable[[str], None]) -> None:
        self._judged = judged
        self._idle = [_Worker(settings, idle_seconds) for _ in range(WORKERS)]
        self._all = tuple(self._idle)
        self._free = asyncio.Semaphore(WORKERS)
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()  # by tenant: who has its turn or waits for it
        self._verdicts: OrderedDict[Key, Verdict] = OrderedDict()
        self._under_way: dict[Key, asyncio.Task[Verdict]] = {}

    async def check(self, tenant: str, source: GrammarSource) -> str:
        """llguidance's form of the source. Raises GrammarRefusedError."""
        key = (tenant, hashlib.sha256(msgspec.json.encode(source)).digest())
        if (known := self._verdicts.get(key)) is not None:
            self._verdicts.move_to_end(key)
            return known.opened()
        if (task := self._under_way.get(key)) is None:
            task = self._under_way[key] = asyncio.create_task(self._judge(key, source))
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return (await asyncio.shield(task)).opened()  # a client that leaves does not stop a worker in mid-sentence

    async def close(self) -> None:
        """End the processes."""
        under_way = list(self._under_way.values())
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for worker in self._all:
            await worker.end()

    async def _judge(self, key: Key, source: GrammarSource) -> Verdict:
        tenant = key[0]
        turn = self._turns.setdefault(tenant, asyncio.Lock())
        self._waiting[tenant] += 1
        try:
            async with turn, self._free:
                worker = self._idle.pop()
                try:
                    verdict = await worker.ask(source)
                finally:
                    self._idle.append(worker)
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant], self._turns[tenant]
        self._judged("compiled" if verdict.refusal is None else "refused")
        self._remember(key, verdict)
        return verdict

    def _remember(self, key: Key, verdict: Verdict) -> None:
        self._verdicts[key] = verdict
        characters = sum(each.characters for each in self._verdicts.values())
        while len(self._verdicts) > REMEMBERED_VERDICTS or characters > REMEMBERED_CHARACTERS:
            _, dropped = self._verdicts.popitem(last=False)
            characters -= dropped.characters


class _Worker:
    """One process, started when it is first asked and again after it was ended. One source at a time."""

    def __init__(self, settings: WorkerSettings, idle_seconds: float) -> None:
        self._settings = settings
        self._idle_seconds = idle_seconds
        self._process: asyncio.subprocess.Process | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None  # of a process that was idle

    async def ask(self, source: GrammarSource) -> Verdict:
        """The process's verdict; one that ends over it has given one, too. Raises GrammarRefusedError where no
        process can be had at all.
        """
        if self._expiry is not None:
            self._expiry.cancel()
        try:
            return await self._ask(source)
        finally:
            self._expiry = asyncio.get_running_loop().call_later(self._idle_seconds, self._expire)

    async def _ask(self, source: GrammarSource) -> Verdict:
        process = self._process or await self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(source) + b"\n")
            await process.stdin.drain()
            reply = await self._read(process, ANSWER_SECONDS)
        except (TimeoutError, EOFError, ConnectionError, asyncio.CancelledError) as error:
            await self.end()
            if isinstance(error, asyncio.CancelledError):
                raise
            logger.warning("a grammar of kind %s ended its compiler", source.kind)
            return Verdict("", TOO_MUCH)
        return Verdict(reply.grammar or "", reply.refusal)

    async def end(self) -> None:
        """Kill the process, if there is one."""
        if self._expiry is not None:
            self._expiry.cancel()
        process, self._process = self._process, None
        if process is not None:
            await _kill(process)
        if self._ending is not None:
            await self._ending

    def _expire(self) -> None:
        """It was idle for long. From now on it is nobody's: whoever asks next starts another."""
        process, self._process = self._process, None
        if process is not None:
            self._ending = asyncio.create_task(_kill(process))

    async def _start(self) -> asyncio.subprocess.Process:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "serving.grammars.worker",
            msgspec.json.encode(self._settings).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES,
        )
        try:
            ready = await self._read(process, START_SECONDS)
        except BaseException as error:
            await self.end()
            if isinstance(error, (TimeoutError, EOFError)):
                raise GrammarRefusedError("the compiler does not start; the server's log says why") from None
            raise
        if ready.refusal is not None:
            await self.end()
            raise GrammarRefusedError(ready.refusal)
        return process

    async def _read(self, process: asyncio.subprocess.Process, seconds: float) -> WorkerReply:
        """Raises TimeoutError, EOFError."""
        assert process.stdout is not None
        async with asyncio.timeout(seconds):
            line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return msgspec.json.decode(line, type=WorkerReply)


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)  # `Process.kill` would take its status away from who waits
    await process.communicate()  # which also closes its pipes
