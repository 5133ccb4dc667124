"""Safekeeping in process and over HTTP: the same values and errors; and what its commands print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import registry
from loraplex.cli import COMMANDS
from registry import model_signature
from registry.errors import (
    ConflictError,
    InvalidNameError,
    InvalidValueError,
    NeededVersionError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExceededError,
)
from registry.event import EventKind
from registry.principal import OPERATOR
from registry.registry import Registry
from registry.retention_rule import RetentionRule
from registry.version import Visibility
from tests.registry.adapter_folders import write_adapter
from tests.registry.http.server import serving

OPERATOR_SECRET = "operator-" + "s" * 32
A = "acme/text2sql"
HOUR = timedelta(hours=1)


@pytest.fixture(params=["in process", "over http"])
def faces(request: pytest.FixtureRequest, reg_sqlite: Registry) -> Iterator[tuple[Registry, Registry]]:
    """The registry as it is under test, and the same one in process."""
    if request.param == "in process":
        yield reg_sqlite, reg_sqlite
        return
    with (
        serving(reg_sqlite, operator_secret=OPERATOR_SECRET, token_cache_seconds=0.0) as url,
        registry.open(url, token=OPERATOR_SECRET) as outside,
    ):
        yield outside, reg_sqlite


def test_what_is_kept_and_what_goes(faces: tuple[Registry, Registry], make_adapter: Callable[..., Path]) -> None:
    reg, inside = faces
    for seed in (1, 2, 3):
        inside.publish(make_adapter(seed=seed), A, principal=OPERATOR)
    assert reg.lease([f"{A}@1", f"{A}@9"], holder="server 1/a", duration=HOUR) == [f"{A}@1"]
    assert reg.leases(A, OPERATOR) == inside.leases(A, OPERATOR)
    pin = reg.pin(f"{A}@2", reason="ümlaut", principal=OPERATOR)
    assert reg.pins(A, OPERATOR) == [pin] == inside.pins(A, OPERATOR)
    with pytest.raises(NeededVersionError, match="pinned it") as caught:
        reg.delete_version(f"{A}@2", OPERATOR, force=True)
    assert (caught.value.needed_by, caught.value.needer, caught.value.can_force) == ("pin", "operator", False)
    with pytest.raises(ConflictError, match="server 1/a uses it"):
        reg.delete_version(f"{A}@1", OPERATOR)
    assert reg.release_leases("server 1/a") == 1
    reg.promote(f"{A}@1", "prod", principal=OPERATOR)
    reg.promote(f"{A}@3", "prod", principal=OPERATOR)
    with pytest.raises(NeededVersionError, match="a rollback of the alias 'prod' goes back to it") as caught:
        reg.delete_version(f"{A}@1", OPERATOR)
    assert (caught.value.number, caught.value.needed_by, caught.value.needer) == (1, "rollback", "prod")
    assert caught.value.can_force
    reg.delete_version(f"{A}@1", OPERATOR, force=True)
    with pytest.raises(ConflictError, match="what it pointed at before was deleted"):
        reg.rollback(A, "prod", principal=OPERATOR)
    assert reg.unpin(f"{A}@2", principal=OPERATOR) == pin
    with pytest.raises(InvalidNameError):
        reg.delete_version(A, OPERATOR)
    rule = RetentionRule(keep_last=3, keep_days=7)
    assert reg.retention(A, OPERATOR) is None
    assert reg.set_retention(A, rule, OPERATOR) == rule == inside.retention(A, OPERATOR)
    assert reg.set_retention(A, None, OPERATOR) is None
    assert reg.retention(A, OPERATOR) is None
    with pytest.raises(InvalidValueError, match="neither a number of versions nor days"):
        reg.set_retention(A, RetentionRule(), OPERATOR)
    reg.move_adapter(A, "acme/sql", OPERATOR)
    assert reg.moved_to(A, OPERATOR) == "acme/sql"
    assert reg.moved_to("acme/sql", OPERATOR) is None
    reg.delete_adapter("acme/sql", OPERATOR)
    with pytest.raises(NotFoundError):
        reg.delete_adapter("acme/sql", OPERATOR)
    inside.check_integrity()


def test_visibility(faces: tuple[Registry, Registry], make_adapter: Callable[..., Path]) -> None:
    reg, inside = faces
    reg.publish(make_adapter(seed=1), A, principal=OPERATOR)
    inside.create_tenant("globex")
    stranger, publisher = (
        reg.authenticate(inside.create_token(tenant, "publisher").secret) for tenant in ("globex", "acme")
    )
    with pytest.raises(NotFoundError):
        reg.resolve(A, principal=stranger)
    assert reg.set_visibility(A, "public", OPERATOR) is Visibility.PUBLIC
    assert reg.set_visibility(A, "public", OPERATOR) is Visibility.PUBLIC
    assert reg.resolve(A, principal=stranger).visibility is Visibility.PUBLIC
    with pytest.raises(PermissionDeniedError, match="private"):
        reg.set_visibility(A, "private", stranger)
    with pytest.raises(PermissionDeniedError, match="private"):
        reg.set_visibility(A, "private", publisher)
    with pytest.raises(InvalidValueError, match="private, public"):
        reg.set_visibility(A, "secret", OPERATOR)
    assert reg.set_visibility(A, "private", OPERATOR) is Visibility.PRIVATE
    with pytest.raises(NotFoundError):
        reg.set_visibility(A, "public", stranger)
    told = [event for event in inside.events(OPERATOR, after=0).events if event.kind == EventKind.ADAPTER_VISIBILITY]
    assert [event.document["visibility"] for event in told] == ["public", "private"]
    assert [entry.action for entry in inside.audit_entries(tenant="acme")].count("visibility") == 2


def test_what_can_be_checked(faces: tuple[Registry, Registry], make_adapter: Callable[..., Path]) -> None:
    reg, inside = faces
    version = inside.publish(make_adapter(seed=1), A, principal=OPERATOR)
    usage = reg.set_quota("acme", quota_bytes=10**9, quota_versions=1)
    assert reg.usage("acme") == usage == inside.usage("acme")
    with pytest.raises(QuotaExceededError) as caught:
        reg.publish(make_adapter(seed=2), A, principal=OPERATOR)
    assert (caught.value.limit, caught.value.quota, caught.value.asked) == ("versions", 1, 1)
    assert reg.audit_entries(tenant="acme", limit=5) == inside.audit_entries(tenant="acme", limit=5)
    verification = reg.verify_audit()
    assert verification == inside.verify_audit()
    assert reg.verify_audit(expect=verification.row_hash).is_whole
    assert not reg.verify_audit(expect="0" * 63 + "1").is_whole
    key = model_signature.generate_key("ed25519")
    added = reg.add_key("acme", model_signature.pem_of(key.public_key()), label="release/2026")
    assert reg.list_keys("acme") == [added] == inside.list_keys("acme")
    bundle = model_signature.sign(version.files, "text2sql", key)
    signature = reg.attach_signature(f"{A}@1", bundle, principal=OPERATOR)
    assert reg.signatures(f"{A}@1", OPERATOR) == [signature]
    with pytest.raises(InvalidValueError, match="bundle"):
        reg.attach_signature(f"{A}@1", "{}", principal=OPERATOR)
    assert reg.revoke_key("acme", added.key_id).revoked_at is not None
    assert reg.signatures(f"{A}@1", OPERATOR)[0].fault is not None


Run = Callable[..., Result]


@pytest.fixture
def run(reg_sqlite: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command on the test's registry."""
    assert reg_sqlite.folder is not None
    monkeypatch.chdir(tmp_path)
    place = ["--registry", str(reg_sqlite.folder)]

    def invoke(*arguments: str, code: int = 0, has_place: bool = True) -> Result:
        loaded: Any = COMMANDS[arguments[0]].load()
        group = click.Group(commands={arguments[0]: loaded})
        result = CliRunner().invoke(group, [*arguments, *(place if has_place else [])])
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def published(reg_sqlite: Registry, tmp_path: Path) -> Registry:
    for seed in (1, 2, 3):
        reg_sqlite.publish(write_adapter(tmp_path / f"run-{seed}", seed=seed), A, principal=OPERATOR)
    return reg_sqlite


