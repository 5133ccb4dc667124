"""Deleting and renaming: what is in use stays, what is gone leaves no way back to its name or number."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

import registry
from registry.deletion import OF_ADAPTER, OF_VERSION
from registry.errors import ConflictError, InvalidNameError, InvalidValueError, NotFoundError, PermissionDeniedError
from registry.models import CommitRow, LeaseRow, PinRow, RefRow, Row, TombstoneRow, VersionRow
from registry.retention_rule import RetentionRule

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()
A = "acme/text2sql"


def head(reg: registry.Registry, branch: str = "main") -> tuple[int | None, int]:
    """The version of the branch's head, by id, and how many commits there are."""
    with reg._database.reading() as session:
        commit = session.scalars(
            select(CommitRow).join(RefRow, RefRow.commit_id == CommitRow.id).where(RefRow.name == branch)
        ).one()
        return commit.version_id, len(session.scalars(select(CommitRow.id)).all())


def id_of(reg: registry.Registry, number: int) -> int:
    with reg._database.reading() as session:
        return session.scalars(select(VersionRow.id).where(VersionRow.number == number)).one()


def test_a_version_is_gone_and_its_number_stays_taken(
    reg: registry.Registry, publish: Publish, make_adapter: Callable[..., Path]
) -> None:
    publish()
    folder = make_adapter(seed=777)
    second = reg.publish(folder, A, principal=OPERATOR)
    publish()
    usage = reg.usage("acme")
    reg.delete_version(f"{A}@2", OPERATOR)
    assert [version.number for version in reg.list_versions(A, OPERATOR)] == [3, 1]
    for ref in (f"{A}@2", f"{A}@{second.digest}", second.digest):
        with pytest.raises(NotFoundError):
            reg.resolve(ref, principal=OPERATOR)
    assert reg.usage("acme").used_versions == usage.used_versions - 1
    assert reg.usage("acme").used_bytes == usage.used_bytes, "garbage collection frees bytes"
    reg.check_integrity()
    reg.quotas.check_integrity()
    assert reg.publish(folder, A, principal=OPERATOR).number == 4, "the same files get another number"
    reg.check_integrity()
    assert [event.kind for event in reg.events(OPERATOR, after=0).events].count("version.deleted") == 1
    entry = next(entry for entry in reg.audit_entries() if entry.action == "delete_version")
    assert (entry.subject, entry.detail) == (f"{A}@2", {"digest": second.digest})


@pytest.mark.sqlite_only
def test_the_newest_version_is_deleted(reg: registry.Registry, publish: Publish) -> None:
    publish()
    publish()
    reg.delete_version(f"{A}@2", OPERATOR)
    assert reg.resolve(A, principal=OPERATOR).number == 1
    assert head(reg) == (id_of(reg, 1), 1), "main fell back to version 1"
    assert publish().number == 3
    assert head(reg) == (id_of(reg, 3), 2)
    reg.check_integrity()


@pytest.mark.sqlite_only
def test_the_only_version_is_deleted(reg: registry.Registry, publish: Publish) -> None:
    publish()
    reg.delete_version(f"{A}@1", OPERATOR)
    assert head(reg) == (None, 1), "an empty commit"
    assert reg.list_versions(A, OPERATOR) == []
    with pytest.raises(NotFoundError):
        reg.resolve(A, principal=OPERATOR)
    reg.check_integrity()
    assert publish().number == 2
    reg.check_integrity()


@pytest.mark.sqlite_only
def test_versions_are_deleted_one_after_another(reg: registry.Registry, publish: Publish) -> None:
    for _ in range(5):
        publish()
    log = reg.snapshots.log
    name = registry.AdapterName.parse(A)
    for number in (3, 2):
        reg.delete_version(f"{A}@{number}", OPERATOR)
    assert [commit.version for commit in log(name, "main", OPERATOR, limit=10)] == [5, 4, 1]
    for number, left in ((5, 4), (4, 1)):
        reg.delete_version(f"{A}@{number}", OPERATOR)
        assert head(reg)[0] == id_of(reg, left), "main falls back past what was deleted before"
    assert [commit.version for commit in log(name, "main", OPERATOR, limit=10)] == [1]
    reg.check_integrity()


@pytest.mark.sqlite_only
def test_what_is_in_use_stays(reg: registry.Registry, publish: Publish) -> None:
    publish()
    publish()
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    with pytest.raises(ConflictError, match=r"the alias 'prod' points at it\. Promote another version first"):
        reg.delete_version(f"{A}@prod", OPERATOR, force=True)
    now = datetime.now(UTC)
    with reg._database.writing() as session:
        session.add(PinRow(version_id=id_of(reg, 2), reason="audit 2026", actor="operator", created_at=now))
    with pytest.raises(ConflictError, match=r"operator pinned it \(audit 2026\)"):
        reg.delete_version(f"{A}@2", OPERATOR, force=True)
    with pytest.raises(ConflictError, match="version 2 is pinned"):
        reg.delete_adapter(A, OPERATOR)
    with reg._database.writing() as session:
        session.delete(session.get_one(PinRow, id_of(reg, 2)))
        session.add(LeaseRow(version_id=id_of(reg, 2), holder="server-1", expires_at=now + timedelta(hours=1)))
    with pytest.raises(ConflictError, match="server-1 uses it until"):
        reg.delete_version(f"{A}@2", OPERATOR)
    assert len(reg.list_versions(A, OPERATOR)) == 2
    reg.delete_version(f"{A}@2", OPERATOR, force=True)
    assert len(reg.list_versions(A, OPERATOR)) == 1


