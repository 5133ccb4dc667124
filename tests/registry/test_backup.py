"""Backup and restore: one state, to and from either backend; damage is found before anything is written."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Boolean

import registry
from loraplex.cli import main
from registry.backup_folder import _digest_of
from registry.errors import ConflictError, IntegrityError, PermissionDeniedError, StorageError
from registry.models import Row, UtcDateTime
from registry.registry import Registry
from tests.registry.backends import FolderPlace, PostgresServer, RegistryPlace, S3Server, ServerPlace
from tests.registry.test_storage import flip_bit

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()
BACKUPS = 3


def state_of(place: RegistryPlace) -> dict[str, list[list[object]]]:
    """Every row of every table, as the database tells it."""
    found = {}
    for table in Row.metadata.sorted_tables:
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        keys = ", ".join(f'"{column.name}"' for column in table.primary_key.columns)
        rows = place.execute(f"SELECT {columns} FROM {table.name} ORDER BY {keys}")
        kinds = [type(column.type) for column in table.columns]
        found[table.name] = [[_cell(kind, cell) for kind, cell in zip(kinds, row, strict=True)] for row in rows]
    return found


def _cell(kind: type, cell: object) -> object:
    """SQLite tells times as text, and truth as numbers."""
    if kind is UtcDateTime and isinstance(cell, str):
        return datetime.fromisoformat(cell)
    return bool(cell) if kind is Boolean and cell is not None else cell


@pytest.fixture
def busy(reg: Registry, publish: Publish) -> Registry:
    """A registry with some of everything that it can hold."""
    publish("acme/a", message="first")
    publish("acme/a", visibility="public")
    publish("globex/b")
    reg.promote("acme/a@1", "prod", principal=OPERATOR, evidence="it is better")
    reg.promote("acme/a@2", "prod", principal=OPERATOR)
    reg.create_token("acme", "publisher", label="ci")
    reg.set_quota("globex", quota_bytes=10_000_000, quota_versions=5)
    return reg


@pytest.fixture
def empty_sqlite(tmp_path: Path) -> RegistryPlace:
    return FolderPlace(tmp_path / "empty")


@pytest.mark.parametrize("target", ["sqlite", "postgres"])
def test_a_restored_registry_is_the_one_that_was_backed_up(
    busy: Registry, place: RegistryPlace, target: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    secret = busy.create_token("acme", "reader").secret
    made = busy.backup(tmp_path / "backup")
    assert made.blobs == len(place.blob_names())
    assert made.tables["versions"].rows == 3
    if target == "sqlite":
        empty = request.getfixturevalue("empty_sqlite")
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        s3: S3Server = request.getfixturevalue("s3")
        database = server.database()
        url = database.__enter__()
        request.addfinalizer(lambda: database.__exit__(None, None, None))
        empty = ServerPlace(url, s3, f"restored-{tmp_path.name}", tmp_path / "scratch-2")
    told: list[tuple[int, int]] = []
    with empty.open() as restored:
        assert restored.restore(tmp_path / "backup", on_blob=lambda done, count: told.append((done, count))) == made
        assert told == [(number, made.blobs) for number in range(1, made.blobs + 1)]
        assert state_of(empty) == state_of(place)
        assert empty.blob_names() == place.blob_names()
        restored.check_integrity()
        version = restored.resolve("acme/a@prod", principal=restored.authenticate(secret))
        assert version == busy.resolve("acme/a@prod", principal=OPERATOR)
        restored.pull(version, tmp_path / "out")
        restored.rollback("acme/a", "prod", principal=OPERATOR)
        moved = restored.promote("acme/a@2", "prod", principal=OPERATOR)
        assert moved.sequence == 4, "numbers go on where they were"
        restored.create_tenant("initech")
        with pytest.raises(ConflictError, match="not empty"):
            restored.restore(tmp_path / "backup")


def test_a_backup_is_one_state_while_the_registry_is_in_use(
    reg: Registry, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Every backup that is made while others publish and promote holds the alias and the version that it points at."""
    folders = [make_adapter(seed=seed) for seed in range(1, 6)]
    over = threading.Event()

    def work() -> None:
        for folder in folders:
            version = reg.publish(folder, "acme/a", principal=OPERATOR)
            reg.promote(f"acme/a@{version.number}", "prod", principal=OPERATOR)
        over.set()

    reg.publish(make_adapter(seed=99), "acme/a", principal=OPERATOR)
    worker = threading.Thread(target=work)
    worker.start()
    count = 0
    while count == 0 or (count < BACKUPS and not over.is_set()):
        reg.backup(tmp_path / f"backup-{count}")
        count += 1
    worker.join()
    for number in range(count):
        with registry.open(tmp_path / f"restored-{number}") as restored:
            restored.restore(tmp_path / f"backup-{number}")
            restored.check_integrity()
            numbers = [version.number for version in restored.list_versions("acme/a", OPERATOR)]
            pointed = restored.aliases("acme/a", OPERATOR).get("prod", numbers[0])
            assert numbers[0] - 1 <= pointed <= numbers[0]