def document(result: Result) -> Any:
    return json.loads(result.output)


def test_commands_of_quotas_and_tokens(published: Registry, run: Run) -> None:
    run("tenant", "quota", "acme", "--bytes", "1.5GB", "--versions", "100")
    usage = document(run("tenant", "show", "acme", "--json"))
    assert (usage["quota_bytes"], usage["quota_versions"], usage["used_versions"]) == (1_500_000_000, 100, 3)
    assert "1.5 GB" in run("tenant", "quota", "acme", "--versions", "none").output
    assert published.usage("acme").quota_bytes == 1_500_000_000, "what is not named stays"
    assert "no size" in run("tenant", "quota", "acme", "--bytes", "10XB", code=2).output
    made = document(run("token", "create", "--tenant", "acme", "--scope", "sql-*", "--scope", "text2sql", "--json"))
    assert made["scope"] == ["sql-*", "text2sql"]
    rotated = document(run("token", "rotate", made["token_id"], "--overlap", "1h", "--json"))
    assert rotated["secret"] != made["secret"]
    assert published.authenticate(made["secret"]).scope == published.authenticate(rotated["secret"]).scope
    assert "no duration" in run("token", "rotate", made["token_id"], "--overlap", "1w", code=2).output


def test_commands_of_upkeep(published: Registry, run: Run) -> None:
    assert "Delete acme/text2sql@1?" in run("delete", f"{A}@1", code=1).output
    assert run("delete", f"{A}@1", "--yes").output == "acme/text2sql@1 is deleted\n"
    assert run("pin", f"{A}@2", "--reason", "audit").output == "acme/text2sql@2 is pinned\n"
    assert "audit" in run("pins", A).output
    assert "pinned it (audit)" in run("delete", f"{A}@2", "--yes", code=1).output
    run("unpin", f"{A}@2")
    assert "No version is pinned" in run("pins", A).output
    assert "Every version" in run("retention", A).output
    assert "the last version" in run("retention", A, "--keep-last", "1").output
    dry = document(run("gc", "--dry-run", "--json"))
    assert (dry["is_dry_run"], dry["versions"]) == (True, [f"{A}@2"])
    assert "Deleted 1 versions by retention rules" in run("gc", "--grace", "24h").output
    assert "Every version" in run("retention", A, "--keep-all").output
    assert run("retention", A, "--keep-all", "--keep-last", "2", code=2)
    assert run("visibility", A, "public").output == "acme/text2sql is public\n"
    shown = document(run("visibility", A, "private", "--json"))
    assert shown == {"adapter": A, "visibility": "private"}
    run("visibility", A, "secret", code=2)
    assert run("move", A, "acme/sql").output == "acme/text2sql is now acme/sql\n"
    assert "0 faults" in run("fsck").output
    assert document(run("fsck", "--repair", "--json"))["faults"] == []
    run("delete", "acme/sql", "--yes")
    assert "rests until" in run("publish", "run-1", A, code=1).output


