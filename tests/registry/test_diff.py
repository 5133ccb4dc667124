from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import registry
from registry.version_diff import ModuleDiff, VersionDiff
from tests.registry.adapter_folders import (
    PREFIX,
    base_document,
    config_document,
    lora_tensors,
    manifest_document,
    modules_named,
    write_bf16,
)

pytestmark = pytest.mark.sqlite_only  # what is compared does not come from the database
OPERATOR = registry.Principal.operator()
Make = Callable[..., Path]
Tensors = Mapping[str, np.ndarray[Any, Any]]
MODULES = modules_named("q_proj", "v_proj")
Q0 = MODULES[0]


def diff(reg: registry.Registry, **options: Any) -> VersionDiff:
    return reg.diff("acme/sql@1", "acme/sql@2", OPERATOR, **options)


def by_module(found: VersionDiff) -> dict[str, ModuleDiff]:
    assert found.modules is not None
    return {module.module: module for module in found.modules}


def update_of(tensors: Tensors, module: str, scale: float) -> np.ndarray[Any, Any]:
    """The plain reference: s B A, formed."""
    a = tensors[f"{PREFIX}{module}.lora_A.weight"].astype(np.float64)
    b = tensors[f"{PREFIX}{module}.lora_B.weight"].astype(np.float64)
    return scale * (b @ a)


def test_figures_are_those_of_the_formed_updates(reg: registry.Registry, make_adapter: Make) -> None:
    one, two = lora_tensors(MODULES, seed=1), lora_tensors(MODULES, rank=8, seed=2)
    reg.publish(make_adapter(tensors=one), "acme/sql", principal=OPERATOR)
    wider = config_document(r=8, lora_alpha=24, use_rslora=True)
    reg.publish(make_adapter(tensors=two, config=wider), "acme/sql", principal=OPERATOR)
    found = by_module(diff(reg))
    assert sorted(found) == sorted(MODULES)
    for name, module in found.items():
        first, second = update_of(one, name, 8 / 4), update_of(two, name, 24 / np.sqrt(8))
        assert (module.rank_before, module.rank_after) == (4, 8)
        assert module.norm_before == pytest.approx(np.linalg.norm(first))
        assert module.norm_after == pytest.approx(np.linalg.norm(second))
        assert module.distance == pytest.approx(np.linalg.norm(first - second))
        cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
        assert module.cosine == pytest.approx(cosine, abs=1e-9)
        assert (module.cosine_a, module.cosine_b) == (None, None)  # other shapes


