"""Tenants, tokens and roles; and that nobody learns of another tenant's private adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import registry
from registry.errors import (
    AuthenticationError,
    ConflictError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
)

Publish = Callable[..., registry.Version]


def principal(reg: registry.Registry, tenant: str, role: str) -> registry.Principal:
    return reg.authenticate(reg.create_token(tenant, role).secret)


def test_tenants(reg: registry.Registry) -> None:
    reg.create_tenant("globex")
    reg.create_tenant("acme")
    assert [tenant.name for tenant in reg.list_tenants()] == ["acme", "globex"]
    with pytest.raises(ConflictError, match="'acme' exists already"):
        reg.create_tenant("acme")
    with pytest.raises(InvalidNameError):
        reg.create_tenant("operator")


def test_a_token_opens_its_tenant(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    assert not reg.has_tokens()
    issued = reg.create_token("acme", "publisher", label="ci")
    assert reg.has_tokens()
    assert issued.secret.startswith("lpx_")
    assert reg.authenticate(issued.secret) == registry.Principal("acme", registry.Role.PUBLISHER, issued.token_id)
    assert [token.token_id for token in reg.list_tokens("acme")] == [issued.token_id]
    assert issued.secret not in repr(issued)


def test_what_is_no_token(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    issued = reg.create_token("acme", registry.Role.READER)
    texts = set()
    for secret in (
        "",
        "x",
        "lpx_",
        issued.secret[:-1],
        issued.secret + "x",
        "lpx_" + "é" * 40,
        "lpx_\ud800",
        "l" * 10**6,
    ):
        with pytest.raises(AuthenticationError) as caught:
            reg.authenticate(secret)
        texts.add(str(caught.value))
    reg.revoke_token(issued.token_id)
    with pytest.raises(AuthenticationError) as caught:
        reg.authenticate(issued.secret)
    assert texts == {str(caught.value)}, "the error does not say why"


def test_a_revoked_token_stays_listed_and_the_registry_stays_closed(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    issued = reg.create_token("acme", "reader")
    revoked = reg.revoke_token(issued.token_id)
    assert revoked.revoked_at is not None
    assert reg.revoke_token(issued.token_id) == revoked == reg.list_tokens("acme")[0]
    assert reg.has_tokens()
    with pytest.raises(NotFoundError, match="There is no token"):
        reg.revoke_token("tok_0")


def test_a_token_expires(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    soon = datetime.now(UTC) + timedelta(milliseconds=300)
    issued = reg.create_token("acme", "reader", expires_at=soon)
    assert reg.list_tokens("acme")[0].expires_at == soon
    while datetime.now(UTC) < soon:
        pass
    with pytest.raises(AuthenticationError):
        reg.authenticate(issued.secret)


def test_bad_tokens_are_not_made(reg: registry.Registry) -> None:
    with pytest.raises(NotFoundError, match="There is no tenant"):
        reg.create_token("acme", "reader")
    with pytest.raises(NotFoundError, match="There is no tenant"):
        reg.list_tokens("acme")
    reg.create_tenant("acme")
    with pytest.raises(InvalidValueError, match="reader, publisher, promoter, admin"):
        reg.create_token("acme", "root")
    for expires_at in (datetime.now(UTC), datetime(2099, 1, 1)):  # noqa: DTZ001 - the missing zone is the fault
        with pytest.raises(InvalidValueError, match="time zone"):
            reg.create_token("acme", "reader", expires_at=expires_at)
    with pytest.raises(InvalidValueError, match="200 characters"):
        reg.create_token("acme", "reader", label="x" * 201)
    assert not reg.has_tokens()


def test_a_secret_is_stored_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    with registry.open(folder) as reg:
        reg.create_tenant("acme")
        secret = reg.create_token("acme", "admin", label="laptop").secret
        reg.authenticate(secret)
        files = [path for path in folder.rglob("*") if path.is_file()]
        stored = b"".join(path.read_bytes() for path in files)
    stored += b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert any(path.name == "catalog.sqlite-wal" for path in files)
    assert secret.encode() not in stored
    assert secret.removeprefix("lpx_").encode() not in stored
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in stored


def test_a_foreign_private_adapter_is_as_missing_as_a_missing_one(reg: registry.Registry, publish: Publish) -> None:
    version = publish("acme/secret")
    operator = registry.Principal.operator()
    reg.promote("acme/secret@1", "prod", principal=operator)
    reg.create_tenant("globex")
    stranger = principal(reg, "globex", "admin")

    def text_of(call: Callable[[], object]) -> str:
        with pytest.raises(NotFoundError) as caught:
            call()
        assert type(caught.value) is NotFoundError
        return str(caught.value)

    for selector in ("", "@1", "@prod", f"@{version.digest}", f"@{version.digest[:19]}", "@9", "@none"):
        hidden = text_of(lambda ref=f"acme/secret{selector}": reg.resolve(ref, principal=stranger))
        missing = text_of(lambda ref=f"acme/absent{selector}": reg.resolve(ref, principal=stranger))
        assert hidden == missing.replace("absent", "secret")
    for call in (reg.list_versions, reg.aliases):
        hidden = text_of(lambda call=call: call("acme/secret", stranger))
        assert hidden == text_of(lambda call=call: call("acme/absent", stranger)).replace("absent", "secret")
    hidden = text_of(lambda: reg.alias_history("acme/secret", "prod", stranger))
    assert hidden == text_of(lambda: reg.alias_history("acme/absent", "prod", stranger)).replace("absent", "secret")
    for verb in (reg.promote, reg.rollback):
        hidden = text_of(lambda verb=verb: verb("acme/secret", "prod", principal=stranger))
        missing = text_of(lambda verb=verb: verb("acme/absent", "prod", principal=stranger))
        assert hidden == missing.replace("absent", "secret")
    unknown = "sha256:" + "0" * 64
    hidden = text_of(lambda: reg.resolve(version.digest, principal=stranger))
    assert hidden == text_of(lambda: reg.resolve(unknown, principal=stranger)).replace(unknown, version.digest)
    assert reg.list_adapters(stranger) == []
    assert [summary.adapter for summary in reg.list_adapters(principal(reg, "acme", "reader"))] == ["acme/secret"]


def test_publishing_to_another_tenant_tells_nothing_of_it(
    reg: registry.Registry, publish: Publish, make_adapter: Callable[..., Path]
) -> None:
    publish("acme/secret")
    reg.create_tenant("globex")
    stranger = principal(reg, "globex", "admin")
    texts = []
    for name in ("acme/secret", "acme/absent", "nobody/absent"):
        with pytest.raises(PermissionDeniedError) as caught:
            reg.publish(make_adapter(), name, principal=stranger)
        texts.append(str(caught.value).replace(name, "NAME").replace(name.partition("/")[0], "TENANT"))
    assert len(set(texts)) == 1
    assert [tenant.name for tenant in reg.list_tenants()] == ["acme", "globex"]


def test_equal_files_of_two_tenants_stay_apart(reg: registry.Registry, make_adapter: Callable[..., Path]) -> None:
    operator = registry.Principal.operator()
    mine = reg.publish(make_adapter(seed=1), "globex/mine", principal=operator)
    theirs = reg.publish(make_adapter(seed=1), "acme/theirs", principal=operator)
    assert mine.digest == theirs.digest
    reader = principal(reg, "globex", "reader")
    assert reg.resolve(mine.digest, principal=reader).adapter == "globex/mine"
    assert reg.resolve(mine.digest, principal=principal(reg, "acme", "reader")).adapter == "acme/theirs"
    reg.publish(make_adapter(seed=1), "acme/theirs", principal=operator, visibility="public")
    assert reg.resolve(mine.digest, principal=reader).adapter == "globex/mine", "its own comes first"
    assert len(reg.list_adapters(reader)) == 2


def test_a_public_adapter_is_read_by_everybody_and_changed_by_its_tenant(
    reg: registry.Registry, publish: Publish
) -> None:
    version = publish("acme/open", visibility="public")
    reg.create_tenant("globex")
    stranger = principal(reg, "globex", "admin")
    assert reg.resolve("acme/open", principal=stranger) == version
    assert reg.resolve(version.digest, principal=stranger) == version
    assert [summary.adapter for summary in reg.list_adapters(stranger)] == ["acme/open"]
    with pytest.raises(PermissionDeniedError, match="belongs to tenant 'globex'"):
        reg.promote("acme/open@1", "prod", principal=stranger)


@pytest.mark.parametrize(
    ("role", "may_publish", "may_promote"),
    [("reader", False, False), ("publisher", True, False), ("promoter", True, True), ("admin", True, True)],
)
def test_roles(
    reg: registry.Registry,
    publish: Publish,
    role: str,
    may_publish: bool,
    may_promote: bool,
) -> None:
    publish("acme/a")
    publish("acme/a")
    caller = principal(reg, "acme", role)
    assert reg.resolve("acme/a", principal=caller).number == 2
    if may_publish:
        version = publish("acme/a", principal=caller)
        assert version.created_by == caller.token_id
    else:
        with pytest.raises(PermissionDeniedError, match=f"has the role '{role}', and this needs 'publisher'"):
            publish("acme/a", principal=caller)
    if may_promote:
        assert reg.promote("acme/a@1", "prod", principal=caller).actor == caller.token_id
        reg.promote("acme/a@2", "prod", principal=caller)
        reg.rollback("acme/a", "prod", principal=caller)
    else:
        for move in (reg.promote, reg.rollback):
            with pytest.raises(PermissionDeniedError, match=f"has the role '{role}', and this needs 'promoter'"):
                move("acme/a", "prod", principal=caller)


def test_roles_are_ordered() -> None:
    roles = list(registry.Role)
    assert [role.value for role in roles] == ["reader", "publisher", "promoter", "admin"]
    for index, role in enumerate(roles):
        assert [role.includes(needed) for needed in roles] == [position <= index for position in range(4)]
