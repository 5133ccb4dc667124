"""What clients see when something breaks: the engine dies or freezes, the queue is full, the client leaves, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.conftest import Stocked
from tests.serving.server import RunningServer, running_server, wait_until

SHUTTING_DOWN = {
    "message": "The server is shutting down and did not finish this request. Send it again in a few seconds.",
    "type": "server_error",
    "param": None,
    "code": "server_shutting_down",
}


@pytest.fixture(scope="module")
def fragile(
    tmp_path_factory: pytest.TempPathFactory, scripted_engine: list[str], stocked: Stocked
) -> Iterator[RunningServer]:
    """A small server that tests may break: 4 rows, 4 waiting, at most 2 of one tenant."""
    with running_server(
        tmp_path_factory.mktemp("fragile"),
        engine=scripted_engine,
        home=stocked.home,
        base="bytes",
        max_running=4,
        limits={"max_waiting": 4, "max_waiting_per_tenant": 4},
        supervision={"silence_seconds": 0.5, "stall_seconds": 1.5, "restart_limit": 50},
    ) as running:
        yield running


def read_events(response: httpx.Response, seen: list[Any]) -> None:
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            seen.append(data if data == "[DONE]" else json.loads(data))


def is_idle(server: RunningServer) -> bool:
    return server.metric("vllm:num_requests_running") == 0 and server.metric("loraplex_sequences_inside") == 0


def test_kill_9_ends_a_stream_with_an_error_and_the_engine_comes_back(fragile: RunningServer) -> None:
    fragile.wait_ready()
    starts = fragile.metric("loraplex_engine_starts_total")
    generated = fragile.metric("vllm:generation_tokens_total")
    (engine,) = fragile.engine_pids()
    seen: list[Any] = []
    body = {"model": "base", "prompt": "!slow abc", "max_tokens": 400, "stream": True}
    with fragile.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        killer = threading.Timer(0.5, lambda: os.kill(engine, signal.SIGKILL))
        killer.start()
        begin = time.monotonic()
        read_events(response, seen)
    assert time.monotonic() - begin < 2.5
    assert fragile.client.get("/readyz").status_code == 503
    assert fragile.client.get("/livez").status_code == 200
    assert fragile.client.get("/startupz").status_code == 200
    assert len(seen) > 3
    assert seen[-1] == "[DONE]"
    assert seen[-2]["error"]["code"] == "engine_lost"
    fragile.wait_ready()
    assert fragile.complete("!say back").json()["choices"][0]["text"] == "back"
    assert fragile.metric("loraplex_engine_starts_total") == starts + 1
    # Counters never fall, although the new engine began at zero.
    assert fragile.metric("vllm:generation_tokens_total") >= generated


def test_a_crash_is_a_503_for_a_plain_request(fragile: RunningServer) -> None:
    fragile.wait_ready()
    response = fragile.complete("!crash")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_lost"
    assert "retry-after" in response.headers
    response = fragile.complete("!say a")
    assert response.status_code in (200, 503)
    fragile.wait_ready()


def test_every_request_in_flight_is_told(fragile: RunningServer) -> None:
    fragile.wait_ready()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(fragile.complete, "!never") for _ in range(3)]
        wait_until(lambda: fragile.metric("vllm:num_requests_running") == 3)
        begin = time.monotonic()
        fragile.complete("!crash")
        assert {future.result().json()["error"]["code"] for future in waiting} == {"engine_lost"}
        assert time.monotonic() - begin < 2.0
    fragile.wait_ready()


@pytest.mark.parametrize("command", ["!garble", "!freeze"])
def test_an_engine_that_freezes_or_talks_nonsense_is_replaced(fragile: RunningServer, command: str) -> None:
    fragile.wait_ready()
    (engine,) = fragile.engine_pids()
    response = fragile.complete(command)
    assert response.status_code == 503
    fragile.wait_ready()
    assert not psutil.pid_exists(engine)
    assert fragile.engine_pids() != [engine]


def test_a_silent_engine_is_not_ready(fragile: RunningServer) -> None:
    fragile.wait_ready()
    (engine,) = fragile.engine_pids()
    os.kill(engine, signal.SIGSTOP)
    try:
        wait_until(lambda: fragile.client.get("/readyz").status_code == 503, 1.4)
    finally:
        os.kill(engine, signal.SIGCONT)
    wait_until(lambda: fragile.client.get("/readyz").status_code == 200)


def test_a_full_queue_answers_429_at_once(fragile: RunningServer) -> None:
    fragile.wait_ready()
    with ThreadPoolExecutor(8) as pool:
        clients = [httpx.Client(base_url=fragile.url, timeout=30.0) for _ in range(8)]
        body = {"model": "base", "prompt": "!never"}
        waiting = [pool.submit(client.post, "/v1/completions", json=body) for client in clients]
        wait_until(lambda: fragile.metric("loraplex_sequences_inside") == 8)
        wait_until(lambda: fragile.metric("vllm:num_requests_waiting") == 4)
        begin = time.monotonic()
        response = fragile.complete("!say a")
        assert time.monotonic() - begin < 1.0
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert "8 requests" in response.json()["error"]["message"]
        assert fragile.complete("!say a", n=9).json()["error"]["param"] == "n"
        for client in clients:
            client.close()
        (engine,) = fragile.engine_pids()
        os.kill(engine, signal.SIGKILL)  # lets the waiting threads end
        for future in waiting:
            assert future.exception() is not None or future.result().status_code == 503
    fragile.wait_ready()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["!slow abc", "!never"])
def test_a_client_that_leaves_frees_its_request(fragile: RunningServer, stream: bool, prompt: str) -> None:
    fragile.wait_ready()
    body = {"model": "acme/sql", "prompt": prompt, "max_tokens": 400, "stream": stream}
    with httpx.Client(base_url=fragile.url, timeout=0.5) as client:
        if stream and prompt != "!never":
            with client.stream("POST", "/v1/completions", json=body) as response:
                for _ in zip(range(6), response.iter_lines(), strict=False):
                    pass
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=body)
    wait_until(lambda: is_idle(fragile), 1.0)
    assert fragile.metric("loraplex_requests_total", route="completions", outcome="client_gone") >= 1


def test_a_stop_string_frees_the_request(fragile: RunningServer) -> None:
    fragile.wait_ready()
    assert fragile.complete("!slow abcX", stop="bc", max_tokens=400).json()["choices"][0]["finish_reason"] == "stop"
    wait_until(lambda: is_idle(fragile), 1.0)


def test_a_client_that_leaves_while_it_sends_is_no_error(fragile: RunningServer) -> None:
    address = fragile.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1]))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        time.sleep(0.1)
    time.sleep(0.2)
    assert "Traceback" not in fragile.log


def test_sigterm_drains_and_leaves_no_process(tmp_path: Path, scripted_engine: list[str], stocked: Stocked) -> None:
    with running_server(tmp_path, engine=scripted_engine, home=stocked.home, base="bytes") as server:
        (engine,) = server.engine_pids()
        with ThreadPoolExecutor(2) as pool:
            body = {"model": "base", "prompt": "!slow abcd", "max_tokens": 50}
            slow = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=30)
            wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.client.get("/readyz").status_code == 503, 1.0)
            refused = server.complete("!say a")
            assert refused.status_code == 503
            assert refused.json()["error"] == SHUTTING_DOWN
            assert int(refused.headers["retry-after"]) > 0
            answer = slow.result()
        assert answer.status_code == 200
        assert len(answer.json()["choices"][0]["text"]) == 50
        assert server.process.wait(10) == 0
        assert not psutil.pid_exists(engine)
        assert "Traceback" not in server.log
        assert server.log.rstrip().endswith("Stopped.")


def test_sigterm_ends_what_outlives_the_grace(tmp_path: Path, scripted_engine: list[str], stocked: Stocked) -> None:
    with (
        running_server(tmp_path, engine=scripted_engine, home=stocked.home, base="bytes", grace_seconds=0.3) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        seen: list[Any] = []

        def follow() -> None:
            body = {"model": "base", "prompt": "!slow abcd", "max_tokens": 400, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as response:
                read_events(response, seen)

        following = pool.submit(follow)
        wait_until(lambda: len(seen) > 2)
        server.process.send_signal(signal.SIGTERM)
        following.result()
        assert seen[-2]["error"] == SHUTTING_DOWN
        assert seen[-1] == "[DONE]"
        assert server.process.wait(10) == 0


def test_requests_and_transfers_have_one_grace(tmp_path: Path, scripted_engine: list[str], stocked: Stocked) -> None:
    """An upload that never ends begins beside a request that ends late: the port closes when the one grace is over."""
    grace_seconds, request_tokens = 5.0, 100  # one token in 30 ms
    ended = threading.Event()

    def upload() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="message"\r\n\r\n'
        ended.wait(30)

    def is_closed() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", httpx.URL(server.url).port)) != 0

    with (
        running_server(
            tmp_path, engine=scripted_engine, home=stocked.home, base="bytes", grace_seconds=grace_seconds
        ) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        path, kind = "/registry/v1/adapters/acme/sql/versions", "multipart/form-data; boundary=x"
        try:
            sending = pool.submit(
                httpx.post, server.url + path, content=upload(), headers={"content-type": kind}, timeout=30
            )
            body = {"model": "base", "prompt": "!slow abcd", "max_tokens": request_tokens}
            asking = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=30)
            wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert asking.result().status_code == 200
            answered_seconds = time.monotonic() - began
            wait_until(is_closed, 10)
            closed_seconds = time.monotonic() - began
            assert answered_seconds < grace_seconds <= closed_seconds < grace_seconds + 0.75 * answered_seconds
            assert not sending.done() or sending.exception() is not None
        finally:
            ended.set()
        assert server.process.wait(10) == 0


def test_a_second_signal_does_not_wait(tmp_path: Path, scripted_engine: list[str], stocked: Stocked) -> None:
    with running_server(tmp_path, engine=scripted_engine, home=stocked.home, base="bytes") as server:
        (engine,) = server.engine_pids()
        folder = Path(json.loads(psutil.Process(engine).cmdline()[-1])["socket"].removeprefix("ipc://")).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        with ThreadPoolExecutor(1) as pool:
            body = {"model": "base", "prompt": "!never"}
            waiting = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=30)
            wait_until(lambda: server.metric("vllm:num_requests_running") == 1)
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: server.client.get("/readyz").status_code == 503, 1.0)
            server.process.send_signal(signal.SIGINT)
            server.process.wait(10)
            assert waiting.exception() is not None or waiting.result().json()["error"] == SHUTTING_DOWN
        assert not psutil.pid_exists(engine)
        assert not folder.exists()


def test_a_signal_while_the_engine_starts(tmp_path: Path, byte_base: Path) -> None:
    never_ready = [sys.executable, "-c", "import time; time.sleep(600)"]
    interrupter = threading.Thread(target=_interrupt_once_the_engine_runs, args=(tmp_path,))
    interrupter.start()
    with pytest.raises(AssertionError), running_server(tmp_path, engine=never_ready, base="bytes"):
        pass
    interrupter.join()
    log = (tmp_path / "server.log").read_text()
    assert log.rstrip().endswith("Stopped.")
    assert "Error" not in log


def _interrupt_once_the_engine_runs(folder: Path) -> None:
    def server() -> psutil.Process | None:
        servers = [child for child in psutil.Process().children() if str(folder) in " ".join(child.cmdline())]
        # The engine, and no helper that a library starts while it is imported: by then signals are handled.
        return next((each for each in servers if any("--settings" in it.cmdline() for it in each.children())), None)

    wait_until(server, 120.0)
    found = server()
    assert found is not None
    found.send_signal(signal.SIGINT)


def test_no_engine_outlives_a_killed_server(tmp_path: Path, scripted_engine: list[str], stocked: Stocked) -> None:
    with running_server(tmp_path, engine=scripted_engine, home=stocked.home, base="bytes") as server:
        (engine,) = server.engine_pids()
        server.process.kill()
        server.process.wait(5)
        wait_until(lambda: not psutil.pid_exists(engine), 5.0)


def test_an_engine_that_cannot_start_is_one_clean_line(
    tmp_path: Path, scripted_engine: list[str], stocked: Stocked
) -> None:
    engine = [*scripted_engine, "--cannot-start", "the base is not there"]
    with (
        pytest.raises(AssertionError, match="Error: The engine could not start: the base is not there"),
        running_server(tmp_path, engine=engine, home=stocked.home, base="bytes"),
    ):
        pass
    assert "Traceback" not in (tmp_path / "server.log").read_text()