def test_one_version_with_itself(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    found = reg.diff("acme/sql@1", "acme/sql", OPERATOR)
    assert (found.files, found.config) == ((), ())
    for module in by_module(found).values():
        assert module.distance == 0.0
        assert module.cosine == pytest.approx(1.0)
        assert module.cosine_a == pytest.approx(1.0)


def test_other_factors_of_the_same_update(reg: registry.Registry, make_adapter: Make) -> None:
    one = lora_tensors(MODULES, seed=1)
    two = {name: tensor * (-2.0 if ".lora_A." in name else -0.5) for name, tensor in one.items()}
    reg.publish(make_adapter(tensors=one), "acme/sql", principal=OPERATOR)
    reg.publish(make_adapter(tensors=two), "acme/sql", principal=OPERATOR)
    for module in by_module(diff(reg)).values():
        assert module.cosine == pytest.approx(1.0)
        assert module.distance == pytest.approx(0.0, abs=1e-5)
        assert module.cosine_a == pytest.approx(-1.0)
        assert module.cosine_b == pytest.approx(-1.0)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read(reg: registry.Registry, make_adapter: Make, dtype: str) -> None:
    one = lora_tensors(MODULES, seed=1)
    reg.publish(make_adapter(tensors=one), "acme/sql", principal=OPERATOR)
    if dtype == "F16":
        folder = make_adapter(tensors={name: tensor.astype(np.float16) for name, tensor in one.items()})
    else:
        folder = make_adapter(tensors=one)
        write_bf16(folder / "adapter_model.safetensors", one)
    reg.publish(folder, "acme/sql", principal=OPERATOR)
    for module in by_module(diff(reg)).values():
        assert module.norm_after == pytest.approx(module.norm_before, rel=0.02)
        assert module.cosine is not None
        assert module.cosine > 0.9999


def test_modules_on_one_side_only(reg: registry.Registry, make_adapter: Make) -> None:
    q, v = modules_named("q_proj"), modules_named("v_proj")
    one, two = config_document(target_modules=["q_proj"]), config_document(target_modules=["v_proj"])
    reg.publish(make_adapter(tensors=lora_tensors(q), config=one), "acme/sql", principal=OPERATOR)
    reg.publish(make_adapter(tensors=lora_tensors(v), config=two), "acme/sql", principal=OPERATOR)
    found = by_module(diff(reg))
    assert sorted(found) == sorted(q + v)
    assert found[q[0]].norm_after is None
    assert found[q[0]].norm_before is not None
    assert found[v[0]].rank_before is None
    assert (found[v[0]].cosine, found[v[0]].distance) == (None, None)


def test_a_module_that_does_nothing_has_no_direction(reg: registry.Registry, make_adapter: Make) -> None:
    zero = {name: tensor * (".lora_A." in name) for name, tensor in lora_tensors(MODULES).items()}
    reg.publish(make_adapter(tensors=zero), "acme/sql", principal=OPERATOR)
    reg.publish(make_adapter(seed=1), "acme/sql", principal=OPERATOR)
    module = by_module(diff(reg))[Q0]
    assert (module.norm_before, module.cosine, module.cosine_b) == (0.0, None, None)
    assert module.distance == pytest.approx(module.norm_after)


def test_shapes_of_two_bases(reg: registry.Registry, make_adapter: Make) -> None:
    other = base_document("ef" * 32, "wide")
    for module in MODULES:
        other["modules"][module]["in_features"] = 32
    reg.register_base(other)
    narrow = {name: tensor[:, :32] if ".lora_A." in name else tensor for name, tensor in lora_tensors(MODULES).items()}
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    reg.publish(make_adapter(tensors=narrow, manifest=manifest_document("ef" * 32)), "acme/sql", principal=OPERATOR)
    found = diff(reg)
    assert not found.same_base
    module = by_module(found)[Q0]
    assert (module.cosine, module.distance, module.cosine_a) == (None, None, None)
    assert module.cosine_b is not None


def test_config_files_and_metrics(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    config = config_document(lora_alpha=16, target_modules=["v_proj", "q_proj"], lora_dropout=0.1)
    manifest = manifest_document(metrics={"adapter": {"exact_match": 0.5, "new": 1.0}})
    folder = make_adapter(config=config, manifest=manifest)
    (folder / "README.md").write_text("words")
    reg.publish(folder, "acme/sql", principal=OPERATOR)
    found = diff(reg, with_weights=False)
    assert found.modules is None
    assert [(change.name, change.before, change.after) for change in found.config] == [
        ("lora_alpha", 8, 16),
        ("lora_dropout", 0.0, 0.1),
    ], "the order of target_modules means nothing"
    files = {change.name: (change.before is None, change.after is None) for change in found.files}
    assert files == {
        "README.md": (True, False),
        "adapter_config.json": (False, False),
        "loraplex.json": (False, False),
    }
    metrics = {change.name: (change.before, change.after) for change in found.metrics}
    assert metrics["exact_match"] == (0.94, 0.5)
    assert metrics["new"] == (None, 1.0)


def test_what_is_shown_is_bounded(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    config = config_document(base_model_name_or_path="x" * 100_000)
    reg.publish(make_adapter(config=config), "acme/sql", principal=OPERATOR)
    (change,) = diff(reg, with_weights=False).config
    assert len(change.after) < 1000


def test_both_sides_must_be_readable(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    reg.publish(make_adapter(seed=1), "globex/open", principal=OPERATOR, visibility="public")
    globex = reg.authenticate(reg.create_token("globex", "admin").secret)
    assert reg.diff("globex/open", "globex/open@1", globex).files == ()
    for pair in (("globex/open", "acme/sql"), ("acme/sql", "globex/open")):
        with pytest.raises(registry.NotFoundError, match="There is no adapter 'acme/sql'"):
            reg.diff(*pair, globex)