def test_what_a_rollback_goes_back_to_stays(reg: registry.Registry, publish: Publish) -> None:
    for number in (1, 2, 3, 4):
        publish()
        reg.promote(f"{A}@{number}", "prod", principal=OPERATOR)
    reg.promote(f"{A}@1", "next", principal=OPERATOR)
    why = r"Version 3 .* cannot be deleted: a rollback of the alias 'prod' goes back to it\."
    with pytest.raises(ConflictError, match=rf"{why} .* --force: 'prod' would go back to version 2 then\.$"):
        reg.delete_version(f"{A}@3", OPERATOR)
    assert reg.rollback(A, "prod", principal=OPERATOR).to_number == 3, "the command that promotion printed"
    reg.delete_version(f"{A}@4", OPERATOR)
    with pytest.raises(ConflictError, match="goes back to it"):
        reg.delete_version(f"{A}@2", OPERATOR)
    with pytest.raises(ConflictError, match="the alias 'next' points at it"):
        reg.delete_version(f"{A}@1", OPERATOR, force=True)
    assert reg.promote(f"{A}@1", "prod", principal=OPERATOR).to_number == 1
    reg.delete_version(f"{A}@2", OPERATOR)
    assert reg.rollback(A, "prod", principal=OPERATOR).to_number == 3
    reg.check_integrity()


def test_a_rollback_passes_over_what_was_deleted_all_the_same(reg: registry.Registry, publish: Publish) -> None:
    for number in (1, 2, 3, 4):
        publish()
        reg.promote(f"{A}@{number}", "prod", principal=OPERATOR)
    for number in (3, 2):
        reg.delete_version(f"{A}@{number}", OPERATOR, force=True)
    with pytest.raises(ConflictError, match=r"--force: 'prod' could not be rolled back then\.$"):
        reg.delete_version(f"{A}@1", OPERATOR)
    reg.set_retention(A, RetentionRule(keep_last=1), OPERATOR)
    assert reg.collect_garbage().versions == [], "a rule keeps what a rollback goes back to"
    move = reg.rollback(A, "prod", principal=OPERATOR)
    assert (move.from_number, move.to_number) == (4, 1)
    with pytest.raises(ConflictError, match="with none before it"):
        reg.rollback(A, "prod", principal=OPERATOR)
    reg.promote(f"{A}@4", "prod", principal=OPERATOR)
    reg.delete_version(f"{A}@1", OPERATOR, force=True)
    with pytest.raises(ConflictError, match="points at version 4, and what it pointed at before was deleted"):
        reg.rollback(A, "prod", principal=OPERATOR)
    assert reg.aliases(A, OPERATOR) == {"prod": 4}
    reg.check_integrity()


@pytest.mark.sqlite_only
def test_a_rollback_never_stays_where_it_is(reg: registry.Registry, publish: Publish) -> None:
    for _ in range(3):
        publish()
    for number in (3, 1, 2, 1):
        reg.promote(f"{A}@{number}", "prod", principal=OPERATOR)
    reg.delete_version(f"{A}@2", OPERATOR, force=True)
    assert reg.rollback(A, "prod", principal=OPERATOR).to_number == 3
    with pytest.raises(ConflictError, match="with none before it"):
        reg.rollback(A, "prod", principal=OPERATOR)


@pytest.mark.sqlite_only
def test_a_lease_that_ran_out_holds_nothing(reg: registry.Registry, publish: Publish) -> None:
    publish()
    over = datetime.now(UTC) - timedelta(seconds=1)
    with reg._database.writing() as session:
        session.add(LeaseRow(version_id=id_of(reg, 1), holder="server-1", expires_at=over))
    reg.delete_version(f"{A}@1", OPERATOR)


@pytest.mark.sqlite_only
def test_a_tag_holds_a_version(reg: registry.Registry, publish: Publish) -> None:
    publish()
    with reg._database.writing() as session:
        commit = session.scalars(select(CommitRow)).one()
        row = {"adapter_id": commit.adapter_id, "commit_id": commit.id, "message": "", "created_at": commit.created_at}
        session.add(RefRow(kind="tag", name="release", **row))
    with pytest.raises(ConflictError, match="the tag 'release' points at it"):
        reg.delete_version(f"{A}@1", OPERATOR)


