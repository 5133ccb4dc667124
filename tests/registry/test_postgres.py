"""PostgreSQL as the catalog: settings, serial writers, consistent readers, and what happens when it goes away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, func, select, text

import registry
from registry.database import Database
from registry.errors import AliasMovedError, ConflictError, IncompatibleRegistryError, NotFoundError, StorageError
from registry.models import Row, TenantRow
from tests.registry.adapter_folders import write_adapter
from tests.registry.backends import PostgresServer, ServerPlace, postgres_server

OPERATOR = registry.Principal.operator()
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'loraplex registry'"


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """An empty database."""
    with postgres.database() as made:
        yield made


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


def tenants(database: Database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(TenantRow.name).order_by(TenantRow.name)))


def add_tenant(database: Database, name: str) -> None:
    with database.writing() as session:
        session.execute(text("INSERT INTO tenants (name, created_at) VALUES (:name, now())"), {"name": name})


def test_the_migrations_make_the_tables_of_the_models(database: Database, url: str) -> None:
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Row.metadata) == []
        names = connection.scalars(
            text(
                "SELECT table_name || '.' || column_name FROM information_schema.columns "
                "WHERE table_schema = current_schema() AND data_type = 'character varying' "
                "AND collation_name IS DISTINCT FROM 'C' AND table_name <> 'alembic_version'"
            )
        ).all()
        assert names == [], "a migration that adds a text column calls sort_by_bytes"
    engine.dispose()


def test_both_backends_protect_the_same_rows(database: Database, url: str, tmp_path: Path) -> None:
    with psycopg.connect(url) as connection:
        query = "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
        on_postgres = {name for (name,) in connection.execute(query)}
    sqlite = Database(tmp_path)
    with sqlite.reading() as session:
        on_sqlite = set(session.scalars(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")))
    sqlite.close()
    assert on_postgres == on_sqlite


def test_names_sort_by_their_bytes(database: Database) -> None:
    for name in ("a-b", "ab", "B", "a_b", "z", "a.b", "10", "9"):
        add_tenant(database, name)
    assert tenants(database) == sorted(tenants(database))


def test_opening_at_once_migrates_once(url: str) -> None:
    with ThreadPoolExecutor(6) as threads:
        opened = list(threads.map(lambda _: Database(url), range(6)))
    for database in opened:
        assert tenants(database) == []
        database.close()


def test_a_write_that_fails_changes_nothing(database: Database) -> None:
    add_tenant(database, "acme")
    with pytest.raises(ConflictError, match="Nothing was changed"):
        add_tenant(database, "acme")

    def delete_and_fail() -> None:
        with database.writing() as session:
            session.execute(text("DELETE FROM tenants"))
            raise KeyError

    with pytest.raises(KeyError):
        delete_and_fail()
    assert tenants(database) == ["acme"]


def test_writers_follow_one_another(database: Database) -> None:
    """Each reads, waits and writes; were two inside at once, one count would be lost."""

    def increment(_: int) -> None:
        with database.writing() as session:
            count = session.scalar(select(func.count()).select_from(TenantRow))
            time.sleep(0.01)
            session.execute(text("INSERT INTO tenants (name, created_at) VALUES (:name, now())"), {"name": f"t{count}"})

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(increment, range(24)))
    assert sorted(tenants(database)) == sorted(f"t{number}" for number in range(24))


def test_a_reader_sees_one_state_and_waits_for_nobody(database: Database) -> None:
    count = select(func.count()).select_from(TenantRow)
    with database.reading() as reader:
        assert reader.scalar(count) == 0
        with database.writing() as writer:
            writer.execute(text("INSERT INTO tenants (name, created_at) VALUES ('acme', now())"))
            assert reader.scalar(count) == 0
        assert reader.scalar(count) == 0, "what it began with"
    with database.reading() as later:
        assert later.scalar(count) == 1
    with pytest.raises(StorageError), database.reading() as session:
        session.execute(text("DELETE FROM tenants"))


def test_a_connection_that_was_cut_is_replaced(database: Database, postgres: PostgresServer) -> None:
    add_tenant(database, "acme")
    postgres.execute(CUT)
    assert tenants(database) == ["acme"]

    def delete_and_be_cut_off() -> None:
        with database.writing() as session:
            session.execute(text("DELETE FROM tenants"))
            postgres.execute(CUT)

    with pytest.raises(StorageError, match="look whether it was made") as caught:
        delete_and_be_cut_off()
    assert "\n" not in str(caught.value)
    assert tenants(database) == ["acme"], "what was not committed is undone"
    add_tenant(database, "globex")


def test_a_registry_goes_on_where_its_connections_were_cut(
    postgres_place: ServerPlace, postgres: PostgresServer, tmp_path: Path
) -> None:
    with postgres_place.open() as reg:
        version = reg.publish(write_adapter(tmp_path / "a", seed=1), "acme/a", principal=OPERATOR)
        for _ in range(2):
            assert reg.resolve("acme/a", principal=OPERATOR) == version
            postgres.execute(CUT)
        reg.promote("acme/a@1", "prod", principal=OPERATOR)
        postgres.execute(CUT)
        assert reg.events(OPERATOR, after=0).events
        postgres.execute(CUT)
        reg.check_integrity()


def test_what_cannot_be_reached(url: str) -> None:
    with pytest.raises(StorageError, match="Check that the server runs") as caught:
        Database("postgresql://me:secret-word@127.0.0.1:1/registry?password=secret-too")
    assert "secret" not in str(caught.value)
    with pytest.raises(NotFoundError, match="There is no registry"):
        Database(url, create=False)
    Database(url).close()
    Database(url, create=False).close()


def test_a_newer_schema(url: str) -> None:
    Database(url).close()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(IncompatibleRegistryError):
        Database(url)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE registry_meta SET value = '9999 0003' WHERE key = 'oldest_reader'")
    opened = Database(url)
    add_tenant(opened, "acme")
    opened.close()


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """A server of its own, with fsync: what was acknowledged before kill -9 is there after the restart."""
    with postgres_server(fsync=True) as server, server.database() as url:
        database = Database(url)
        written: list[str] = []
        over = threading.Event()

        def write() -> None:
            while not over.is_set():
                name = f"t{len(written)}"
                try:
                    add_tenant(database, name)
                except StorageError:
                    return
                written.append(name)

        writer = threading.Thread(target=write)
        writer.start()
        while len(written) < 20:
            time.sleep(0.01)
        server.kill()
        writer.join()
        for ask in (lambda: tenants(database), database.stamp, lambda: add_tenant(database, "x")):
            with pytest.raises(StorageError, match="Check that the server runs"):
                ask()
        server.restart()
        assert database.stamp()
        found = tenants(database)
        assert set(written) <= set(found), "an acknowledged write is lost"
        assert len(found) - len(written) <= 1, "at most the one under way"
        add_tenant(database, "afterwards")
        over.set()
        database.close()


def test_a_compare_and_set_loses_no_update(postgres_place: ServerPlace, tmp_path: Path) -> None:
    """Two registries with pools of their own, four threads each, promote in a loop from what they have read."""
    with postgres_place.open() as one, postgres_place.open() as two:
        for seed in (1, 2):
            one.publish(write_adapter(tmp_path / f"a{seed}", seed=seed), "acme/a", principal=OPERATOR)
        moved: list[tuple[int, int | None, int]] = []

        def promote(part: int) -> None:
            reg = (one, two)[part % 2]
            for _ in range(5):
                while True:
                    expected = reg.aliases("acme/a", OPERATOR).get("prod")
                    target = 1 if expected == 2 else 2
                    try:
                        move = reg.promote(f"acme/a@{target}", "prod", principal=OPERATOR, expected=expected)
                    except AliasMovedError:
                        continue
                    moved.append((move.sequence, move.from_number, move.to_number))
                    break

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(promote, range(8)))
        moved.sort()
        assert [sequence for sequence, *_ in moved] == list(range(1, 41))
        assert [before for _, before, _ in moved] == [None, *[after for *_, after in moved[:-1]]]


def test_a_writer_that_stands_still_is_ended_by_the_server(database: Database) -> None:
    with database.writing() as session:
        names = ("idle_in_transaction_session_timeout", "lock_timeout", "synchronous_commit")
        settings = [session.scalar(select(func.current_setting(name))) for name in names]
    assert settings == ["1min", "30s", "on"]

    def stand_still() -> None:
        with database.writing() as session:
            session.execute(text("INSERT INTO tenants (name, created_at) VALUES ('acme', now())"))
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '50ms'"))
            time.sleep(1)

    with pytest.raises(StorageError):
        stand_still()
    add_tenant(database, "globex")
    assert tenants(database) == ["globex"]
