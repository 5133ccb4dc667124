"""Publishing and reading versions: numbers, digests, references, immutability."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

import registry
from registry.errors import (
    ConflictError,
    InvalidNameError,
    InvalidValueError,
    NotFoundError,
    PermissionDeniedError,
)
from tests.registry.adapter_folders import FINGERPRINT, OTHER_FINGERPRINT, base_document, manifest_document
from tests.registry.backends import RegistryPlace

Publish = Callable[..., registry.Version]
MakeAdapter = Callable[..., Path]


def test_a_version_says_everything(
    reg: registry.Registry, make_adapter: MakeAdapter, operator: registry.Principal
) -> None:
    version = reg.publish(make_adapter(), "acme/text2sql", principal=operator, message="the first")
    assert (version.tenant, version.adapter, version.number) == ("acme", "acme/text2sql", 1)
    assert version.base_fingerprint == FINGERPRINT
    assert version.base_verified
    assert version.rank == 4
    assert version.target_modules == ("q_proj", "v_proj")
    assert version.visibility == "private"
    assert version.created_by == "operator"
    assert datetime.now(UTC) - version.created_at < timedelta(minutes=1)
    assert version.manifest == manifest_document()
    assert version.message == "the first"
    assert [file.path for file in version.files] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loraplex.json",
    ]
    assert version.digest == str(registry.digest_of_files(version.files))


def test_numbers_count_up_per_adapter(publish: Publish) -> None:
    assert [publish().number for _ in range(3)] == [1, 2, 3]
    assert publish("acme/other").number == 1
    assert publish("globex/text2sql").number == 1


def test_the_same_files_are_the_same_version(
    reg: registry.Registry, make_adapter: MakeAdapter, operator: registry.Principal
) -> None:
    first = reg.publish_outcome(make_adapter(seed=1), "acme/a", principal=operator, message="first")
    reg.publish(make_adapter(seed=2), "acme/a", principal=operator)
    again = reg.publish_outcome(make_adapter(seed=1), "acme/a", principal=operator, message="again")
    assert first.is_new
    assert not again.is_new
    assert again.version == first.version
    assert len(reg.list_versions("acme/a", operator)) == 2
    elsewhere = reg.publish(make_adapter(seed=1), "globex/a", principal=operator)
    assert elsewhere.digest == first.version.digest


def test_every_reference_finds_its_version(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    versions = [publish() for _ in range(3)]
    reg.promote("acme/text2sql@2", "prod", principal=operator)
    for ref, expected in {
        "acme/text2sql": 3,
        "acme/text2sql@1": 1,
        "acme/text2sql@prod": 2,
        f"acme/text2sql@{versions[0].digest}": 1,
        f"acme/text2sql@{versions[1].digest[:19]}": 2,
        versions[2].digest: 3,
    }.items():
        assert reg.resolve(ref, principal=operator) == versions[expected - 1], ref


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("acme/nothing", "There is no adapter 'acme/nothing'"),
        ("acme/text2sql@9", "There is no version 'acme/text2sql@9'"),
        ("acme/text2sql@prod", "There is no alias 'acme/text2sql@prod'"),
        (f"acme/text2sql@sha256:{'0' * 12}", "There is no version"),
        (f"sha256:{'0' * 64}", "There is no version"),
    ],
)
def test_what_is_missing_is_named(
    reg: registry.Registry, publish: Publish, operator: registry.Principal, ref: str, words: str
) -> None:
    publish()
    with pytest.raises(NotFoundError) as caught:
        reg.resolve(ref, principal=operator)
    assert str(caught.value).startswith(words)
    assert "`loraplex " in str(caught.value)


def test_a_bad_reference_is_an_invalid_name(reg: registry.Registry, operator: registry.Principal) -> None:
    with pytest.raises(InvalidNameError):
        reg.resolve("../../etc/passwd", principal=operator)


def test_listings(reg: registry.Registry, publish: Publish, operator: registry.Principal) -> None:
    publish("globex/b")
    publish("acme/a")
    newest = publish("acme/a", visibility="public")
    reg.promote("acme/a@1", "prod", principal=operator)
    summaries = reg.list_adapters(operator)
    assert [summary.adapter for summary in summaries] == ["acme/a", "globex/b"]
    assert summaries[0].newest_number == 2
    assert summaries[0].newest_digest == newest.digest
    assert summaries[0].aliases == {"prod": 1}
    assert summaries[0].visibility == "public"
    assert summaries[1].aliases == {}
    assert [version.number for version in reg.list_versions("acme/a", operator)] == [2, 1]
    with pytest.raises(NotFoundError):
        reg.list_versions("acme/none", operator)


def test_a_version_never_changes(reg: registry.Registry, publish: Publish, operator: registry.Principal) -> None:
    """Only its adapter's visibility is read anew; nothing that is done later changes what was published."""
    first = publish()
    publish(message="second")
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    publish(visibility="public")
    assert reg.resolve("acme/text2sql@1", principal=operator) == dataclasses.replace(
        first, visibility=registry.Visibility.PUBLIC
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.number = 7  # type: ignore[misc]


def test_the_database_refuses_to_change_what_was_published(
    reg: registry.Registry, place: RegistryPlace, publish: Publish, operator: registry.Principal
) -> None:
    publish()
    reg.promote("acme/text2sql@1", "prod", principal=operator)
    for statement in (
        "UPDATE versions SET digest = 'x'",
        "UPDATE version_files SET sha256 = 'x'",
        "UPDATE alias_moves SET to_number = 1",
        "UPDATE audit_events SET actor = 'x'",
        "DELETE FROM audit_events",
        "UPDATE commits SET title = 'x'",
        "UPDATE commit_files SET sha256 = 'x'",
        "UPDATE events SET kind = 'x'",
    ):
        refusal = "never changes|before a checkpoint covers it"
        with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError), match=refusal):
            place.execute(statement)