def test_an_adapter_is_gone_and_its_name_rests_for_a_year(reg: registry.Registry, publish: Publish) -> None:
    publish()
    publish()
    publish("acme/other")
    reg.promote(f"{A}@2", "prod", principal=OPERATOR)
    reg.delete_adapter(A, OPERATOR)
    with pytest.raises(NotFoundError):
        reg.resolve(f"{A}@prod", principal=OPERATOR)
    assert [summary.adapter for summary in reg.list_adapters(OPERATOR)] == ["acme/other"]
    assert reg.usage("acme").used_versions == 1
    with pytest.raises(ConflictError, match=r"was deleted on .*\. Its name rests until"):
        publish()
    reg.check_integrity()
    last_year = datetime.now(UTC) - timedelta(days=1)
    with reg._database.writing() as session:
        session.execute(update(TombstoneRow).where(TombstoneRow.number == 0).values(reusable_at=last_year))
    assert publish().number == 3, "a number never comes to mean something else"
    reg.check_integrity()


def test_no_table_is_forgotten() -> None:
    """Whoever adds a table that belongs to versions, commits or adapters decides here what a deletion does to it."""
    known = {table.__tablename__ for table in (*OF_VERSION, *OF_ADAPTER)} | {"versions", "commits", "commit_files"}
    owned = {
        table.name
        for table in Row.metadata.sorted_tables
        for key in table.foreign_keys
        if key.column.table.name in {"versions", "commits", "adapters"}
    }
    assert owned == known


def test_renaming(reg: registry.Registry, publish: Publish) -> None:
    version = publish()
    publish()
    reg.delete_version(f"{A}@2", OPERATOR)
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    reg.move_adapter(A, "acme/sql", OPERATOR)
    assert reg.resolve("acme/sql@prod", principal=OPERATOR).digest == version.digest
    assert reg.moved_to(A, OPERATOR) == "acme/sql"
    with pytest.raises(NotFoundError):
        reg.resolve(f"{A}@prod", principal=OPERATOR)
    with pytest.raises(ConflictError, match="was moved to 'acme/sql' on"):
        publish(A)
    reg.check_integrity()
    reg.move_adapter("acme/sql", A, OPERATOR)
    assert reg.resolve(f"{A}@prod", principal=OPERATOR).number == 1
    assert reg.moved_to("acme/sql", OPERATOR) == A
    assert publish(A).number == 3
    reg.check_integrity()


@pytest.mark.sqlite_only
def test_a_name_that_is_taken_or_elsewhere(reg: registry.Registry, publish: Publish) -> None:
    publish()
    publish("acme/other")
    with pytest.raises(ConflictError, match="'acme/other' exists already"):
        reg.move_adapter(A, "acme/other", OPERATOR)
    with pytest.raises(InvalidValueError, match="in another tenant"):
        reg.move_adapter(A, "globex/text2sql", OPERATOR)
    reg.delete_adapter("acme/other", OPERATOR)
    with pytest.raises(ConflictError, match="was deleted on"):
        reg.move_adapter(A, "acme/other", OPERATOR)
    with reg._database.writing() as session:
        session.execute(update(TombstoneRow).values(reusable_at=datetime.now(UTC)))
    with pytest.raises(ConflictError, match="whose numbers would mean two things"):
        reg.move_adapter(A, "acme/other", OPERATOR)
    reg.move_adapter(A, A, OPERATOR)
    assert reg.resolve(A, principal=OPERATOR).number == 1


@pytest.mark.sqlite_only
def test_where_it_moved_to_is_told_only_to_who_may_read_it(reg: registry.Registry, publish: Publish) -> None:
    publish()
    reg.move_adapter(A, "acme/sql", OPERATOR)
    reg.create_tenant("globex")
    stranger = reg.authenticate(reg.create_token("globex", "admin").secret)
    assert reg.moved_to(A, stranger) is None
    assert reg.moved_to("acme/absent", OPERATOR) is None
    publish("acme/sql", visibility="public")
    assert reg.moved_to(A, stranger) == "acme/sql"


@pytest.mark.sqlite_only
def test_who_may(reg: registry.Registry, publish: Publish) -> None:
    publish()
    promoter = reg.authenticate(reg.create_token("acme", "promoter").secret)
    admin = reg.authenticate(reg.create_token("acme", "admin").secret)
    reg.create_tenant("globex")
    stranger = reg.authenticate(reg.create_token("globex", "admin").secret)
    calls: list[Callable[[registry.Principal], object]] = [
        lambda caller: reg.delete_version(f"{A}@1", caller),
        lambda caller: reg.move_adapter(A, "acme/sql", caller),
        lambda caller: reg.delete_adapter(A, caller),
    ]
    for call in calls:
        with pytest.raises(PermissionDeniedError, match="needs 'admin'"):
            call(promoter)
        with pytest.raises(NotFoundError):
            call(stranger)
    with pytest.raises(InvalidNameError):
        reg.delete_version(A, admin)
    reg.delete_version(f"{A}@1", admin)
    reg.delete_adapter(A, admin)
    reg.quotas.check_integrity()
    assert reg.verify_audit().is_whole
