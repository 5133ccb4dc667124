"""The registry's database goes away and comes back: what is known goes on being served, and nothing needs a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import registry
from registry import Principal
from registry.database import DATABASE_FILE
from serving.adapter_cache import AdapterCache
from serving.adapter_loader import AdapterLoader
from serving.errors import RegistryUnavailableError
from serving.served_base import ServedBase
from tests.registry.adapter_folders import write_adapter
from tests.registry.backends import postgres_server
from tests.serving.byte_base import base_json

OPERATOR = Principal.operator()
CACHE_BYTES = 1 << 30


@asynccontextmanager
async def loading(reg: registry.Registry, folder: Path) -> AsyncIterator[AdapterLoader]:
    loader = AdapterLoader(reg, AdapterCache(folder, CACHE_BYTES))
    await loader.start()
    try:
        yield loader
    finally:
        loader.close()


async def outlive(
    reg: registry.Registry, base: ServedBase, folder: Path, stop: Callable[[], None], start: Callable[[], None]
) -> None:
    """Serve one adapter, stop the database, serve it again, start the database, and serve what is new."""
    reg.register_base(base_json())
    reg.publish(write_adapter(folder / "one", seed=1), "acme/a", principal=OPERATOR)
    reg.publish(write_adapter(folder / "other", seed=9), "acme/b", principal=OPERATOR)
    reg.promote("acme/a@1", "prod", principal=OPERATOR)
    async with loading(reg, folder / "cache") as loader:
        known = await loader.resolve("acme/a@prod", OPERATOR, base)
        async with loader.hold(known):
            pass
        stop()
        for _ in range(3):
            target = await loader.resolve("acme/a@prod", OPERATOR, base)
            assert target == known
            async with loader.hold(target) as (use,):
                assert (Path(use.folder) / "adapter_model.safetensors").is_file()
            with pytest.raises(RegistryUnavailableError):
                await loader.resolve("acme/b", OPERATOR, base)
        start()
        reg.publish(write_adapter(folder / "two", seed=2), "acme/a", principal=OPERATOR)
        reg.promote("acme/a@2", "prod", principal=OPERATOR)
        target = await loader.resolve("acme/a@prod", OPERATOR, base)
        assert target.version is not None
        assert target.version.number == 2
        async with loader.hold(target):
            pass
        assert (await loader.resolve("acme/b", OPERATOR, base)).version is not None


async def test_a_sqlite_file_that_goes_away_and_comes_back(tmp_path: Path, base: ServedBase) -> None:
    catalog = tmp_path / "registry" / DATABASE_FILE
    away = tmp_path / "away"
    with registry.open(tmp_path / "registry") as reg:
        await outlive(reg, base, tmp_path, lambda: void(catalog.rename(away)), lambda: void(away.rename(catalog)))


async def test_a_postgresql_that_goes_away_and_comes_back(tmp_path: Path, base: ServedBase) -> None:
    """Every connection is cut and no new one is let in, as while a server is down."""
    with postgres_server() as postgres, postgres.database() as url, registry.open(url, blobs=tmp_path / "blobs") as reg:
        name = url.partition("@/")[2].partition("?")[0]

        def stop() -> None:
            postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")

        await outlive(
            reg, base, tmp_path, stop, lambda: void(postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
        )


def void(result: object) -> None:
    """Drop a result, where a callback has none."""