@pytest.mark.sqlite_only
def test_any_damage_of_a_backup_is_found_before_anything_is_written(busy: Registry, tmp_path: Path) -> None:
    busy.backup(tmp_path / "backup")
    with registry.open(tmp_path / "empty") as empty:
        for path in sorted(path for path in (tmp_path / "backup").rglob("*") if path.is_file()):
            sound = path.read_bytes()
            for damaged in (flip_bit(sound) if sound else b"x", sound[:-1] if sound else b"[]\n", None):
                if damaged is None:
                    path.unlink()
                else:
                    path.write_bytes(damaged)
                with pytest.raises(StorageError):
                    empty.restore(tmp_path / "backup")
                assert empty.list_tenants() == []
                assert not any((tmp_path / "empty" / "blobs").glob("??"))
            path.write_bytes(sound)
        empty.restore(tmp_path / "backup")
        empty.check_integrity()


def test_a_damaged_registry_is_not_backed_up(busy: Registry, place: RegistryPlace, tmp_path: Path) -> None:
    sha256 = place.blob_names()[0]
    sound = place.read_blob(sha256)
    place.write_blob(sha256, flip_bit(sound))
    with registry.open(**place.arguments()) as opened, pytest.raises(IntegrityError):
        opened.backup(tmp_path / "backup")
    with registry.open(tmp_path / "empty") as empty, pytest.raises(StorageError, match="was never finished"):
        empty.restore(tmp_path / "backup")
    place.remove_blob(sha256)
    with pytest.raises(IntegrityError, match="is missing"):
        busy.backup(tmp_path / "backup-2")
    place.write_blob(sha256, sound)
    busy.backup(tmp_path / "backup-3")


@pytest.mark.sqlite_only
def test_who_may_and_where(busy: Registry, tmp_path: Path) -> None:
    admin = registry.Principal(tenant="acme", role=registry.Role.ADMIN, token_id="tok_1")
    with pytest.raises(PermissionDeniedError):
        busy.backup(tmp_path / "backup", principal=admin)
    with pytest.raises(PermissionDeniedError):
        busy.restore(tmp_path / "backup", principal=admin)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    with pytest.raises(StorageError, match="is not empty"):
        busy.backup(tmp_path / "used")
    busy.backup(tmp_path / "backup")
    files = list((tmp_path / "backup").rglob("*.json*"))
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o700


@pytest.mark.sqlite_only
def test_a_backup_of_another_schema_is_refused(busy: Registry, tmp_path: Path) -> None:
    busy.backup(tmp_path / "backup")
    with registry.open(tmp_path / "empty") as empty:
        manifest = empty_manifest(tmp_path / "backup")
        manifest["content"]["schema"] = "0001"
        write_manifest(tmp_path / "backup", manifest)
        with pytest.raises(StorageError, match="with the release that made it"):
            empty.restore(tmp_path / "backup")


def empty_manifest(folder: Path) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads((folder / "manifest.json").read_text())
    return found


def write_manifest(folder: Path, document: dict[str, dict[str, object]]) -> None:
    signed = {**document, "sha256": _digest_of(document["content"])}
    (folder / "manifest.json").write_text(json.dumps(signed))


@pytest.mark.sqlite_only
def test_the_commands(busy: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["registry", *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    source, target = str(busy.folder), str(tmp_path / "restored")
    assert "verified" in run("backup", str(tmp_path / "backup"), "--registry", source)
    restored = json.loads(run("restore", str(tmp_path / "backup"), "--registry", target, "--json"))
    assert restored["blobs"] > 3
    elsewhere = str(tmp_path / "elsewhere")
    monkeypatch.setenv("LORAPLEX_BLOBS", elsewhere)
    said = run("restore", str(tmp_path / "backup"), "--registry", str(tmp_path / "second"))
    assert said.endswith(f"Next: loraplex ls --registry {tmp_path / 'second'}\n")
    assert not (tmp_path / "elsewhere").exists(), "the variable is for a registry in PostgreSQL"
    run("restore", str(tmp_path / "backup"), "--registry", str(tmp_path / "third"), "--blobs", elsewhere)
    assert (tmp_path / "elsewhere").is_dir()
    refused = CliRunner().invoke(main, ["registry", "restore", str(tmp_path / "backup"), "--registry", target])
    assert refused.exit_code == 1
    assert "not empty" in refused.output
    with registry.open(target) as opened:
        opened.check_integrity()
        assert opened.aliases("acme/a", OPERATOR) == {"prod": 2}
