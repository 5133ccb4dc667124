"""The catalog's database: settings, migrations, and what is no registry."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text

import registry
from registry import file_system, sqlite_backend
from registry.database import Database
from registry.errors import CatalogBusyError, IncompatibleRegistryError, InvalidValueError, NotFoundError, StorageError
from registry.models import Row
from tests.registry.adapter_folders import base_document


def test_the_migrations_make_the_tables_of_the_models(tmp_path: Path) -> None:
    registry.open(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Row.metadata) == []
    engine.dispose()


def test_a_commit_survives_power_loss(tmp_path: Path) -> None:
    database = Database(tmp_path)
    with database.reading() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_who_waits_in_vain_for_another_writer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(tmp_path)
    insert = text("INSERT INTO tenants (name, created_at) VALUES ('acme', '2026-01-01')")
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(sqlite_backend, "BUSY_TIMEOUT_SECONDS", 0.05)
        with pytest.raises(CatalogBusyError, match="other writers kept it"), database.writing() as session:
            session.execute(insert)
        other.execute("ROLLBACK")
    with database.writing() as session:
        session.execute(insert)
    database.close()


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path)
    insert = text("INSERT INTO tenants (name, created_at) VALUES ('acme', '2026-01-01')")

    def write(times: int, error: Exception | None = None) -> None:
        with database.writing() as session:
            for _ in range(times):
                session.execute(insert)
            if error:
                raise error

    with pytest.raises(KeyError):
        write(1, KeyError())
    with pytest.raises(registry.ConflictError, match="Nothing was changed"):
        write(2)
    with database.reading() as session:
        assert session.execute(text("SELECT count(*) FROM tenants")).scalar() == 0
    database.close()


def test_a_registry_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    registry.open(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(IncompatibleRegistryError, match="newer release") as caught:
        registry.open(tmp_path)
    assert caught.value.revision == "9999"


@pytest.mark.parametrize(
    ("note", "opens"),
    [("9999 0003", True), ("9999 9998", False), ("9998 0003", False), ("9999", False), ("0003 0003", False)],
)
def test_a_newer_schema_is_used_where_it_says_that_this_release_can(tmp_path: Path, note: str, opens: bool) -> None:
    with registry.open(tmp_path) as reg:
        reg.create_tenant("acme")
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("ALTER TABLE tenants ADD COLUMN motto TEXT")
        connection.execute("UPDATE registry_meta SET value = ? WHERE key = 'oldest_reader'", (note,))
        connection.commit()
    if not opens:
        with pytest.raises(IncompatibleRegistryError):
            registry.open(tmp_path)
        return
    with registry.open(tmp_path) as reg:
        reg.create_tenant("globex")
        assert [tenant.name for tenant in reg.list_tenants()] == ["acme", "globex"]
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


@pytest.mark.parametrize(("kind", "name"), [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0x00C36400, "Ceph")])
def test_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, name: str
) -> None:
    """The kind of the file system is what this machine cannot have: it is told instead of asked."""
    monkeypatch.setattr(file_system, "file_system_type", lambda folder: kind)
    with pytest.raises(StorageError, match=rf"network file system \({name}\).*PostgreSQL"):
        registry.open(tmp_path / "registry")
    assert not (tmp_path / "registry" / "catalog.sqlite").exists()


def test_the_kind_of_a_file_system_is_what_the_system_says() -> None:
    """`stat -f` asks the same of the kernel in another way."""
    for folder in (Path("/"), Path("/proc"), Path("/dev")):
        said = subprocess.run(["stat", "-f", "-c", "%t", folder], capture_output=True, text=True, check=True)
        assert file_system.file_system_type(folder) == int(said.stdout, 16)
        assert file_system.network_file_system(folder) is None


def test_a_network_file_system_behind_fuse_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(file_system, "MOUNTS", mounts)
    monkeypatch.setattr(file_system, "file_system_type", lambda folder: file_system.FUSE_TYPE)
    for kind, is_refused in (("fuse.sshfs", True), ("fuse.s3fs", True), ("fuse.gocryptfs", False), ("fuseblk", False)):
        mounts.write_text(
            f"22 1 0:1 / /proc rw - proc proc rw\n36 22 {number} / /x rw,noatime shared:1 - {kind} y rw\n"
        )
        assert (file_system.network_file_system(tmp_path) is not None) == is_refused, kind


def test_what_is_no_registry(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be made"):
        registry.open(tmp_path / "file" / "below")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "catalog.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="damaged or no registry"):
        registry.open(tmp_path / "damaged")
    with pytest.raises(NotFoundError, match="There is no registry"):
        registry.open(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()
    for address, blobs, why in (
        ("ftp://localhost/registry", None, "is no registry"),
        ("postgresql://localhost/registry", None, "has its files elsewhere"),
        ("postgresql://localhost", tmp_path / "blobs", "not the address of a PostgreSQL database"),
        (tmp_path / "new", "ftp://bucket", "is no store"),
        (tmp_path / "new", "s3://key:secret@bucket/prefix", "credentials come from the environment"),
        (tmp_path / "new", "s3://bucket/prefix?acl=public", "'acl' is not among its options"),
        (tmp_path / "new", "az://account", "az://account/container"),
    ):
        with pytest.raises(InvalidValueError, match=why) as caught:
            registry.open(address, blobs=blobs)
        assert "secret" not in str(caught.value)


def test_a_registry_opens_again_as_it_was(tmp_path: Path, make_adapter: Callable[..., Path]) -> None:
    operator = registry.Principal.operator()
    with registry.open(tmp_path / "r") as reg:
        reg.register_base(base_document())
        version = reg.publish(make_adapter(), "acme/a", principal=operator)
    with registry.open(str(tmp_path / "r"), create=False) as reg:
        assert reg.resolve("acme/a", principal=operator) == version
        assert reg.base(version.base_fingerprint).name == "embedded"


def test_a_folder_with_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "what? 100% #1 é"
    registry.open(folder).close()
    assert (folder / "catalog.sqlite").is_file()
    registry.open(folder, create=False).close()


def test_threads_share_a_registry(reg: registry.Registry, make_adapter: Callable[..., Path]) -> None:
    operator = registry.Principal.operator()
    folders = [make_adapter(seed=seed) for seed in range(16)]
    numbers: list[int] = []

    def publish(part: int) -> None:
        for folder in folders[part::4]:
            numbers.append(reg.publish(folder, "acme/a", principal=operator).number)
            reg.resolve("acme/a", principal=operator)

    threads = [threading.Thread(target=publish, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 17))
    reg.check_integrity()
