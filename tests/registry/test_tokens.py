"""Tokens that are for some adapters only, and tokens that take another's place."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import registry
from registry.errors import AuthenticationError, ConflictError, InvalidValueError, NotFoundError, PermissionDeniedError
from registry.scope import Scope

Publish = Callable[..., registry.Version]
OPERATOR = registry.Principal.operator()


def scoped(reg: registry.Registry, *patterns: str, role: str = "admin") -> registry.Principal:
    return reg.authenticate(reg.create_token("acme", role, scope=patterns).secret)


@pytest.mark.sqlite_only
def test_a_scope_is_kept_and_shown(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    issued = reg.create_token("acme", "reader", scope=["text2sql", "cron-*"])
    assert issued.scope == ("cron-*", "text2sql")
    assert reg.list_tokens("acme")[0].scope == issued.scope
    assert reg.authenticate(issued.secret).scope == Scope(("cron-*", "text2sql"))
    for patterns in ([], [""], ["acme/text2sql"], ["a***b"], ["A"], ["x" * 97], ["a%"], ["name"] * 101):
        with pytest.raises(InvalidValueError, match="scope"):
            reg.create_token("acme", "reader", scope=patterns)


def test_outside_of_its_scope_a_private_adapter_is_missing(reg: registry.Registry, publish: Publish) -> None:
    for name in ("sql-a", "sql_a", "sqlxa", "other"):
        publish(f"acme/{name}")
    publish("acme/open", visibility="public")
    caller = scoped(reg, "sql_*")
    assert [summary.adapter for summary in reg.list_adapters(caller)] == ["acme/open", "acme/sql_a"]
    assert reg.resolve("acme/sql_a", principal=caller).number == 1
    with pytest.raises(NotFoundError) as caught:
        reg.resolve("acme/other", principal=caller)
    with pytest.raises(NotFoundError) as missing:
        reg.resolve("acme/absent", principal=caller)
    assert str(caught.value) == str(missing.value).replace("absent", "other")
    hidden = reg.resolve("acme/other", principal=OPERATOR)
    with pytest.raises(NotFoundError):
        reg.resolve(hidden.digest, principal=caller)


@pytest.mark.sqlite_only
def test_outside_of_its_scope_nothing_is_changed(reg: registry.Registry, publish: Publish) -> None:
    publish("acme/other")
    caller = scoped(reg, "sql-*")
    publish("acme/sql-a", principal=caller)
    reg.promote("acme/sql-a@1", "prod", principal=caller)
    with pytest.raises(PermissionDeniedError, match=r"your token is for sql-\* only"):
        publish("acme/other", principal=caller)
    with pytest.raises(NotFoundError):
        reg.promote("acme/other@1", "prod", principal=caller)
    with pytest.raises(PermissionDeniedError, match="concerns all of 'acme'"):
        reg.create_token("acme", "reader", principal=caller)
    with pytest.raises(PermissionDeniedError, match="concerns all of 'acme'"):
        reg.usage("acme", principal=caller)


def test_the_events_that_a_scoped_token_sees(reg: registry.Registry, publish: Publish) -> None:
    publish("acme/sql-a")
    publish("acme/other")
    seen = {event.adapter for event in reg.events(scoped(reg, "sql-*"), after=0).events}
    assert "acme/sql-a" in seen
    assert "acme/other" not in seen


@given(st.text("ab-_.*", min_size=1, max_size=8), st.text("ab-_.", min_size=1, max_size=8))
def test_the_pattern_and_its_sql_agree(pattern: str, name: str) -> None:
    try:
        scope = Scope.parse([pattern])
    except InvalidValueError:
        return
    (like,) = scope.like_patterns()
    with sqlite3.connect(":memory:") as connection:
        found = connection.execute("SELECT ? LIKE ? ESCAPE '\\'", (name, like)).fetchone()[0]
    connection.close()
    assert bool(found) == scope.covers(name)


def test_rotation(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    end = datetime.now(UTC) + timedelta(days=30)
    old = reg.create_token("acme", "promoter", label="ci", expires_at=end, scope=["sql-*"])
    new = reg.rotate_token(old.token_id, overlap=timedelta(milliseconds=400))
    assert (new.role, new.label, new.expires_at, new.scope) == (old.role, old.label, old.expires_at, old.scope)
    assert new.secret != old.secret
    listed = {token.token_id: token for token in reg.list_tokens("acme")}
    assert listed[old.token_id].replaced_by == new.token_id
    assert reg.authenticate(old.secret).role == reg.authenticate(new.secret).role
    time.sleep(0.45)
    with pytest.raises(AuthenticationError):
        reg.authenticate(old.secret)
    reg.authenticate(new.secret)
    with pytest.raises(ConflictError, match=f"rotate {new.token_id}"):
        reg.rotate_token(old.token_id)
    reg.revoke_token(new.token_id)
    with pytest.raises(ConflictError, match="revoked or expired"):
        reg.rotate_token(new.token_id)


@pytest.mark.sqlite_only
def test_an_overlap_does_not_make_a_token_live_longer(reg: registry.Registry) -> None:
    reg.create_tenant("acme")
    end = datetime.now(UTC) + timedelta(hours=1)
    old = reg.create_token("acme", "reader", expires_at=end)
    reg.rotate_token(old.token_id, overlap=timedelta(days=2))
    assert reg.list_tokens("acme")[0].expires_at == end
    with pytest.raises(InvalidValueError, match="overlap"):
        reg.rotate_token(old.token_id, overlap=timedelta(days=31))


@pytest.mark.sqlite_only
def test_who_may_rotate(reg: registry.Registry) -> None:
    for tenant in ("acme", "globex"):
        reg.create_tenant(tenant)
    mine = reg.create_token("acme", "reader")
    other = reg.create_token("acme", "reader")
    reader = reg.authenticate(mine.secret)
    stranger = reg.authenticate(reg.create_token("globex", "admin").secret)
    with pytest.raises(PermissionDeniedError, match="needs 'admin'"):
        reg.rotate_token(other.token_id, principal=reader)
    for token_id in (other.token_id, "tok_0"):
        with pytest.raises(NotFoundError, match="There is no token"):
            reg.rotate_token(token_id, principal=stranger)
    assert reg.rotate_token(mine.token_id, principal=reader).replaced_by is None
