"""Mixtures in the registry: what is admitted, by which door, and what keeps their experts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import registry
from registry.archive import export_archive, import_archive
from registry.lineage import Relation
from registry.oci import export_layout, import_layout
from registry.retention_rule import RetentionRule
from registry.tree_changes import AddFile
from registry.trees import git_oid, tree_file
from tests.registry.adapter_folders import (
    FINGERPRINT,
    OTHER_FINGERPRINT,
    base_document,
    manifest_document,
    write_json,
)

OPERATOR = registry.Principal.operator()
HIDDEN = 64
Publish = Callable[..., registry.Version]
Make = Callable[..., Path]


def write_mixture(folder: Path, digests: list[str], *, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A mixture's folder, sound or with some fields changed."""
    folder.mkdir()
    document = {
        "schema": 1,
        "method": "switch",
        "base_fingerprint": FINGERPRINT,
        "top_k": 2,
        "experts": digests,
        "gate": {"context": "running_mean", "decay": None},
    }
    write_json(folder / "loraplex_mixture.json", document | changes)
    weight = np.random.default_rng(len(digests)).normal(size=(len(digests), HIDDEN)).astype(np.float32)
    sound = {"gate.weight": weight, "gate.bias": np.zeros(len(digests), np.float32)}
    save_file(sound if tensors is None else tensors, folder / "gate.safetensors")
    write_json(folder / "loraplex.json", manifest_document())
    return folder


@pytest.fixture
def experts(publish: Publish) -> list[registry.Version]:
    return [publish(f"acme/expert-{index}") for index in range(3)]


@pytest.fixture
def mixture(reg: registry.Registry, experts: list[registry.Version], tmp_path: Path) -> registry.Version:
    folder = write_mixture(tmp_path / "mixture", [expert.digest for expert in experts])
    return reg.publish(folder, "acme/mix", principal=OPERATOR)


def reader_of(reg: registry.Registry, tenant: str, role: str = "reader", **options: Any) -> registry.Principal:
    if tenant not in [known.name for known in reg.list_tenants()]:
        reg.create_tenant(tenant)
    return reg.authenticate(reg.create_token(tenant, role, **options).secret)


def test_a_mixture_is_a_version_like_any_other(
    reg: registry.Registry, mixture: registry.Version, experts: list[registry.Version], tmp_path: Path
) -> None:
    assert mixture.experts == tuple(expert.digest for expert in experts)
    assert (mixture.rank, mixture.base_verified) == (experts[0].rank, True)
    assert mixture.target_modules == experts[0].target_modules
    reg.promote("acme/mix@1", "prod", principal=OPERATOR)
    assert reg.resolve("acme/mix@prod", principal=OPERATOR) == mixture
    assert reg.resolve(mixture.digest, principal=OPERATOR).experts == mixture.experts
    assert reg.list_versions("acme/mix", OPERATOR) == [mixture]
    folder = reg.pull(mixture, tmp_path / "pulled")
    assert {path.name for path in folder.iterdir()} == {"loraplex_mixture.json", "gate.safetensors", "loraplex.json"}
    again = reg.publish_outcome(folder, "acme/mix", principal=OPERATOR)
    assert (again.is_new, again.version.experts) == (False, mixture.experts)


def test_who_can_serve_it(mixture: registry.Version) -> None:
    assert mixture.serving is not None
    assert mixture.serving.loraplex.is_served
    assert mixture.serving.loraplex.needs == {"base": "embedded", "rank": 4, "experts": 3, "top_k": 2}
    assert not mixture.serving.peft.is_served
    assert not mixture.serving.vllm.is_served


def test_its_card_lists_its_experts(reg: registry.Registry, mixture: registry.Version) -> None:
    card = reg.card("acme/mix", OPERATOR)
    assert "a LoRA-Switch mixture of 3 adapters" in card
    assert all(digest in card for digest in mixture.experts)
    assert "library_name: peft" not in card


