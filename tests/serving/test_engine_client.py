"""The supervision of the engine process, with scripted engines that fail in every way, in the test's own event loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from serving.engine_client import EngineClient, EngineState
from serving.errors import (
    BaseFolderError,
    EngineBusyError,
    EngineLostError,
    EngineStartError,
    EngineUnavailableError,
    SettingsError,
)
from serving.messages import AdapterUse, Generate, Output, Ready, Sampling
from serving.server import open_port
from serving.settings import ServingSettings, SupervisionSettings
from tests.serving.byte_base import to_ids, to_text

ADAPTER = AdapterUse(digest="sha256:" + "1" * 64, folder="/nowhere")


async def no_preload(ready: Ready) -> Sequence[AdapterUse]:
    return ()


@asynccontextmanager
async def running(
    command: list[str], on_ready: Callable[..., object] = no_preload, **changes: float
) -> AsyncIterator[EngineClient]:
    fast = {"first_backoff_seconds": 0.01, "longest_backoff_seconds": 0.05, "stop_seconds": 1.0} | changes
    settings = SupervisionSettings(command=tuple(command), **fast)  # type: ignore[arg-type]
    server_settings = ServingSettings(home=Path("unused"), registry="")
    client = EngineClient(settings, server_settings.engine_settings, on_ready=on_ready)  # type: ignore[arg-type]
    client.start()
    try:
        yield client
    finally:
        pid = client.process_id
        await client.stop()
        assert pid is None or not psutil.pid_exists(pid)
        assert client.in_flight == 0


def request(prompt: str, request_id: str = "r1", max_tokens: int = 100) -> Generate:
    sampling = Sampling(max_tokens=max_tokens)
    return Generate(request_id=request_id, tenant="t", prompt_token_ids=to_ids(prompt), sampling=sampling)


async def collect(client: EngineClient, prompt: str, request_id: str = "r1") -> list[Output]:
    return [output async for output in client.stream(request(prompt, request_id))]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 (the engine's life has no event for tests)
            await asyncio.sleep(0.01)


async def test_a_stream_has_every_output(scripted_engine: list[str]) -> None:
    async with running(scripted_engine) as client:
        with pytest.raises(EngineUnavailableError, match="it is starting"):
            await collect(client, "too early")
        assert await client.wait_settled() is client.ready
        outputs = await collect(client, "!say hello")
        assert to_text([token for output in outputs for token in output.token_ids]) == "hello"
        assert outputs[-1].finish_reason == "stop"
        await until(lambda: client.stats is not None and client.totals.generation_tokens == 5)


async def test_a_stream_that_is_left_is_aborted(scripted_engine: list[str]) -> None:
    async with running(scripted_engine) as client:
        await client.wait_settled()
        stream = client.stream(request("!slow abc"))
        await anext(stream)
        await until(lambda: client.stats is not None and client.stats.running == 1)
        await stream.aclose()
        assert client.in_flight == 0
        await until(lambda: client.stats is not None and client.stats.running == 0)


async def test_what_on_ready_names_is_preloaded(scripted_engine: list[str]) -> None:
    async def on_ready(ready: Ready) -> Sequence[AdapterUse]:
        return [ADAPTER]

    async with running(scripted_engine, on_ready) as client:
        await client.wait_settled()
        await until(lambda: client.stats is not None and len(client.stats.adapters) == 1)
        assert client.stats is not None
        assert client.stats.adapters[0].digest == ADAPTER.digest


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--cannot-start", "the base is not there"], "the base is not there"),
        (["--die-before-ready"], "The engine ended with status 3. Its log says why."),
    ],
)
async def test_a_first_start_that_fails_is_final(scripted_engine: list[str], option: list[str], reason: str) -> None:
    async with running([*scripted_engine, *option]) as client:
        assert await client.wait_settled() is None
        await client.wait_given_up()
        assert isinstance(client.failure, EngineStartError)
        assert client.failure.reason == reason
        assert client.state is EngineState.GIVEN_UP
        assert client.starts == 1


async def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    async with running([str(tmp_path / "nothing")]) as client:
        assert await client.wait_settled() is None
        assert "could not be made" in str(client.failure)


async def test_a_base_without_a_tokenizer_is_a_failed_start(scripted_engine: list[str]) -> None:
    async def on_ready(ready: Ready) -> Sequence[AdapterUse]:
        raise BaseFolderError("tokenizer.json", "is missing")

    async with running(scripted_engine, on_ready) as client:
        assert await client.wait_settled() is None
        assert str(client.failure) == "The engine could not start: tokenizer.json of the base is missing."


async def test_an_engine_that_dies_again_and_again_is_given_up(scripted_engine: list[str]) -> None:
    async with running(scripted_engine, restart_limit=2) as client:
        await client.wait_settled()
        for start in range(1, 4):
            await until(lambda: client.state is EngineState.READY)
            assert client.starts == start
            stream = asyncio.create_task(collect(client, "!never"))
            await until(lambda: client.in_flight == 1)
            assert client.process_id is not None
            os.kill(client.process_id, signal.SIGKILL)
            with pytest.raises(EngineLostError):
                await stream
        await client.wait_given_up()
        assert isinstance(client.failure, EngineLostError)
        with pytest.raises(EngineUnavailableError, match="failed too often"):
            await collect(client, "late")


async def test_an_engine_that_does_not_read_is_busy_and_not_a_leak(scripted_engine: list[str]) -> None:
    async with running(scripted_engine, queued_messages=4) as client:
        await client.wait_settled()
        assert client.process_id is not None
        os.kill(client.process_id, signal.SIGSTOP)
        waiting = [asyncio.create_task(collect(client, "!never" + "x" * 300_000, f"r{number}")) for number in range(40)]
        await asyncio.wait(waiting, timeout=0.5)
        refused = [task for task in waiting if task.done() and isinstance(task.exception(), EngineBusyError)]
        assert len(refused) > 10
        assert client.in_flight == len(waiting) - len(refused)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def test_a_port_that_is_taken() -> None:
    with open_port("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"Cannot listen on 127.0.0.1:{port}.*--port"):
            open_port("127.0.0.1", port)
