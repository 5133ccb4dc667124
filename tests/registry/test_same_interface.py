"""A registry in a folder and the same one over HTTP: the same methods, values and errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest

import registry
from registry.client import LOCAL_ONLY, RemoteRegistry
from registry.errors import (
    AliasMovedError,
    AuthenticationError,
    BaseMismatchError,
    ConflictError,
    InvalidBaseError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
    RegistryError,
    RejectedAdapterError,
)
from registry.expected import AtSequence
from registry.principal import OPERATOR, Principal
from registry.registry import Registry
from registry.subject import Subject
from tests.registry.adapter_folders import (
    FINGERPRINT,
    OTHER_FINGERPRINT,
    base_document,
    manifest_document,
)
from tests.registry.http.server import serving

MakeAdapter = Callable[..., Path]
OPERATOR_SECRET = "operator-" + "s" * 32
NAME = "acme/text2sql"


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
        assert isinstance(outside, RemoteRegistry)
        yield outside, reg_sqlite


@pytest.fixture
def reg(faces: tuple[Registry, Registry]) -> Registry:
    return faces[0]


@pytest.fixture
def publish(reg: Registry, make_adapter: MakeAdapter) -> Callable[..., registry.Version]:
    seeds = iter(range(1, 1000))

    def publish_next(name: str = NAME, **options: object) -> registry.Version:
        return reg.publish(make_adapter(seed=next(seeds)), name, **({"principal": OPERATOR} | options))  # type: ignore[arg-type]

    return publish_next


Publish = Callable[..., registry.Version]


def test_the_two_classes_have_the_same_methods() -> None:
    def public(kind: type) -> dict[str, inspect.Signature]:
        return {
            name: inspect.signature(member)
            for name, member in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    local, remote = public(Registry), public(RemoteRegistry)
    assert sorted(set(local) - LOCAL_ONLY) == sorted(remote)
    for name, signature in remote.items():
        assert signature == local[name], name
    for name in remote:
        assert inspect.getdoc(getattr(RemoteRegistry, name)), name


@pytest.mark.parametrize("whole", [Registry, RemoteRegistry])
def test_every_method_of_a_part_is_one_of_the_whole(whole: type) -> None:
    subjects = {name: member for name, member in vars(whole).items() if isinstance(member, Subject)}
    assert sorted(subjects) == [
        "_adapters",
        "_aliases",
        "_events",
        "_insight",
        "_lifetime",
        "_mirrors",
        "_publishing",
        "_safekeeping",
        "_tenants",
        "_trust",
    ]
    for subject in subjects.values():
        (part,) = get_args(subject.__orig_class__)
        for name, method in inspect.getmembers(part, inspect.isfunction):
            assert name.startswith("_") or inspect.unwrap(getattr(whole, name)) is method, f"{part}.{name}"


def test_a_version_is_the_same_value(faces: tuple[Registry, Registry], make_adapter: MakeAdapter) -> None:
    reg, inside = faces
    outcome = reg.publish_outcome(make_adapter(), NAME, principal=OPERATOR, message="ümlaut \n second line")
    assert outcome.is_new
    assert outcome.version == inside.resolve(f"{NAME}@1", principal=OPERATOR)
    assert outcome.version.manifest == manifest_document()
    again = reg.publish_outcome(make_adapter(), NAME, principal=OPERATOR)
    assert not again.is_new
    assert again.version == outcome.version
    for ref in (NAME, f"{NAME}@1", f"{NAME}@{outcome.version.digest}", outcome.version.digest):
        assert reg.resolve(ref, principal=OPERATOR) == outcome.version
    assert reg.adapter(NAME, OPERATOR) == inside.adapter(NAME, OPERATOR)


def test_pull(reg: Registry, publish: Publish, tmp_path: Path) -> None:
    version = publish()
    folder = reg.pull(version, tmp_path / "pulled")
    assert sorted(path.name for path in folder.iterdir()) == [file.path for file in version.files]
    assert reg.pull(version, folder) == folder, "it is there already, to the byte"
    (folder / "README.md").write_text("mine")
    with pytest.raises(ConflictError, match="holds other files"):
        reg.pull(version, folder)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_pages(reg: Registry, publish: Publish) -> None:
    for name in ("acme/a", "acme/b", "globex/a"):
        publish(name)
    publish("acme/a")
    first = reg.page_adapters(OPERATOR, limit=2)
    assert [summary.adapter for summary in first.items] == ["acme/a", "acme/b"]
    rest = reg.page_adapters(OPERATOR, limit=2, cursor=first.next_cursor)
    assert [summary.adapter for summary in rest.items] == ["globex/a"]
    assert rest.next_cursor is None
    assert [summary.adapter for summary in reg.list_adapters(OPERATOR)] == ["acme/a", "acme/b", "globex/a"]
    assert [summary.adapter for summary in reg.page_adapters(OPERATOR, tenant="globex").items] == ["globex/a"]
    assert [summary.adapter for summary in reg.page_adapters(OPERATOR, search="e/b").items] == ["acme/b"]
    assert reg.page_adapters(OPERATOR, search="100%_").items == ()
    assert [version.number for version in reg.list_versions("acme/a", OPERATOR)] == [2, 1]
    page = reg.page_versions("acme/a", OPERATOR, limit=1)
    assert [version.number for version in page.items] == [2]
    assert [version.number for version in reg.page_versions("acme/a", OPERATOR, cursor=page.next_cursor).items] == [1]
    for limit in (0, 1001):
        with pytest.raises(InvalidValueError):
            reg.page_adapters(OPERATOR, limit=limit)
    with pytest.raises(InvalidValueError) as caught:
        reg.page_adapters(OPERATOR, cursor="!")
    assert caught.value.field == "cursor"


def test_promotion_is_a_compare_and_set(reg: Registry, publish: Publish) -> None:
    for _ in range(3):
        publish()
    move = reg.promote(f"{NAME}@1", "prod", principal=OPERATOR, expected=None, evidence="94% \N{CHECK MARK}")
    assert (move.from_number, move.to_number, move.sequence, move.evidence) == (None, 1, 1, "94% \N{CHECK MARK}")
    with pytest.raises(AliasMovedError) as caught:
        reg.promote(f"{NAME}@2", "prod", principal=OPERATOR, expected=None)
    error = caught.value
    assert (error.adapter, error.alias, error.expected, error.actual) == (NAME, "prod", None, 1)
    reg.promote(f"{NAME}@2", "prod", principal=OPERATOR, expected=1)
    with pytest.raises(AliasMovedError, match="points at version 2, not at what you expected"):
        reg.promote(f"{NAME}@3", "prod", principal=OPERATOR, expected=1)
    with pytest.raises(AliasMovedError):
        reg.promote(f"{NAME}@3", "prod", principal=OPERATOR, expected=AtSequence(1))
    reg.promote(NAME, "prod", principal=OPERATOR, expected=AtSequence(2))
    assert reg.aliases(NAME, OPERATOR) == {"prod": 3}
    back = reg.rollback(NAME, "prod", principal=OPERATOR, expected=3)
    assert (back.kind, back.to_number) == ("rollback", 2)
    reg.rollback(NAME, "prod", principal=OPERATOR, expected=AtSequence(4))
    with pytest.raises(ConflictError, match="with none before it"):
        reg.rollback(NAME, "prod", principal=OPERATOR)
    history = reg.alias_history(NAME, "prod", OPERATOR)
    assert [entry.to_number for entry in history] == [1, 2, 3, 2, 1]
    assert history[-1] == move
    assert reg.promote(f"{NAME}@prod", "staging", principal=OPERATOR).to_number == 1


def test_deleting_an_alias_is_a_compare_and_set_too(reg: Registry, publish: Publish) -> None:
    publish(), publish()
    reg.promote(f"{NAME}@1", "prod", principal=OPERATOR)
    for expected in (2, AtSequence(2)):
        with pytest.raises(AliasMovedError) as caught:
            reg.delete_alias(NAME, "prod", principal=OPERATOR, expected=expected)
        assert caught.value.actual == 1
    with pytest.raises(InvalidValueError) as refused:
        reg.delete_alias(NAME, "prod", principal=OPERATOR, expected=None)
    assert refused.value.field == "expected"
    with pytest.raises(InvalidValueError) as too_long:
        reg.delete_alias(NAME, "prod", principal=OPERATOR, evidence="x" * 1_001)
    assert too_long.value.field == "evidence"
    evidence = "\N{CHECK MARK}" * 1_000
    move = reg.delete_alias(NAME, "prod", principal=OPERATOR, expected=1, evidence=evidence)
    assert (move.kind, move.from_number, move.to_number, move.evidence) == ("delete", 1, None, evidence)
    assert (reg.aliases(NAME, OPERATOR), reg.alias_history(NAME, "prod", OPERATOR)[0]) == ({}, move)
    with pytest.raises(NotFoundError):
        reg.delete_alias(NAME, "prod", principal=OPERATOR)
    reg.promote(f"{NAME}@2", "prod", principal=OPERATOR, expected=None)
    assert reg.delete_alias(NAME, "prod", principal=OPERATOR, expected=AtSequence(3)).sequence == 4


def test_an_alias_that_came_back_is_not_where_it_was(reg: Registry, publish: Publish) -> None:
    publish(), publish()
    for number in (1, 2, 1):
        reg.promote(f"{NAME}@{number}", "prod", principal=OPERATOR)
    reg.promote(f"{NAME}@1", "prod", principal=OPERATOR, expected=1)
    with pytest.raises(AliasMovedError):
        reg.promote(f"{NAME}@2", "prod", principal=OPERATOR, expected=AtSequence(1))
    assert reg.aliases(NAME, OPERATOR) == {"prod": 1}


def test_tenants_and_tokens(faces: tuple[Registry, Registry]) -> None:
    reg, inside = faces
    assert reg.create_tenant("acme") == inside.list_tenants()[0]
    with pytest.raises(ConflictError, match="'acme' exists already"):
        reg.create_tenant("acme")
    with pytest.raises(InvalidNameError) as caught:
        reg.create_tenant("operator")
    assert caught.value.text == "operator"
    expires_at = datetime.now(UTC) + timedelta(days=1)
    issued = reg.create_token("acme", "publisher", label="ci", expires_at=expires_at, scope=["sql-*"])
    assert issued.secret.startswith("lpx_")
    assert (issued.role, issued.label, issued.expires_at, issued.scope) == ("publisher", "ci", expires_at, ("sql-*",))
    assert issued.secret not in repr(issued)
    found = reg.authenticate(issued.secret)
    assert found == inside.authenticate(issued.secret)
    assert (found.tenant, found.role, found.token_id) == ("acme", "publisher", issued.token_id)
    assert reg.has_tokens()
    assert [token.token_id for token in reg.list_tokens("acme")] == [issued.token_id]
    assert not any(hasattr(token, "secret") for token in reg.list_tokens("acme"))
    fresh = reg.rotate_token(issued.token_id, overlap=timedelta(minutes=5))
    assert reg.authenticate(issued.secret).token_id == issued.token_id, "both are good for a while"
    assert reg.authenticate(fresh.secret).token_id == fresh.token_id
    assert reg.revoke_token(issued.token_id).revoked_at is not None
    for secret in (issued.secret, "lpx_wrong", "", "a b", "\n", "ü", "x" * 600):
        with pytest.raises(AuthenticationError):
            reg.authenticate(secret)
    for tenant in ("absent",):
        with pytest.raises(NotFoundError):
            reg.list_tokens(tenant)
    with pytest.raises(NotFoundError):
        reg.revoke_token("tok_absent")
    with pytest.raises(InvalidValueError, match="role"):
        reg.create_token("acme", "king")
    with pytest.raises(InvalidValueError):
        reg.create_token("acme", "reader", label="x" * 201)
    with pytest.raises(InvalidValueError):
        reg.create_token("acme", "reader", expires_at=datetime.now(UTC) - timedelta(days=1))


def test_who_may_make_tokens(reg: Registry) -> None:
    reg.create_tenant("acme")
    reg.create_tenant("globex")
    admin = reg.authenticate(reg.create_token("acme", "admin").secret)
    promoter = reg.authenticate(reg.create_token("acme", "promoter").secret)
    foreign = reg.create_token("globex", "reader")
    assert [tenant.name for tenant in reg.list_tenants(principal=admin)] == ["acme"]
    made = reg.create_token("acme", "reader", principal=admin)
    assert reg.authenticate(made.secret).role == "reader"
    assert len(reg.list_tokens("acme", principal=admin)) == 3
    reg.revoke_token(made.token_id, principal=admin)
    for call in (
        lambda: reg.create_tenant("new", principal=admin),
        lambda: reg.create_token("globex", "reader", principal=admin),
        lambda: reg.create_token("absent", "reader", principal=admin),
        lambda: reg.create_token("acme", "reader", principal=promoter),
        lambda: reg.list_tokens("globex", principal=admin),
        lambda: reg.list_tokens("acme", principal=promoter),
        lambda: reg.revoke_token(made.token_id, principal=promoter),
        lambda: reg.register_base(base_document("ef" * 32), principal=admin),
    ):
        with pytest.raises(PermissionDeniedError):
            call()

    def text_of(token_id: str) -> str:
        with pytest.raises(NotFoundError) as caught:
            reg.revoke_token(token_id, principal=admin)
        return str(caught.value).replace(token_id, "ID")

    assert text_of(foreign.token_id) == text_of("tok_0000000000000000"), "a foreign token and a missing one"
    assert reg.authenticate(foreign.secret).tenant == "globex"


def test_roles_and_foreign_adapters(reg: Registry, publish: Publish, make_adapter: MakeAdapter) -> None:
    version = publish("acme/secret")
    publish("acme/open", visibility="public")
    reg.promote("acme/secret@1", "prod", principal=OPERATOR)
    reg.create_tenant("globex")
    stranger = reg.authenticate(reg.create_token("globex", "admin").secret)
    reader = reg.authenticate(reg.create_token("acme", "reader").secret)

    def text_of(call: Callable[[str], object], name: str) -> str:
        with pytest.raises(RegistryError) as caught:
            call(name)
        assert type(caught.value) is NotFoundError
        return str(caught.value).replace(name, "NAME")

    for call in (
        lambda name: reg.resolve(name, principal=stranger),
        lambda name: reg.resolve(f"{name}@prod", principal=stranger),
        lambda name: reg.list_versions(name, stranger),
        lambda name: reg.adapter(name, stranger),
        lambda name: reg.aliases(name, stranger),
        lambda name: reg.alias_history(name, "prod", stranger),
        lambda name: reg.promote(name, "prod", principal=stranger),
        lambda name: reg.rollback(name, "prod", principal=stranger),
    ):
        assert text_of(call, "acme/secret") == text_of(call, "acme/absent")
    assert text_of(lambda ref: reg.resolve(ref, principal=stranger), version.digest) == text_of(
        lambda ref: reg.resolve(ref, principal=stranger), "sha256:" + "0" * 64
    )
    assert [summary.adapter for summary in reg.list_adapters(stranger)] == ["acme/open"]
    assert len(reg.list_adapters(reader)) == 2
    with pytest.raises(PermissionDeniedError, match="has the role 'reader', and this needs 'publisher'"):
        reg.publish(make_adapter(seed=99), "acme/secret", principal=reader)
    with pytest.raises(PermissionDeniedError, match="belongs to tenant 'globex'"):
        reg.publish(make_adapter(seed=99), "acme/secret", principal=stranger)


def test_refused_adapters(reg: Registry, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    other = make_adapter(manifest=manifest_document(OTHER_FINGERPRINT))
    with pytest.raises(BaseMismatchError) as mismatch:
        reg.publish(other, NAME, principal=OPERATOR)
    assert mismatch.value.found == OTHER_FINGERPRINT
    assert mismatch.value.expected == (FINGERPRINT,)
    assert mismatch.value.reason is registry.RejectReason.BASE_MISMATCH
    broken = make_adapter()
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(RejectedAdapterError) as refused:
        reg.publish(broken, NAME, principal=OPERATOR)
    assert refused.value.reason is registry.RejectReason.BAD_JSON
    assert refused.value.file == "adapter_config.json"
    code = make_adapter()
    (code / "model.py").write_text("print()")
    for folder in (code, tmp_path / "absent"):
        with pytest.raises(RejectedAdapterError):
            reg.publish(folder, NAME, principal=OPERATOR)
    assert reg.list_adapters(OPERATOR) == []
    for options in ({"visibility": "secret"}, {"message": "x" * 2001}):
        with pytest.raises(InvalidValueError):
            reg.publish(make_adapter(), NAME, principal=OPERATOR, **options)
    for name in ("acme", "acme/..", "acme/a@1", "ACME/a", "acme/a/b"):
        with pytest.raises(InvalidNameError):
            reg.publish(make_adapter(), name, principal=OPERATOR)


def test_a_base_is_named_where_the_folder_does_not(reg: Registry, make_adapter: MakeAdapter) -> None:
    version = reg.publish(make_adapter(has_manifest=False), NAME, principal=OPERATOR, base_fingerprint=FINGERPRINT)
    assert not version.base_verified
    with pytest.raises(NotFoundError):
        reg.publish(make_adapter(has_manifest=False), NAME, principal=OPERATOR, base_fingerprint="12" * 32)


def test_bases(reg: Registry) -> None:
    assert [base.fingerprint for base in reg.bases()] == [FINGERPRINT]
    added = reg.register_base(base_document(OTHER_FINGERPRINT, "other"))
    assert added == reg.base(OTHER_FINGERPRINT) == reg.base(OTHER_FINGERPRINT[:8])
    assert reg.register_base(base_document(OTHER_FINGERPRINT, "again")) == added
    with pytest.raises(InvalidNameError):
        reg.base("..")
    with pytest.raises(NotFoundError):
        reg.base("12" * 32)
    with pytest.raises(InvalidBaseError):
        reg.register_base({"schema": 1})
    with pytest.raises(ConflictError):
        reg.register_base(
            base_document(FINGERPRINT) | {"modules": {"x": {"kind": "linear", "out_features": 1, "in_features": 1}}}
        )


@pytest.mark.parametrize(
    "ref", ["", "acme", "acme/a@", "acme/a@..", "acme/a@0", "sha256:12", "a/b@" + "x" * 300, "a?b/c"]
)
def test_names_that_are_none(reg: Registry, ref: str) -> None:
    with pytest.raises(InvalidNameError):
        reg.resolve(ref, principal=OPERATOR)


def test_a_principal_without_a_token_lends_no_rights(reg: Registry, publish: Publish) -> None:
    publish()
    made_up = Principal(tenant="globex", role=registry.Role.ADMIN, token_id="tok_x")
    with pytest.raises((PermissionDeniedError, NotFoundError)):
        reg.resolve(NAME, principal=made_up)