def test_lineage_goes_both_ways(
    reg: registry.Registry, mixture: registry.Version, experts: list[registry.Version]
) -> None:
    graph = reg.lineage("acme/mix", OPERATOR)
    chosen = {(edge.source, edge.target) for edge in graph.edges if edge.relation is Relation.EXPERT}
    assert chosen == {(mixture.digest, expert.digest) for expert in experts}
    of_expert = reg.lineage("acme/expert-1", OPERATOR)
    assert (mixture.digest, experts[1].digest) in {(edge.source, edge.target) for edge in of_expert.edges}


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"top_k": 4}, "bad-mixture"),
        ({"top_k": 0}, "bad-mixture"),
        ({"method": "x-lora"}, "bad-mixture"),
        ({"gate": {"context": "token", "decay": 0.5}}, "bad-mixture"),
        ({"gate": {"context": "prompt", "decay": None}}, "bad-mixture"),
        ({"surprise": 1}, "bad-mixture"),
        ({"base_fingerprint": OTHER_FINGERPRINT}, "base-mismatch"),
        ({"experts": [f"sha256:{digit * 64}" for digit in "012"]}, "unknown-expert"),
        ({"experts": ["sha256:" + "0" * 64]}, "bad-mixture"),
        ({"experts": ["sha256:" + "0" * 64] * 2}, "bad-mixture"),
    ],
)
def test_a_document_that_is_wrong(
    reg: registry.Registry, experts: list[registry.Version], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    digests = [expert.digest for expert in experts]
    folder = write_mixture(tmp_path / "mixture", digests, **changes)
    with pytest.raises(registry.RejectedAdapterError) as caught:
        reg.publish(folder, "acme/mix", principal=OPERATOR)
    assert caught.value.reason == reason


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"gate.weight": np.zeros((3, 32), np.float32), "gate.bias": np.zeros(3, np.float32)}, "bad-gate"),
        ({"gate.weight": np.zeros((2, HIDDEN), np.float32), "gate.bias": np.zeros(2, np.float32)}, "bad-gate"),
        ({"gate.weight": np.zeros((3, HIDDEN), np.float16), "gate.bias": np.zeros(3, np.float16)}, "bad-gate"),
        ({"gate.weight": np.zeros((3, HIDDEN), np.float32)}, "bad-gate"),
        ({"gate.weight": np.full((3, HIDDEN), np.nan, np.float32), "gate.bias": np.zeros(3, np.float32)}, "not-finite"),
    ],
)
def test_a_gate_that_is_wrong(
    reg: registry.Registry, experts: list[registry.Version], tmp_path: Path, tensors: dict[str, Any], reason: str
) -> None:
    folder = write_mixture(tmp_path / "mixture", [expert.digest for expert in experts], tensors=tensors)
    with pytest.raises(registry.RejectedAdapterError) as caught:
        reg.publish(folder, "acme/mix", principal=OPERATOR)
    assert caught.value.reason == reason


@pytest.mark.sqlite_only
def test_experts_must_be_plain_versions_on_its_base(
    reg: registry.Registry, mixture: registry.Version, make_adapter: Make, tmp_path: Path
) -> None:
    reg.register_base(base_document(OTHER_FINGERPRINT, "another"))
    elsewhere = reg.publish(
        make_adapter(has_manifest=False), "acme/elsewhere", principal=OPERATOR, base_fingerprint=OTHER_FINGERPRINT
    )
    for index, other in enumerate((mixture, elsewhere)):
        folder = write_mixture(tmp_path / f"m{index}", [mixture.experts[0], other.digest])
        with pytest.raises(registry.RejectedAdapterError, match=r"experts\[1\]") as caught:
            reg.publish(folder, "acme/mix", principal=OPERATOR)
        assert caught.value.reason == "unsupported-expert"


