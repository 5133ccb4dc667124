"""A registry that mirrors another one of ours, through its real Hub face; and clients that pull through."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

import registry
from registry import Principal, Role
from registry.errors import NotFoundError
from tests.registry.http.server import serving

MakeAdapter = Callable[..., Path]
OPERATOR = Principal.operator()
READER = Principal(tenant="acme", role=Role.READER, token_id="tok_r")


@pytest.fixture
def upstream(tmp_path: Path, new_registry: Path) -> Iterator[registry.Registry]:
    """The other registry: org/x has two versions, and prod is the first."""
    shutil.copytree(new_registry, tmp_path / "upstream")
    with registry.open(tmp_path / "upstream") as opened:
        yield opened


@pytest.fixture
def filled(upstream: registry.Registry, make_adapter: MakeAdapter) -> registry.Registry:
    for seed in (1, 2):
        upstream.publish(make_adapter(seed=seed), "org/x", principal=OPERATOR)
    upstream.promote("org/x@1", "prod", principal=OPERATOR)
    return upstream


@pytest.fixture
def url(upstream: registry.Registry) -> Iterator[str]:
    with serving(upstream) as url:
        yield url


def test_a_branch_a_version_and_an_alias_are_mirrored(
    reg_sqlite: registry.Registry, filled: registry.Registry, url: str, make_adapter: MakeAdapter
) -> None:
    reg = reg_sqlite
    expected = {number: filled.resolve(f"org/x@{number}", principal=OPERATOR).digest for number in (1, 2)}
    main = reg.add_mirror("acme/main", f"{url}/org/x", principal=OPERATOR)
    prod = reg.add_mirror("acme/prod", f"{url}/org/x", revision="prod", principal=OPERATOR)
    reg.add_mirror("acme/v1", f"{url}/org/x", revision="v1", principal=OPERATOR)
    digests = {name: reg.resolve(f"acme/{name}", principal=OPERATOR).digest for name in ("main", "prod", "v1")}
    assert digests == {"main": expected[2], "prod": expected[1], "v1": expected[1]}
    assert main.mirror.commit != prod.mirror.commit
    assert len(main.mirror.commit) == 40

    filled.promote("org/x@2", "prod", principal=OPERATOR)
    filled.publish(make_adapter(seed=3), "org/x", principal=OPERATOR)
    assert reg.sync_mirror("acme/prod", principal=OPERATOR).publication is not None
    assert reg.resolve("acme/prod", principal=OPERATOR).digest == expected[2]
    assert reg.sync_mirror("acme/v1", principal=OPERATOR).publication is None, "a tag does not move"
    moved = reg.sync_mirror("acme/main", principal=OPERATOR)
    assert moved.publication is not None
    assert moved.publication.version.number == 2


def test_private_upstreams_need_their_token(reg_sqlite: registry.Registry, filled: registry.Registry, url: str) -> None:
    secret = filled.create_token("org", "reader").secret
    with pytest.raises(NotFoundError):
        reg_sqlite.add_mirror("acme/x", f"{url}/org/x", principal=OPERATOR)
    done = reg_sqlite.add_mirror("acme/x", f"{url}/org/x", token=secret, principal=OPERATOR)
    assert done.publication is not None
    assert secret not in repr(reg_sqlite.audit_entries())


def test_an_upstream_that_deletes_it_breaks_nothing(
    reg_sqlite: registry.Registry, filled: registry.Registry, url: str, tmp_path: Path
) -> None:
    reg_sqlite.add_mirror("acme/x", f"{url}/org/x", principal=OPERATOR)
    filled.delete_adapter("org/x", OPERATOR)
    with pytest.raises(NotFoundError):
        reg_sqlite.sync_mirror("acme/x", principal=OPERATOR)
    reg_sqlite.pull(reg_sqlite.resolve("acme/x", principal=OPERATOR), tmp_path / "pulled")


def test_a_hub_client_pulls_through(reg_sqlite: registry.Registry, filled: registry.Registry, url: str) -> None:
    """The first read through the Hub face fetches; a stranger's read does not."""
    reg_sqlite.create_tenant("acme")
    reg_sqlite.create_tenant("rival")
    reg_sqlite.set_tenant_policy("acme", {"upstream": f"{url}/org"})
    own = {"authorization": f"Bearer {reg_sqlite.create_token('acme', 'reader').secret}"}
    foreign = {"authorization": f"Bearer {reg_sqlite.create_token('rival', 'reader').secret}"}
    with serving(reg_sqlite) as here, httpx.Client(base_url=here, trust_env=False, timeout=30) as client:
        assert client.get("/api/models/acme/x/revision/main", headers=foreign).status_code == 404
        assert reg_sqlite.list_mirrors(OPERATOR) == []
        info = client.get("/api/models/acme/x/revision/main", headers=own)
        assert info.status_code == 200, info.text
        file = client.get("/acme/x/resolve/main/adapter_config.json", headers=own)
        assert file.status_code == 200
        assert "x-xet-hash" not in file.headers
        assert client.get("/acme/x/resolve/main/adapter_config.json", headers=foreign).status_code == 404
    version = reg_sqlite.resolve("acme/x", principal=READER)
    assert version.digest == filled.resolve("org/x", principal=OPERATOR).digest