def test_a_base_without_a_manifest_is_named(
    reg: registry.Registry, make_adapter: MakeAdapter, operator: registry.Principal
) -> None:
    folder = make_adapter(has_manifest=False)
    version = reg.publish(folder, "acme/a", principal=operator, base_fingerprint=FINGERPRINT[:12])
    assert not version.base_verified
    assert version.base_fingerprint == FINGERPRINT
    assert version.manifest is None
    with pytest.raises(NotFoundError, match="There is no base"):
        reg.publish(folder, "acme/a", principal=operator, base_fingerprint=OTHER_FINGERPRINT)
    with pytest.raises(InvalidNameError, match="fingerprint"):
        reg.publish(folder, "acme/a", principal=operator, base_fingerprint="embedded")


def test_the_same_files_for_another_base_are_a_conflict(
    reg: registry.Registry, make_adapter: MakeAdapter, operator: registry.Principal
) -> None:
    reg.register_base(base_document(OTHER_FINGERPRINT, "other"))
    folder = make_adapter(has_manifest=False)
    reg.publish(folder, "acme/a", principal=operator, base_fingerprint=FINGERPRINT)
    with pytest.raises(ConflictError) as caught:
        reg.publish(folder, "acme/a", principal=operator, base_fingerprint=OTHER_FINGERPRINT)
    assert FINGERPRINT in str(caught.value)
    assert OTHER_FINGERPRINT in str(caught.value)


def test_visibility_is_kept_and_changed_by_admins_only(
    reg: registry.Registry, publish: Publish, operator: registry.Principal
) -> None:
    assert publish().visibility == "private"
    publisher = reg.authenticate(reg.create_token("acme", "publisher").secret)
    assert publish(principal=publisher).visibility == "private"
    with pytest.raises(PermissionDeniedError, match="admin"):
        publish(principal=publisher, visibility="public")
    assert len(reg.list_versions("acme/text2sql", operator)) == 2
    admin = reg.authenticate(reg.create_token("acme", "admin").secret)
    assert publish(principal=admin, visibility="public").visibility == "public"
    assert publish(principal=publisher).visibility == "public"


@pytest.mark.parametrize("options", [{"visibility": "secret"}, {"message": "x" * 2001}, {"message": "\udc80"}])
def test_arguments_out_of_bounds(publish: Publish, options: dict[str, str]) -> None:
    with pytest.raises(InvalidValueError) as caught:
        publish(**options)
    assert caught.value.field == next(iter(options))


def test_bases(reg: registry.Registry) -> None:
    record = reg.register_base(base_document())
    assert [base.fingerprint for base in reg.bases()] == [FINGERPRINT]
    assert reg.base(FINGERPRINT) == reg.base(FINGERPRINT[:8]) == record
    assert registry.BaseRecord.from_json(record.to_json()) == record
    reg.register_base(base_document(FINGERPRINT[:60] + "0000"))
    with pytest.raises(ConflictError, match="Several"):
        reg.base(FINGERPRINT[:8])
    changed = base_document()
    changed["modules"]["lm_head"]["in_features"] = 65
    with pytest.raises(ConflictError, match="other layers"):
        reg.register_base(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema"),
        ({"fingerprint": "x"}, "64 digits"),
        ({"modules": {}}, "0 modules"),
        ({"modules": {"a": {"kind": "conv", "out_features": 1, "in_features": 1}}}, "kind"),
        ({"vocabulary_size": -1}, "vocabulary_size"),
        ({"quantization": None}, "quantization"),
    ],
)
def test_a_base_that_is_none(reg: registry.Registry, change: dict[str, object], words: str) -> None:
    with pytest.raises(registry.InvalidBaseError, match=words):
        reg.register_base(base_document() | change)


def test_an_adapter_for_no_registered_base(
    tmp_path: Path, make_adapter: MakeAdapter, operator: registry.Principal
) -> None:
    with (
        registry.open(tmp_path / "empty") as reg,
        pytest.raises(registry.BaseMismatchError, match="no base is registered here"),
    ):
        reg.publish(make_adapter(), "acme/a", principal=operator)