@pytest.mark.sqlite_only
def test_a_folder_is_an_adapter_or_a_mixture(
    reg: registry.Registry, experts: list[registry.Version], make_adapter: Make, tmp_path: Path
) -> None:
    folder = write_mixture(tmp_path / "mixture", [expert.digest for expert in experts])
    (folder / "gate.safetensors").rename(tmp_path / "gate.safetensors")
    with pytest.raises(registry.RejectedAdapterError) as caught:
        reg.publish(folder, "acme/mix", principal=OPERATOR)
    assert (caught.value.reason, caught.value.file) == ("missing-file", "gate.safetensors")
    (tmp_path / "gate.safetensors").rename(folder / "gate.safetensors")
    (make_adapter() / "adapter_config.json").rename(folder / "adapter_config.json")
    with pytest.raises(registry.RejectedAdapterError) as caught:
        reg.publish(folder, "acme/mix", principal=OPERATOR)
    assert (caught.value.reason, caught.value.file) == ("file-not-allowed", "adapter_config.json")


def test_experts_are_of_the_same_tenant_and_readable(
    reg: registry.Registry, experts: list[registry.Version], tmp_path: Path, publish: Publish
) -> None:
    """Another tenant's public adapter is used by publishing its files here: the digest is the same."""
    digests = [expert.digest for expert in experts]
    folder = write_mixture(tmp_path / "mixture", digests)
    for refused in (reader_of(reg, "globex", "publisher"), reader_of(reg, "acme", "publisher", scope=["mix"])):
        name = "globex/mix" if refused.tenant == "globex" else "acme/mix"
        with pytest.raises(registry.RejectedAdapterError) as caught:
            reg.publish(folder, name, principal=refused)
        assert caught.value.reason == "unknown-expert"
    for index, expert in enumerate(experts):
        copy = reg.pull(expert, tmp_path / f"copy-{index}")
        reg.publish(copy, f"globex/copy-{index}", principal=OPERATOR)
    assert reg.publish(folder, "globex/mix", principal=OPERATOR).experts == tuple(digests)


def test_nothing_takes_an_expert_of_a_living_mixture(
    reg: registry.Registry, mixture: registry.Version, experts: list[registry.Version], publish: Publish
) -> None:
    with pytest.raises(registry.ConflictError, match="mixture acme/mix@1 uses it"):
        reg.delete_version("acme/expert-0@1", principal=OPERATOR, force=True)
    with pytest.raises(registry.ConflictError, match="mixture acme/mix@1 uses a version of it"):
        reg.delete_adapter("acme/expert-0", principal=OPERATOR)
    publish("acme/expert-0")
    reg.set_retention("acme/expert-0", RetentionRule(keep_last=1), principal=OPERATOR)
    later = datetime.now(UTC) + timedelta(days=400)
    reg.collect_garbage(principal=OPERATOR, now=later)
    assert reg.resolve("acme/expert-0@1", principal=OPERATOR) == experts[0]
    reg.fsck(principal=OPERATOR)
    reg.delete_adapter("acme/mix", principal=OPERATOR)
    report = reg.collect_garbage(principal=OPERATOR, now=later)
    assert report.versions == ["acme/expert-0@1"]
    reg.delete_adapter("acme/expert-1", principal=OPERATOR)
    reg.check_integrity()


def test_one_of_two_equal_versions_may_go(
    reg: registry.Registry, mixture: registry.Version, experts: list[registry.Version], tmp_path: Path
) -> None:
    copy = reg.pull(experts[0], tmp_path / "copy")
    reg.publish(copy, "acme/copy", principal=OPERATOR)
    reg.delete_adapter("acme/expert-0", principal=OPERATOR)
    with pytest.raises(registry.ConflictError, match="mixture"):
        reg.delete_adapter("acme/copy", principal=OPERATOR)
    reg.move_adapter("acme/copy", "acme/moved", principal=OPERATOR)
    assert reg.resolve(mixture.experts[0], principal=OPERATOR).adapter == "acme/moved"
    reg.check_integrity()


def test_an_adapter_whose_mixture_goes_with_it_may_go(reg: registry.Registry, publish: Publish, tmp_path: Path) -> None:
    digests = [publish("acme/all").digest, publish("acme/all").digest]
    reg.publish(write_mixture(tmp_path / "mixture", digests), "acme/all", principal=OPERATOR)
    with pytest.raises(registry.ConflictError, match="mixture acme/all@3"):
        reg.delete_version("acme/all@1", principal=OPERATOR, force=False)
    reg.delete_adapter("acme/all", principal=OPERATOR)
    reg.check_integrity()


