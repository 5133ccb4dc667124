"""Who waits in vain for its turn at the catalog is told that nothing was changed, and to try again: on every face."""

from __future__ import annotations

from contextlib import ExitStack

import httpx
import pytest

import registry
from registry import postgres_backend, sqlite_backend
from registry.errors import CatalogBusyError
from tests.registry.http.server import serving

SAID = "The catalog is busy: other writers kept it for 0.05 s. Nothing was changed: try again in a few seconds."


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long."""
    for backend in (postgres_backend, sqlite_backend):
        monkeypatch.setattr(backend, "BUSY_TIMEOUT_SECONDS", 0.05)


def test_a_writer_who_waits_for_another_one(reg: registry.Registry) -> None:
    with serving(reg) as url, registry.open(url) as remote:
        with reg._database.writing():
            for face in (reg, remote):
                with pytest.raises(CatalogBusyError) as caught:
                    face.create_tenant("acme")
                assert str(caught.value) == SAID
            rest = httpx.post(f"{url}/registry/v1/tenants", json={"name": "acme"})
            hub = httpx.post(f"{url}/api/repos/create", json={"name": "sql", "organization": "acme"})
        assert (rest.status_code, rest.json()["error"]["code"]) == (503, "catalog_busy")
        assert int(rest.headers["retry-after"]) > 0
        assert (hub.status_code, hub.headers["x-error-message"]) == (503, SAID)
        assert reg.list_tenants() == []
        assert remote.create_tenant("acme").name == "acme"


@pytest.mark.sqlite_only
def test_a_reader_who_waits_for_a_connection(reg: registry.Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reg._database._backend.reading.pool, "_timeout", 0.05)

    def take_all() -> None:
        for _ in range(100):
            connections.enter_context(reg._database.connected())

    with ExitStack() as connections:
        with pytest.raises(CatalogBusyError, match="none of its connections became free"):
            take_all()
        with pytest.raises(CatalogBusyError):
            reg.list_tenants()
    assert reg.list_tenants() == []
