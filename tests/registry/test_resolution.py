"""Resolving fast: remembered answers hold exactly until something is committed, and belong to whoever asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

import registry
from registry.errors import NotFoundError, StorageError
from registry.fresh_cache import FreshCache
from registry.principal import Role
from registry.resolution import VERSIONS_LIMIT
from tests.registry.adapter_folders import base_document

Publish = Callable[..., registry.Version]
REFERENCES = ["acme/text2sql", "acme/text2sql@1", "acme/text2sql@prod"]


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that SQLAlchemy runs in the block, whatever the engine."""
    seen: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def reader_of(tenant: str) -> registry.Principal:
    return registry.Principal(tenant=tenant, role=Role.READER, token_id=f"tok_{tenant}")


def test_a_second_resolve_asks_the_database_nothing(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    version = publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    references = [
        *REFERENCES,
        f"acme/text2sql@{version.digest}",
        f"acme/text2sql@{version.digest[:20]}",
        version.digest,
    ]
    first = [reg.resolve(ref, principal=operator) for ref in references]
    with statements() as seen:
        assert [reg.resolve(ref, principal=operator) for ref in references] == first == [version] * len(references)
    assert seen == []


def test_a_commit_is_seen_by_the_next_resolve(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    one = publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    assert (
        reg.resolve("acme/text2sql@prod", principal=operator) == reg.resolve("acme/text2sql", principal=operator) == one
    )
    two = publish()
    assert reg.resolve("acme/text2sql", principal=operator) == two
    assert reg.resolve("acme/text2sql@prod", principal=operator) == one
    reg.promote("acme/text2sql@2", "prod", principal=operator)
    assert reg.resolve("acme/text2sql@prod", principal=operator) == two
    reg.rollback("acme/text2sql", "prod", principal=operator)
    assert reg.resolve("acme/text2sql@prod", principal=operator) == one


def test_a_commit_of_another_process_is_seen_by_the_next_resolve(
    tmp_path: Path, new_registry: Path, make_adapter: Callable[..., Path], operator: registry.Principal
) -> None:
    """The other process tells of each promotion after it returned; from then on nobody may see the alias before it."""
    folder = shutil.copytree(new_registry, tmp_path / "shared")
    script = """
import sys, registry
operator = registry.Principal.operator()
with registry.open(sys.argv[1]) as reg:
    for line in sys.stdin:
        reg.promote(f"acme/a@{line.strip()}", "prod", principal=operator)
        print(line, end="", flush=True)
"""
    with registry.open(folder) as reg:
        for seed in range(2):
            reg.publish(make_adapter(seed=seed), "acme/a", principal=operator)
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process:
            for turn in range(40):
                number = 1 + turn % 2
                print(number, file=process.stdin, flush=True)
                assert process.stdout.readline() == f"{number}\n"
                assert reg.resolve("acme/a@prod", principal=operator).number == number
                assert reg.resolve("acme/a@prod", principal=operator).number == number
            process.stdin.close()


def test_an_answer_belongs_to_who_asked(reg: registry.Registry, publish: Publish, operator: registry.Principal) -> None:
    version = publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    acme, other = reader_of("acme"), reader_of("other")
    for ref in [*REFERENCES, version.digest]:
        missing = ref.replace("text2sql", "missing").replace(version.digest, f"sha256:{'0' * 64}")
        with pytest.raises(NotFoundError) as absent:
            reg.resolve(missing, principal=other)
        for _ in range(2):
            assert reg.resolve(ref, principal=operator) == reg.resolve(ref, principal=acme) == version
            with pytest.raises(NotFoundError) as caught:
                reg.resolve(ref, principal=other)
        words = str(caught.value).replace("text2sql", "missing").replace(version.digest, f"sha256:{'0' * 64}")
        assert words == str(absent.value)


def test_an_adapter_made_private_is_gone_for_others_at_once(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    publish(visibility="public")
    other = reader_of("other")
    for _ in range(2):
        assert reg.resolve("acme/text2sql", principal=other).visibility == "public"
    publish(visibility="private")
    with pytest.raises(NotFoundError):
        reg.resolve("acme/text2sql@1", principal=other)
    assert reg.resolve("acme/text2sql@1", principal=operator).visibility == "private"


def test_what_is_missing_is_not_remembered(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    for _ in range(2):
        with pytest.raises(NotFoundError):
            reg.resolve("acme/text2sql", principal=operator)
    version = publish()
    assert reg.resolve("acme/text2sql", principal=operator) == version
    with pytest.raises(registry.InvalidNameError):
        reg.resolve("no name", principal=operator)


def test_a_digest_prefix_that_fits_two_versions(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    one, two = publish(), publish()
    assert reg.resolve(f"acme/text2sql@{one.digest[:19]}", principal=operator) == one
    assert reg.resolve(f"acme/text2sql@{two.digest[:30]}", principal=operator) == two
    last = format((int(one.digest[-1], 16) + 1) % 16, "x")
    with pytest.raises(NotFoundError):
        reg.resolve(f"acme/text2sql@{one.digest[:-1]}{last}", principal=operator)


def test_an_answer_that_a_commit_overtook_is_not_kept(reg: registry.Registry, operator: registry.Principal) -> None:
    cache: FreshCache[str, int] = FreshCache(reg._database, 10)
    tenants = iter(["one", "two"])

    def compute() -> int:
        found = len(reg.list_tenants())
        if (name := next(tenants, None)) is not None:
            reg.create_tenant(name)
        return found

    assert [cache.get("tenants", compute) for _ in range(4)] == [0, 1, 2, 2]


def test_a_cache_is_bounded(reg: registry.Registry) -> None:
    cache: FreshCache[int, int] = FreshCache(reg._database, 3)
    for number in range(10):
        assert cache.get(number, partial(int, number)) == number
        assert len(cache) == min(number + 1, 3)
    assert cache.get(9, lambda: -1) == 9
    assert cache.get(0, lambda: -1) == -1
    assert 0 < VERSIONS_LIMIT < 10_000


def test_a_catalog_that_was_moved_away_is_an_error_until_it_is_back(
    tmp_path: Path, new_registry: Path, make_adapter: Callable[..., Path], operator: registry.Principal
) -> None:
    folder = shutil.copytree(new_registry, tmp_path / "shared")
    with registry.open(folder) as reg:
        version = reg.publish(make_adapter(), "acme/a", principal=operator)
        assert reg.resolve("acme/a", principal=operator) == version
        (folder / "catalog.sqlite").rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(StorageError, match="cannot be used"):
                reg.resolve("acme/a", principal=operator)
        (tmp_path / "away").rename(folder / "catalog.sqlite")
        assert reg.resolve("acme/a", principal=operator) == version


def test_a_catalog_that_was_replaced_is_taken_up(
    tmp_path: Path, make_adapter: Callable[..., Path], operator: registry.Principal
) -> None:
    """As when a backup is put back under a server that runs."""
    folders = [tmp_path / name for name in ("one", "two")]
    versions = []
    for seed, folder in enumerate(folders):
        with registry.open(folder) as reg:
            reg.register_base(base_document())
            versions.append(reg.publish(make_adapter(seed=seed), "acme/a", principal=operator))
    with registry.open(folders[0]) as reg:
        assert reg.resolve("acme/a", principal=operator) == versions[0]
        (folders[1] / "catalog.sqlite").rename(folders[0] / "catalog.sqlite")
        for suffix in ("-wal", "-shm"):
            (folders[0] / f"catalog.sqlite{suffix}").unlink()
        assert reg.resolve("acme/a", principal=operator) == versions[1]
        assert reg.list_versions("acme/a", operator) == [versions[1]]
