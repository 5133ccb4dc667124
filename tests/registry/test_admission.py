from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import registry
from registry.verdict import serving_verdict
from tests.registry.adapter_folders import (
    OTHER_FINGERPRINT,
    base_document,
    config_document,
    lora_tensors,
    modules_named,
)

Make = Callable[..., Path]


def other_base(name: str = "embedded", **changes: Any) -> dict[str, Any]:
    return base_document(OTHER_FINGERPRINT, name) | changes


def publish(reg: registry.Registry, folder: Path, **options: Any) -> registry.Version:
    return reg.publish(folder, "acme/sql", principal=registry.Principal.operator(), **options)


def refusal(reg: registry.Registry, folder: Path, **options: Any) -> registry.RejectedAdapterError:
    with pytest.raises(registry.RejectedAdapterError) as caught:
        publish(reg, folder, **options)
    return caught.value


def serving_of(version: registry.Version) -> Any:
    assert version.serving is not None
    return version.serving


def test_recorded_base_is_verified(reg: registry.Registry, make_adapter: Make) -> None:
    version = publish(reg, make_adapter())
    assert version.base_verified
    assert serving_of(version).base_match == "manifest"
    assert serving_of(version).loraplex.why == ()


def test_stock_peft_adapter_is_matched_by_name_and_shapes(reg: registry.Registry, make_adapter: Make) -> None:
    reg.register_base(other_base("another"))
    version = publish(reg, make_adapter(has_manifest=False))
    assert version.base_fingerprint == base_document()["fingerprint"]
    assert not version.base_verified
    assert serving_of(version).base_match == "name and shapes"
    assert "not verified" in serving_of(version).loraplex.why[0]


def test_without_a_known_name_the_only_base_that_fits_is_taken(reg: registry.Registry, make_adapter: Make) -> None:
    other = other_base("another")
    other["modules"]["model.layers.0.self_attn.q_proj"]["out_features"] = 128
    reg.register_base(other)
    folder = make_adapter(has_manifest=False, config=config_document(base_model_name_or_path="/srv/models/x"))
    version = publish(reg, folder)
    assert version.base_fingerprint == base_document()["fingerprint"]
    assert serving_of(version).base_match == "shapes"


def test_two_bases_that_fit_are_listed(reg: registry.Registry, make_adapter: Make) -> None:
    reg.register_base(other_base(quantization=base_document()["quantization"] | {"mode": "bf16"}))
    error = refusal(reg, make_adapter(has_manifest=False))
    assert error.reason == "base-ambiguous"
    assert "embedded nf4 abababababab" in error.detail
    assert "embedded bf16 cdcdcdcdcdcd" in error.detail


def test_naming_one_of_two_bases_settles_it(reg: registry.Registry, make_adapter: Make) -> None:
    reg.register_base(other_base(quantization=base_document()["quantization"] | {"mode": "bf16"}))
    version = publish(reg, make_adapter(has_manifest=False), base_fingerprint=OTHER_FINGERPRINT[:12])
    assert version.base_fingerprint == OTHER_FINGERPRINT
    assert not version.base_verified
    assert serving_of(version).base_match == "named"


def test_the_revision_tells_bases_of_one_name_apart(reg: registry.Registry, make_adapter: Make) -> None:
    reg.register_base(other_base("org/model", revision="r2"))
    reg.register_base(base_document("ef" * 32, "org/model") | {"revision": "r1"})
    config = config_document(base_model_name_or_path="org/model", revision="r1")
    assert publish(reg, make_adapter(has_manifest=False, config=config)).base_fingerprint == "ef" * 32


def test_a_named_base_that_does_not_fit_says_what_does_not(reg: registry.Registry, make_adapter: Make) -> None:
    tensors = {name.replace("q_proj", "o_proj"): value for name, value in lora_tensors(modules_named("q_proj")).items()}
    config = config_document(target_modules=["o_proj"])
    error = refusal(reg, make_adapter(has_manifest=False, config=config, tensors=tensors))
    assert error.reason == "unknown-module"


def test_no_base_fits(reg: registry.Registry, make_adapter: Make) -> None:
    tensors = {name: value[:, :-1] if "lora_A" in name else value for name, value in _sound().items()}
    config = config_document(base_model_name_or_path=None)
    error = refusal(reg, make_adapter(has_manifest=False, config=config, tensors=tensors))
    assert error.reason == "base-unknown"
    assert "embedded nf4 abababababab" in error.detail


def test_a_tenant_may_refuse_unverified_bases(reg: registry.Registry, make_adapter: Make) -> None:
    reg.create_tenant("acme")
    assert reg.tenant_policy("acme").unverified_base == "allow"
    reg.set_tenant_policy("acme", {"unverified_base": "refuse"})
    folder = make_adapter(has_manifest=False)
    assert refusal(reg, folder).reason == "base-unverified"
    assert refusal(reg, folder, base_fingerprint="ab" * 32).reason == "base-unverified"
    publish(reg, make_adapter(seed=1))
    assert not reg.publish(folder, "globex/sql", principal=registry.Principal.operator()).base_verified


