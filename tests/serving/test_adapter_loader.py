from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import registry
from registry import Principal, Registry, Version
from registry.blobs import LocalBlobs
from registry.database import Database
from registry.errors import StorageError
from registry.version import Split
from serving.adapter_cache import AdapterCache
from serving.adapter_loader import AdapterLoader
from serving.errors import AdapterBaseMismatchError, ModelNotFoundError, RegistryUnavailableError
from serving.served_base import ServedBase
from serving.target import Selection, Side, Target
from tests.registry.adapter_folders import write_adapter
from tests.serving.byte_base import base_json
from tests.serving.conftest import Stocked

OPERATOR = Principal.operator()
PLENTY = 1 << 30


class CountingRegistry(Registry):
    """A real registry that counts pulls, makes them slow, and fails on demand."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(Database(folder), LocalBlobs(folder / "blobs"), folder=folder)
        self.pulls: list[str] = []
        self.is_down = False

    def pull(self, version: Version, destination: Path, *, principal: Principal = OPERATOR) -> Path:
        self.pulls.append(version.digest)
        if self.is_down:
            raise StorageError("no disk")
        return super().pull(version, destination, principal=principal)

    def resolve_split(self, ref: str, *, principal: Principal) -> Split:
        if self.is_down:
            raise StorageError("no database")
        return super().resolve_split(ref, principal=principal)


@pytest.fixture
def reg(tmp_path: Path) -> CountingRegistry:
    opened = CountingRegistry(tmp_path / "registry")
    opened.register_base(base_json())
    for seed in range(1, 5):
        opened.publish(write_adapter(tmp_path / f"source-{seed}", seed=seed), f"acme/a{seed}", principal=OPERATOR)
    return opened


@pytest.fixture
async def loader(reg: CountingRegistry, tmp_path: Path) -> AsyncIterator[AdapterLoader]:
    loader = AdapterLoader(reg, AdapterCache(tmp_path / "adapters", PLENTY))
    await loader.start()
    yield loader
    loader.cache.check_integrity()
    loader.close()


async def touch(loader: AdapterLoader, target: Target) -> Path:
    async with loader.hold(target) as (use,):
        assert use.digest == target.digest
        assert names_in(use.folder) == ["adapter_config.json", "adapter_model.safetensors", "loraplex.json"]
        loader.cache.check_integrity()
        return Path(use.folder)


def names_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


async def test_a_version_is_fetched_once_by_many(
    loader: AdapterLoader, reg: CountingRegistry, base: ServedBase
) -> None:
    target = await loader.resolve("acme/a1", OPERATOR, base)
    await asyncio.gather(*(touch(loader, target) for _ in range(20)))
    assert reg.pulls == [target.digest]
    assert loader.fetched == 1


async def test_one_who_leaves_does_not_end_the_fetch_of_others(
    loader: AdapterLoader, reg: CountingRegistry, base: ServedBase
) -> None:
    target = await loader.resolve("acme/a1", OPERATOR, base)
    leaving = asyncio.create_task(touch(loader, target))
    staying = asyncio.create_task(touch(loader, target))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert reg.pulls == [target.digest]


async def test_the_base_needs_no_adapter(loader: AdapterLoader, base: ServedBase) -> None:
    for name in ("base", "bytes"):
        target = await loader.resolve(name, OPERATOR, base)
        assert (target.version, target.name) == (None, "bytes")
        assert Selection(base).fingerprint == f"lpx-{base.fingerprint[:12]}"
        async with loader.hold(target) as uses:
            assert uses == ()


async def test_the_longest_unused_goes_first_and_pinned_ones_stay(
    reg: CountingRegistry, base: ServedBase, tmp_path: Path
) -> None:
    names = ("acme/a1", "acme/a2", "acme/a3", "acme/a4")
    sizes = [sum(file.size for file in reg.resolve(name, principal=OPERATOR).files) for name in names]
    loader = AdapterLoader(reg, AdapterCache(tmp_path / "adapters", sum(sizes[:2]) + 100))
    await loader.start()
    one, two, three, four = [await loader.resolve(name, OPERATOR, base) for name in names]
    async with loader.hold(one):
        await touch(loader, two)
        await touch(loader, three)  # two goes: one is held
        assert [loader.cache.has(each.version) for each in (one, two, three) if each.version] == [True, False, True]
        await touch(loader, three)
        assert len(reg.pulls) == 3
    await touch(loader, four)  # three was used after one
    assert loader.cache.count == 2
    await touch(loader, one)
    loader.cache.check_integrity()
    for _ in range(100):
        if not list((tmp_path / "adapters").glob(".old-*")):
            break
        await asyncio.sleep(0.01)
    assert len(list((tmp_path / "adapters").iterdir())) == loader.cache.count
    loader.close()


async def test_an_adapter_larger_than_the_cache_is_served_and_not_kept(
    reg: CountingRegistry, base: ServedBase, tmp_path: Path
) -> None:
    loader = AdapterLoader(reg, AdapterCache(tmp_path / "adapters", 10))
    await loader.start()
    target = await loader.resolve("acme/a1", OPERATOR, base)
    await touch(loader, target)
    assert loader.cache.held_bytes == 0
    loader.cache.check_integrity()
    loader.close()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
async def test_a_damaged_folder_of_an_earlier_server_is_fetched_again(
    reg: CountingRegistry, base: ServedBase, tmp_path: Path, damage: str
) -> None:
    async def serve_once() -> Path:
        loader = AdapterLoader(reg, AdapterCache(tmp_path / "adapters", PLENTY))
        await loader.start()
        folder = await touch(loader, await loader.resolve("acme/a1", OPERATOR, base))
        loader.close()
        return folder

    folder = await serve_once()
    assert await serve_once() == folder
    assert len(reg.pulls) == 1
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "truncate":
        weights.write_bytes(data[:-1])
    elif damage == "remove":
        weights.unlink()
    else:
        (folder / "extra.json").write_text("{}")
    await serve_once()
    assert len(reg.pulls) == 2


async def test_a_failed_fetch_fails_its_requests_only(
    loader: AdapterLoader, reg: CountingRegistry, base: ServedBase
) -> None:
    target = await loader.resolve("acme/a1", OPERATOR, base)
    reg.is_down = True
    results: list[Any] = await asyncio.gather(*(touch(loader, target) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RegistryUnavailableError] * 3
    reg.is_down = False
    await touch(loader, target)


async def test_names_asked_before_survive_an_outage_of_the_registry(
    loader: AdapterLoader, reg: CountingRegistry, base: ServedBase
) -> None:
    target = await loader.resolve("acme/a1", OPERATOR, base)
    await touch(loader, target)
    reg.is_down = True
    assert await loader.resolve("acme/a1", OPERATOR, base) == target
    await touch(loader, target)
    with pytest.raises(RegistryUnavailableError):
        await loader.resolve("acme/a2", OPERATOR, base)
    reader = Principal(tenant="rival", role=registry.Role.READER, token_id="t")
    with pytest.raises(RegistryUnavailableError):
        await loader.resolve("acme/a1", reader, base)


async def test_names_that_lead_nowhere(loader: AdapterLoader, base: ServedBase, stocked: Stocked) -> None:
    for name in ("acme/absent", "../../etc/passwd", "acme/a1@99", "sha256:" + "0" * 64, "A B", ""):
        with pytest.raises(ModelNotFoundError):
            await loader.resolve(name, OPERATOR, base)
    with registry.open(stocked.home / "registry") as other:
        foreign = AdapterLoader(other, loader.cache)
        with pytest.raises(AdapterBaseMismatchError) as caught:
            await foreign.resolve("acme/foreign", OPERATOR, base)
        assert (caught.value.expected, caught.value.found) == (stocked.foreign.base_fingerprint, base.fingerprint)
        foreign.close()


async def test_both_sides_of_a_canary_can_be_made_ready(
    loader: AdapterLoader, reg: CountingRegistry, base: ServedBase, tmp_path: Path
) -> None:
    reg.publish(write_adapter(tmp_path / "second", seed=50), "acme/a1", principal=OPERATOR)
    reg.promote("acme/a1@1", "prod", principal=OPERATOR)
    assert [target.side for target in await loader.sides("acme/a1@prod", OPERATOR, base)] == [None]
    reg.start_canary("acme/a1@2", "prod", permille=1, principal=OPERATOR)
    stable, canary = await loader.sides("acme/a1@prod", OPERATOR, base)
    assert (stable.name, stable.side) == ("acme/a1@1", Side.STABLE)
    assert (canary.name, canary.side) == ("acme/a1@2", Side.CANARY)
    assert [target.name for target in await loader.sides(base.name, OPERATOR, base)] == [base.name]