def test_fsck_names_what_is_hurt(published: Registry, run: Run) -> None:
    version = published.resolve(f"{A}@2", principal=OPERATOR)
    blob = next(file.sha256 for file in version.files if file.path.endswith(".safetensors"))
    assert published.folder is not None
    (published.folder / "blobs" / blob[:2] / blob).unlink()
    result = run("fsck", code=1)
    assert f"missing-blob: blob {blob} is missing; hurts acme/text2sql@2" in result.output


def test_commands_of_the_audit_log(published: Registry, run: Run) -> None:
    whole = run("audit", "verify").output
    found = re.search(r"newest    ([0-9a-f]{64})", whole)
    assert found is not None
    run("tenant", "create", "globex")
    run("audit", "verify", "--expect", found[1])
    assert "Broken: the hash" in run("audit", "verify", "--expect", "0" * 64, code=1).output
    assert "create_tenant" in run("audit", "ls", "--tenant", "globex").output
    assert [entry["action"] for entry in document(run("audit", "ls", "--limit", "2", "--json"))] == [
        "create_tenant",
        "publish",
    ]


def test_commands_of_signatures(published: Registry, run: Run, tmp_path: Path) -> None:
    made = document(run("key", "generate", "release.pem", "--json", has_place=False))
    assert (tmp_path / "release.pem").stat().st_mode & 0o777 == 0o600
    assert "cannot be written" in run("key", "generate", "release.pem", code=1, has_place=False).output
    run("key", "add", "release.pem.pub", "--tenant", "acme", "--label", "release")
    assert (
        "stays with whoever signs"
        in run("key", "add", "release.pem", "--tenant", "acme", "--label", "oops", code=1).output
    )
    assert "release" in run("key", "ls", "--tenant", "acme").output
    assert "0 valid signatures" in run("verify", f"{A}@2", code=1).output
    assert "not those of" in run("sign", f"{A}@2", "--key", "release.pem", "--folder", "run-1", code=1).output
    run("sign", f"{A}@2", "--key", "release.pem", "--folder", "run-2")
    assert "1 valid signature\n" in run("verify", f"{A}@2", "--bundle", "model.sig").output
    key = model_signature.read_public_key((tmp_path / "release.pem.pub").read_text())
    version = published.resolve(f"{A}@2", principal=OPERATOR)
    assert model_signature.verify((tmp_path / "model.sig").read_text(), version.files, key) is None
    run("verify", f"{A}@2", "--key", "release.pem.pub")
    run("key", "generate", "other.pem", "--algorithm", "ecdsa-p256", has_place=False)
    run("verify", f"{A}@2", "--key", "other.pem.pub", code=1)
    run("key", "revoke", made["key_id"][:12], "--tenant", "acme")
    assert "does not count: key 'release' was revoked" in run("verify", f"{A}@2", code=1).output
    stored = b"".join(path.read_bytes() for path in (tmp_path / "registry").rglob("*") if path.is_file())
    assert b"PRIVATE KEY" not in stored
    assert "need no signature" in run("tenant", "policy", "acme").output
    assert "must have a trusted signature" in run("tenant", "policy", "acme", "--require-signature").output
    assert "signature" in run("promote", f"{A}@2", "--alias", "prod", code=1).output