@pytest.mark.sqlite_only
@pytest.mark.parametrize("changes", [{"unverified_base": "perhaps"}, {"unverified": "refuse"}, {"unverified_base": 1}])
def test_a_tenants_policy_is_strict(reg: registry.Registry, changes: dict[str, Any]) -> None:
    reg.create_tenant("acme")
    with pytest.raises(registry.InvalidValueError):
        reg.set_tenant_policy("acme", changes)


@pytest.mark.parametrize(("rank", "needed"), [(4, 8), (8, 8), (9, 16), (64, 64), (257, 320), (321, 512)])
def test_vllm_needs_the_next_rank_of_its_list(rank: int, needed: int) -> None:
    verdict = serving_verdict(
        ranks={"a.q_proj": 1, "b.q_proj": rank},
        scales={"a.q_proj": 2.0, "b.q_proj": 2.0},
        config_scale=2.0,
        vocabulary_size=100,
        base_name="embedded",
        base_match="manifest",
    )
    assert verdict.vllm.is_served
    assert verdict.vllm.needs == {"max_lora_rank": needed}
    assert verdict.peft.needs == {"min_version": "0.14.0"}
    assert verdict.loraplex.needs == {"base": "embedded", "rank": rank}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ranks": {"a.q_proj": 513}}, "larger than its largest max_lora_rank"),
        ({"scales": {"a.q_proj": 1.0}}, "would scale 1 of 1 modules wrongly (a.q_proj)"),
        ({"ranks": {"lm_head": 4}, "vocabulary_size": 262_144}, "vocabularies up to 258048"),
    ],
)
def test_vllm_says_why_not(changes: dict[str, Any], reason: str) -> None:
    facts: dict[str, Any] = {
        "ranks": {"a.q_proj": 4},
        "scales": {"a.q_proj": 2.0},
        "config_scale": 2.0,
        "vocabulary_size": 100,
        "base_name": "embedded",
        "base_match": "manifest",
    }
    verdict = serving_verdict(**facts | changes)
    assert not verdict.vllm.is_served
    assert reason in "; ".join(verdict.vllm.why)
    assert verdict.sentences()["vllm"].startswith("no: ")


def test_patterns_that_change_a_scale_are_seen_in_the_files(reg: registry.Registry, make_adapter: Make) -> None:
    modules = modules_named("q_proj", "v_proj")
    ranks = {module: 2 for module in modules if module.endswith("v_proj")}
    scaled = make_adapter(
        config=config_document(rank_pattern={"v_proj": 2}), tensors=lora_tensors(modules, ranks=ranks)
    )
    assert not serving_of(publish(reg, scaled)).vllm.is_served
    same_scale = make_adapter(
        config=config_document(rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 4}),
        tensors=lora_tensors(modules, ranks=ranks),
    )
    assert serving_of(publish(reg, same_scale)).vllm.needs == {"max_lora_rank": 8}


def test_parent_and_data_are_columns(reg: registry.Registry, make_adapter: Make) -> None:
    version = publish(reg, make_adapter())
    assert version.data_digest == f"sha256:{'1' * 64}"
    assert version.parent_digest is None


def _sound() -> dict[str, Any]:
    return lora_tensors(modules_named("q_proj", "v_proj"))


def test_the_verdict_says_what_only_this_engine_and_peft_serve(reg: registry.Registry, make_adapter: Make) -> None:
    q = "model.layers.0.self_attn.q_proj"
    config = config_document(
        use_dora=True, target_modules=["layers.0.self_attn.q_proj"], trainable_token_indices=[5, 96]
    )
    extra = {
        f"base_model.model.{q}.lora_magnitude_vector": np.ones(64, np.float32),
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": np.ones((2, 64), np.float32),
    }
    serving = serving_of(publish(reg, make_adapter(config=config, tensors=lora_tensors([q]) | extra)))
    assert serving.loraplex.needs["kinds"] == "trainable_token_indices use_dora"
    assert serving.loraplex.needs["vocabulary"] == serving.peft.needs["vocabulary"] == 97
    assert serving.peft.needs["min_version"] == "0.15.0"
    assert not serving.vllm.is_served
    assert "nothing besides (trainable_token_indices, use_dora)" in serving.vllm.why[0]


@pytest.mark.sqlite_only
def test_a_base_that_an_earlier_release_registered_learns_its_vectors(
    reg: registry.Registry, make_adapter: Make
) -> None:
    old = base_document(OTHER_FINGERPRINT, "old")
    vectors = old.pop("vectors")
    reg.register_base(old)
    q = "model.layers.0.self_attn.q_proj"
    config = config_document(target_modules=["layers.0.self_attn.q_proj"], modules_to_save=["norm"])
    tensors = lora_tensors([q]) | {"base_model.model.model.norm.weight": np.ones(64, np.float32)}
    folder = make_adapter(has_manifest=False, config=config, tensors=tensors)
    error = refusal(reg, folder, base_fingerprint=OTHER_FINGERPRINT)
    assert error.reason == "unknown-module"
    assert "register it once more" in error.detail
    assert reg.register_base(old | {"vectors": vectors}).vectors == vectors
    publish(reg, folder, base_fingerprint=OTHER_FINGERPRINT)
