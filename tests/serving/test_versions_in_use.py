"""What a server has in use is leased in its registry; and an adapter that is deleted while it is used."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

import registry
from registry import Principal, Version
from registry.errors import ConflictError, StorageError
from serving.version_leases import VersionLeases
from tests.registry.adapter_folders import manifest_document, write_adapter
from tests.registry.http.server import serving
from tests.serving.conftest import Stocked, stock
from tests.serving.server import RunningServer, running_server, wait_until

OPERATOR = Principal.operator()
OPERATOR_SECRET = "operator-" + "s" * 32
GENEROUS_SECONDS = 20.0


@pytest.fixture
def stocked(tmp_path: Path) -> Stocked:
    return stock(tmp_path / "stocked")


def ask(server: RunningServer, prompt: str = "!who", **fields: object) -> tuple[int, str]:
    answer = server.complete(prompt, model="acme/sql@prod", **({"max_tokens": 200} | fields))
    return answer.status_code, answer.json()["choices"][0]["text"] if answer.is_success else answer.text


@pytest.mark.parametrize("place", ["own", "over http"])
def test_an_adapter_that_is_deleted_while_it_is_used(
    stocked: Stocked, scripted_engine: list[str], tmp_path: Path, place: str
) -> None:
    with (
        registry.open(stocked.home / "registry") as reg,
        serving(reg, operator_secret=OPERATOR_SECRET, token_cache_seconds=0.5) as url,
    ):
        token = reg.create_token("acme", "admin").secret
        elsewhere = {"registry": url, "registry_token": OPERATOR_SECRET, "home": tmp_path / "other-home"}
        settings = {"home": stocked.home} if place == "own" else elsewhere
        with running_server(
            tmp_path / "server", engine=scripted_engine, token=token, base="bytes", **settings
        ) as server:
            assert ask(server) == (200, stocked.first.digest)
            wait_until(lambda: reg.leases("acme/sql", OPERATOR), GENEROUS_SECONDS)
            (lease,) = reg.leases("acme/sql", OPERATOR)
            assert lease.number == 1
            third = write_adapter(tmp_path / "third", seed=3, manifest=manifest_document())
            reg.publish(third, "acme/sql", principal=OPERATOR)
            for number in (2, 3):
                reg.promote(f"acme/sql@{number}", "prod", principal=OPERATOR)
            with pytest.raises(ConflictError, match="uses it until"):
                reg.delete_version("acme/sql@1", OPERATOR)
            reg.promote("acme/sql@1", "prod", principal=OPERATOR)
            wait_until(lambda: ask(server) == (200, stocked.first.digest), GENEROUS_SECONDS)
            slow: list[tuple[int, str]] = []
            running = threading.Thread(target=lambda: slow.append(ask(server, "!slow " + "x" * 60, max_tokens=60)))
            running.start()
            wait_until(lambda: server.metric("vllm:num_requests_running") > 0, GENEROUS_SECONDS)
            reg.delete_adapter("acme/sql", OPERATOR)
            wait_until(lambda: ask(server)[0] == 404, GENEROUS_SECONDS)
            running.join()
            status, text = slow[0]
            assert status == 200, text
            assert len(text) == 60, "the request that was running has its whole answer"
        assert reg.fsck().is_sound


class SmallRegistry:
    """Stands for a registry that is told of leases."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []
        self.released: list[str] = []
        self.is_down = False

    def lease(self, refs: list[str], *, holder: str, duration: timedelta) -> list[str]:
        if self.is_down:
            raise StorageError("no database")
        assert duration > timedelta(seconds=60)
        self.told.append(refs)
        return refs

    def release_leases(self, holder: str) -> int:
        self.released.append(holder)
        return 1


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(GENEROUS_SECONDS):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


async def test_versions_are_leased_together_renewed_and_given_back(stocked: Stocked) -> None:
    reg = SmallRegistry()
    leases = VersionLeases(reg, renew_seconds=0.3)  # type: ignore[arg-type]
    leases.start()
    await asyncio.sleep(0.5)
    assert reg.told == [], "nothing is in use"
    with leases.using(stocked.first), leases.using(stocked.second), leases.using(stocked.second):
        await until(lambda: len(reg.told) >= 2)
        assert reg.told[:2] == [["acme/sql@1", "acme/sql@2"]] * 2
    await until(lambda: len(reg.told) >= 4)
    assert leases.in_use() == ["acme/sql@1", "acme/sql@2"], "still loaded, though no request holds them"
    reg.is_down = True
    await until(lambda: leases.failures)
    reg.is_down = False
    told = len(reg.told)
    await until(lambda: len(reg.told) > told)
    await leases.stop()
    assert reg.released == [leases.holder]


async def test_nothing_is_in_use_for_ever(stocked: Stocked, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = VersionLeases(SmallRegistry())  # type: ignore[arg-type]
    version: Version = stocked.first
    with leases.using(version):
        monkeypatch.setattr("serving.version_leases.USED_SECONDS", 0.0)
        assert leases.in_use() == ["acme/sql@1"], "a request holds it, however long"
    assert leases.in_use() == []
    await leases.stop()
