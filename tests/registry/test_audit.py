"""The audit log: what it tells, and that a changed, missing, moved or cut off row is found."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

import registry
from registry.errors import InvalidValueError, PermissionDeniedError
from tests.registry.backends import RegistryPlace

Publish = Callable[..., registry.Version]
Tamper = Callable[..., None]
OPERATOR = registry.Principal.operator()


@pytest.fixture
def tamper(place: RegistryPlace) -> Callable[..., None]:
    """Changes the database as somebody who owns it can: without the triggers."""

    def run(*statements: str) -> None:
        for statement in statements:
            place.execute(statement, triggers=False)

    return run


@pytest.fixture
def busy(reg: registry.Registry, publish: Publish) -> registry.Registry:
    publish("acme/a")
    publish("acme/a")
    reg.promote("acme/a@1", "prod", principal=OPERATOR)
    reg.create_token("acme", "reader")
    reg.create_tenant("globex")
    return reg


@pytest.mark.sqlite_only
def test_every_change_is_a_row_of_its_tenant(busy: registry.Registry) -> None:
    entries = busy.audit_entries()
    actions = [(entry.action, entry.tenant) for entry in reversed(entries)]
    assert actions == [
        ("register_base", None),
        ("create_tenant", "acme"),
        ("publish", "acme"),
        ("publish", "acme"),
        ("promote", "acme"),
        ("create_token", "acme"),
        ("create_tenant", "globex"),
    ]
    assert all(entry.row_hash for entry in entries)
    assert [entry.action for entry in busy.audit_entries(tenant="globex")] == ["create_tenant"]
    page = busy.audit_entries(limit=2)
    assert busy.audit_entries(limit=2, before=page[-1].id) == entries[2:4]
    admin = busy.authenticate(busy.create_token("acme", "admin").secret)
    assert {entry.tenant for entry in busy.audit_entries(tenant="acme", principal=admin)} == {"acme"}
    for tenant in (None, "globex"):
        with pytest.raises(PermissionDeniedError):
            busy.audit_entries(tenant=tenant, principal=admin)
    with pytest.raises(InvalidValueError):
        busy.audit_entries(limit=0)


def test_a_whole_chain(busy: registry.Registry) -> None:
    before = busy.verify_audit()
    assert before.is_whole
    busy.create_tenant("initech")
    after = busy.verify_audit(expect=before.row_hash)
    assert after.is_whole
    assert (after.rows, after.row_hash) == (before.rows + 1, busy.audit_entries()[0].row_hash)
    assert busy.verify_audit(expect="f" * 64).faults[0].startswith("the hash ffff")
    with pytest.raises(InvalidValueError):
        busy.verify_audit(expect="f")


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE audit_events SET actor = 'nobody' WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET at = '2020-01-01 00:00:00.000000' WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET action = 'rollback' WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET subject = 'acme/b@1' WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET detail = '{}' WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET tenant = NULL WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET row_hash = previous_hash WHERE id = 3", "row 3 was changed"),
        ("UPDATE audit_events SET row_hash = NULL WHERE id = 3", "row 3 has no hash"),
        ("UPDATE audit_events SET previous_hash = row_hash WHERE id = 3", "row 3 does not follow"),
        ("DELETE FROM audit_events WHERE id = 3", "row 4 does not follow"),
        ("DELETE FROM audit_events WHERE id = 1", "row 2 does not follow"),
        ("DELETE FROM audit_events WHERE id > 5", "2 of 7 rows are missing at the end"),
        ("DELETE FROM audit_events", "7 of 7 rows are missing at the end"),
        ("DELETE FROM registry_meta WHERE key = 'audit_head'", "the end of the chain is not written down"),
        (
            "INSERT INTO audit_events (id, at, actor, action, subject, detail, tenant, previous_hash, row_hash) "
            "SELECT 99, at, actor, action, subject, detail, tenant, previous_hash, row_hash "
            "FROM audit_events WHERE id = 7",
            "row 99 does not follow",
        ),
    ],
)
def test_tampering_is_found(busy: registry.Registry, tamper: Tamper, statement: str, fault: str) -> None:
    tamper(statement)
    faults = busy.verify_audit().faults
    assert faults
    assert faults[0].startswith(fault)


@pytest.mark.sqlite_only
def test_rows_that_changed_places_are_found(busy: registry.Registry, tamper: Tamper) -> None:
    swap = "UPDATE audit_events SET id = {} WHERE id = {}"
    tamper(swap.format(99, 3), swap.format(3, 4), swap.format(4, 99))
    assert busy.verify_audit().faults[0].startswith("row 3 does not follow")


@pytest.mark.sqlite_only
def test_a_chain_made_anew_is_found_with_a_hash_kept_elsewhere(busy: registry.Registry, tamper: Tamper) -> None:
    kept = busy.verify_audit().row_hash
    tamper(
        "UPDATE audit_events SET actor = 'nobody', row_hash = NULL, previous_hash = NULL",
        "DELETE FROM registry_meta WHERE key = 'audit_head'",
    )
    busy.create_tenant("initech")
    assert busy.verify_audit().is_whole, "nothing inside of the database can tell"
    assert busy.verify_audit(expect=kept).faults == (
        f"the hash {kept} is not in the chain: rows that led to it were changed or taken out",
    )


def test_rows_from_before_the_chain_are_covered_by_its_first_link(busy: registry.Registry, tamper: Tamper) -> None:
    tamper(
        "UPDATE audit_events SET row_hash = NULL, previous_hash = NULL, tenant = NULL",
        "DELETE FROM registry_meta WHERE key = 'audit_head'",
    )
    assert busy.verify_audit().is_whole
    busy.create_tenant("initech")
    assert busy.verify_audit().is_whole
    assert [entry.row_hash is None for entry in busy.audit_entries()] == [False] + [True] * 7
    tamper("UPDATE audit_events SET actor = 'nobody' WHERE id = 2")
    assert busy.verify_audit().faults[0].startswith("row 8 does not follow")


def test_the_database_refuses_to_change_rows(busy: registry.Registry) -> None:
    for statement in ("UPDATE audit_events SET actor = 'x'", "DELETE FROM audit_events"):
        with pytest.raises(registry.RegistryError), busy._database.writing() as session:
            session.connection().exec_driver_sql(statement)


def test_writers_at_once_make_one_chain(reg: registry.Registry, place: RegistryPlace) -> None:
    def write(number: int) -> None:
        with place.open() as mine:
            for step in range(5):
                mine.create_tenant(f"t{number}-{step}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verification = reg.verify_audit()
    assert verification.is_whole
    assert verification.rows == 31


@pytest.mark.sqlite_only
def test_a_change_that_fails_leaves_no_row(busy: registry.Registry) -> None:
    rows = busy.verify_audit().rows
    with pytest.raises(registry.ConflictError):
        busy.create_tenant("acme")
    assert busy.verify_audit().rows == rows