def test_a_hub_commit_makes_a_mixture_or_says_why_not(
    reg: registry.Registry, experts: list[registry.Version], tmp_path: Path
) -> None:
    folder = write_mixture(tmp_path / "mixture", [expert.digest for expert in experts])
    mixture = reg.publish(folder, "acme/mix", principal=OPERATOR)
    name = registry.names.AdapterName.parse("acme/mix")

    def commit(raw: bytes) -> Any:
        path = "loraplex_mixture.json"
        with reg.receiving() as scratch:
            (scratch / path).write_bytes(raw)
            with reg.blobs.staged(scratch, (path,)) as staging:
                (entry,) = staging.files
                reg.quotas.reserve("acme", [(entry.sha256, entry.size)], principal=OPERATOR)
                reg.blobs.keep(staging)
                reg.quotas.mark_stored("acme", [(entry.sha256, entry.size)])
        file = tree_file(path, entry.sha256, entry.size, git_oid(raw))
        return reg.commits.apply(
            name, "main", [AddFile(file)], parent=None, title="change", message="", principal=OPERATOR
        )

    sound = (folder / "loraplex_mixture.json").read_bytes()
    outcome = commit(sound.replace(b'"top_k": 2', b'"top_k": 1'))
    assert (outcome.commit.version, outcome.refusal) == (2, None)
    assert reg.resolve("acme/mix@2", principal=OPERATOR).experts == mixture.experts
    refused = commit(sound.replace(experts[0].digest.encode(), b"sha256:" + b"0" * 64))
    assert refused.commit.version is None
    assert "unknown-expert" in refused.refusal


def test_two_mixtures_differ_in_their_documents(
    reg: registry.Registry, mixture: registry.Version, experts: list[registry.Version], tmp_path: Path
) -> None:
    reg.publish(
        write_mixture(tmp_path / "other", [expert.digest for expert in experts[:2]]), "acme/mix", principal=OPERATOR
    )
    diff = reg.diff("acme/mix@1", "acme/mix@2", OPERATOR)
    assert [change.name for change in diff.config] == ["experts"]
    assert diff.modules is None
    against = reg.diff("acme/mix@1", "acme/expert-0@1", OPERATOR)
    assert against.modules is None


def test_it_travels_where_its_experts_are(
    reg: registry.Registry, mixture: registry.Version, experts: list[registry.Version], tmp_path: Path
) -> None:
    """An export holds the mixture alone: importing it where an expert is missing says which one."""
    export_archive(reg, "acme/mix", tmp_path / "mix.tar", principal=OPERATOR)
    export_layout(reg, "acme/mix", tmp_path / "layout", principal=OPERATOR)
    with registry.open(tmp_path / "other") as other:
        other.register_base(base_document())
        with pytest.raises(registry.RejectedAdapterError, match=r"unknown-expert.*experts\[0\]"):
            import_archive(other, tmp_path / "mix.tar", principal=OPERATOR)
        for index, expert in enumerate(experts):
            other.publish(reg.pull(expert, tmp_path / f"e{index}"), f"acme/expert-{index}", principal=OPERATOR)
        imported = import_archive(other, tmp_path / "mix.tar", principal=OPERATOR)
        assert imported.versions[0].publication.version.experts == mixture.experts
        again = import_layout(other, tmp_path / "layout", principal=OPERATOR)
        assert not again.versions[0].publication.is_new


def test_a_backup_has_the_experts(reg: registry.Registry, mixture: registry.Version, tmp_path: Path) -> None:
    reg.backup(tmp_path / "backup", principal=OPERATOR)
    with registry.open(tmp_path / "restored") as restored:
        restored.restore(tmp_path / "backup", principal=OPERATOR)
        assert restored.resolve("acme/mix@1", principal=OPERATOR) == mixture
        restored.check_integrity()
