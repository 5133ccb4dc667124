"""What the operator wants kept stays with the engine, whichever engine that is and whatever the name means by now."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import registry
from registry.principal import Principal
from serving.app import create_service
from serving.settings import ServingSettings, SupervisionSettings
from tests.serving.conftest import stock


async def test_a_kept_name_is_kept_as_what_it_means(scripted_engine: list[str], tmp_path: Path) -> None:
    own = stock(tmp_path)
    supervision = SupervisionSettings(command=tuple(scripted_engine))
    settings = ServingSettings(home=own.home, registry="", keep=("acme/sql@prod",), supervision=supervision)
    with registry.open(own.home / "registry") as reg:
        service = create_service(settings, reg)
        await service.start()
        assert await service.engine.wait_settled() is not None

        async def wait_until_kept(digest: str) -> None:
            async with asyncio.timeout(10):
                while (stats := service.engine.stats) is None or {a.digest for a in stats.adapters} != {digest}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        await wait_until_kept(own.first.digest)
        reg.promote("acme/sql@2", "prod", principal=Principal.operator())
        await wait_until_kept(own.second.digest)
        await service.stop()
        service.loader.cache.check_integrity()
        missing = create_service(replace(settings, keep=("acme/absent",)), reg)
        await missing.start()
        assert await missing.engine.wait_settled() is None
        assert "`acme/absent` does not exist" in str(missing.engine.failure)
        await missing.stop()
