"""A file made like a known one is cut up as that one was: same bits, same refusals, and never another's scale."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from basemodel import known_fits
from basemodel.adapter_parts import WEIGHTS_FILE
from basemodel.adapter_weights import AdapterWeights, read_adapter
from basemodel.errors import AdapterFormatError
from basemodel.kernels.library import has_cpu_kernels
from basemodel.known_fits import KnownFits
from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from tests.engine.workbench import FAMILIES, make_adapter, make_engine, make_snapshot, rewrite_config

pytestmark = pytest.mark.skipif(not has_cpu_kernels(), reason="the CPU kernels are not built, or not for this CPU")

Read = Callable[[Path, KnownFits | None], AdapterWeights]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    config = FAMILIES["llama"].__class__(**FAMILIES["llama"].to_dict() | {"head_dim": 32})
    return make_snapshot(config, tmp_path_factory.mktemp("base"), compute_dtype="bfloat16")


@pytest.fixture(scope="module")
def read(snapshot: Snapshot) -> Read:
    sites = make_engine(load_snapshot(snapshot)).engine.runner.sites
    return lambda folder, known: read_adapter(folder, snapshot.description, torch.float32, sites.weights, known)


@pytest.fixture(scope="module")
def original(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings: dict[str, Any] = {"rank_pattern": "mlp", "alpha_pattern": "mlp", "target_modules": "all-linear"}
    return make_adapter(snapshot, tmp_path_factory.mktemp("adapter") / "a", seed=1, r=8, lora_alpha=8, **settings)


@pytest.fixture
def make(original: Path, tmp_path: Path) -> Callable[..., Path]:
    """An adapter with PEFT's names, random values, and changes to its config."""

    def made(seed: int, **config: Any) -> Path:
        folder = shutil.copytree(original, tmp_path / f"a{seed}")
        generator = torch.Generator().manual_seed(seed)
        rewrite_weights(folder, lambda tensor: torch.randn(tensor.shape, generator=generator))
        rewrite_config(folder, **config)
        return folder

    return made


def assert_same(ours: AdapterWeights, theirs: AdapterWeights) -> None:
    assert ours.modules.keys() == theirs.modules.keys()
    assert (ours.rank, ours.adapter_bytes, ours.changes) == (theirs.rank, theirs.adapter_bytes, theirs.changes)
    for path, pair in ours.modules.items():
        assert torch.equal(pair.a, theirs.modules[path].a)
        assert torch.equal(pair.b, theirs.modules[path].b)


def rewrite_weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = {name: change(tensor) for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_known_is_read_to_the_same_bits(make: Callable[..., Path], read: Read, dtype: torch.dtype) -> None:
    known = KnownFits()
    for seed in range(3):
        folder = make(seed)
        rewrite_weights(folder, lambda tensor: tensor.to(dtype))
        assert (known.read(folder) is not None) == (seed > 0)
        assert_same(read(folder, known), read(folder, None))


def test_another_config_over_the_same_names_is_another_scale(make: Callable[..., Path], read: Read) -> None:
    known = KnownFits()
    one, other = make(0), make(1, lora_alpha=32)
    read(one, known)
    assert known.read(other) is None
    assert_same(read(other, known), read(other, None))
    config = json.loads((one / "adapter_config.json").read_text())
    rewrite_config(one, r=config["r"] + 1)
    with pytest.raises(AdapterFormatError, match="has rank"):
        read(one, known)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_known_file_with_a_value_that_is_not_finite_is_refused_by_name(
    make: Callable[..., Path], read: Read, value: float
) -> None:
    known = KnownFits()
    read(make(0), known)
    spoilt = make(1)
    tensors = load_file(spoilt / WEIGHTS_FILE)
    name = sorted(tensors)[3]
    tensors[name][-1, -1] = value
    save_file(tensors, spoilt / WEIGHTS_FILE, metadata={"format": "pt"})
    with pytest.raises(AdapterFormatError, match=name):
        read(spoilt, known)


@pytest.mark.parametrize("more", [-4, 4])
def test_a_file_of_another_length_is_judged_anew(make: Callable[..., Path], read: Read, more: int) -> None:
    known = KnownFits()
    folder = make(0)
    read(folder, known)
    whole = (folder / WEIGHTS_FILE).read_bytes()
    (folder / WEIGHTS_FILE).write_bytes(whole[:more] if more < 0 else whole + bytes(more))
    with pytest.raises(AdapterFormatError, match="damaged"):
        read(folder, known)


def test_a_weight_that_is_the_bases_own_is_looked_at_each_time(
    make: Callable[..., Path], read: Read, snapshot: Snapshot
) -> None:
    """Such a file is plain LoRA, but the next one with its names may not be."""
    known = KnownFits()
    one, other = make(0), make(1)
    head = load_snapshot(snapshot).model.get_output_embeddings().weight.detach()
    for folder, weight in ((one, head), (other, 2 * head)):
        tensors = load_file(folder / WEIGHTS_FILE) | {"base_model.model.lm_head.weight": weight.float().contiguous()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        rewrite_config(folder, modules_to_save=["lm_head"])
    assert read(one, known).changes is None
    assert read(other, known).changes is not None
    assert known.read(one) is None
    assert known.read(other) is None


def test_only_so_many_are_remembered(make: Callable[..., Path], read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_fits, "MOST_FITS", 2)
    known = KnownFits()
    folders = [make(seed, lora_alpha=8 + seed) for seed in range(3)]
    for folder in folders[:2]:
        read(folder, known)
    assert known.read(folders[0]) is not None  # used last
    read(folders[2], known)
    assert [known.read(folder) is not None for folder in folders] == [True, False, True]
