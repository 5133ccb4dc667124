"""A base is quantized once, has one identity, and trains as it serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from basemodel.description import BaseDescription
from basemodel.errors import BaseFormatError, BaseNotFoundError, SnapshotDamagedError
from basemodel.four_bit import Linear4bit
from basemodel.load import load_base, load_snapshot
from basemodel.snapshot import fingerprint_of, open_snapshot, prepare_snapshot, quantization_for
from tests.engine.workbench import FAMILIES, make_snapshot

TOKENS = torch.tensor([[5, 9, 20, 31]])


def test_it_is_quantized_once_and_then_read(tmp_path: Path) -> None:
    first = make_snapshot(FAMILIES["llama"], tmp_path)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    again = make_snapshot(FAMILIES["llama"], tmp_path)
    assert again == first
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert not [path for path in first.folder.parent.iterdir() if path.name.startswith(".")], (
        "a temporary folder is left"
    )


def test_loading_twice_gives_the_same_bits(tmp_path: Path) -> None:
    snapshot = make_snapshot(FAMILIES["llama"], tmp_path)
    with torch.no_grad():
        first, second = (load_snapshot(snapshot).model(TOKENS).logits for _ in range(2))
    assert torch.equal(first, second)


def test_the_fingerprint_is_that_of_the_bytes_and_follows_every_part(tmp_path: Path) -> None:
    snapshot = make_snapshot(FAMILIES["llama"], tmp_path)
    fingerprint = snapshot.description.fingerprint
    assert fingerprint_of(snapshot.folder, snapshot.description.quantization) == fingerprint
    others = {
        make_snapshot(FAMILIES["llama"], tmp_path, compute_dtype="bfloat16").description.fingerprint,
        make_snapshot(FAMILIES["llama"], tmp_path, mode="bf16", compute_dtype=None).description.fingerprint,
        make_snapshot(FAMILIES["qwen3"], tmp_path).description.fingerprint,
    }
    tokenizer = snapshot.folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("w17", "v17"))
    others.add(fingerprint_of(snapshot.folder, snapshot.description.quantization))
    assert len(others) == 4
    assert fingerprint not in others


def test_double_quantized_nf4_with_blocks_of_64_is_what_is_stored(tmp_path: Path) -> None:
    base = load_snapshot(make_snapshot(FAMILIES["llama"], tmp_path))
    layers = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    for layer in layers:
        state = layer.weight.quant_state
        assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
        assert not layer.support_avx512bf16_for_cpu


def test_gradients_flow_after_an_evaluation_and_the_base_stays(tmp_path: Path) -> None:
    """bitsandbytes' repacked CPU path would leave these layers without gradients after one forward in eval mode."""
    base = load_snapshot(make_snapshot(FAMILIES["llama"], tmp_path))
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    with torch.no_grad():
        served = base.model(TOKENS).logits
    base.model.train()
    embedded = base.model.get_input_embeddings()(TOKENS).requires_grad_()
    trained = base.model(inputs_embeds=embedded).logits
    assert torch.equal(served, trained.detach())
    trained.sum().backward()
    assert embedded.grad is not None
    assert embedded.grad.abs().sum() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())


def test_the_description_survives_json(tmp_path: Path) -> None:
    description = make_snapshot(FAMILIES["gpt2"], tmp_path).description
    assert BaseDescription.from_json(json.loads(json.dumps(description.to_json()))) == description
    assert description.modules["transformer.h.0.attn.c_attn"].out_features == 192
    assert description.modules["transformer.wte"].kind == "embedding"
    assert description.context_tokens == 128


@pytest.mark.parametrize("damage", ["truncate", "remove", "json"])
def test_a_damaged_snapshot_is_named(damage: str, tmp_path: Path) -> None:
    folder = make_snapshot(FAMILIES["llama"], tmp_path).folder
    weights = folder / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "remove":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / "base.json").write_text("{")
    with pytest.raises(SnapshotDamagedError, match="Delete that folder"):
        open_snapshot(folder)


def test_unusable_sources_are_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseNotFoundError, match=r"no config\.json"):
        load_base(str(tmp_path / "empty"), cache_dir=tmp_path / "bases")
    with pytest.raises(BaseNotFoundError, match="Hub"):
        load_base("nobody/no-such-model", cache_dir=tmp_path / "bases")
    quantized = make_snapshot(FAMILIES["llama"], tmp_path)
    with pytest.raises(BaseFormatError, match="already quantized"):
        prepare_snapshot(str(quantized.folder), cache_dir=tmp_path / "bases")
    with pytest.raises(ValueError, match="fp32"):
        quantization_for("fp32", "bfloat16")
    with pytest.raises(ValueError, match="int8"):
        quantization_for("int8")  # type: ignore[arg-type]
