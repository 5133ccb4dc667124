"""What stock PEFT saves is accepted, and ranks and scales are read as PEFT computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import registry
from registry.adapter import AdapterFolder

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

WIDTH = 32


class Block(torch.nn.Module):
    """A layer whose names are those of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = torch.nn.Module()
        self.self_attn.q_proj = torch.nn.Linear(WIDTH, WIDTH)
        self.self_attn.v_proj = torch.nn.Linear(WIDTH, 16)
        self.mlp = torch.nn.Module()
        self.mlp.down_proj = torch.nn.Linear(64, WIDTH)


class Decoder(torch.nn.Module):
    """Eleven layers, so that `layers.1` and `layers.10` are both there."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(Block() for _ in range(11))
        self.lm_head = torch.nn.Linear(WIDTH, 48)


def base_of(model: Any) -> dict[str, Any]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {
        "schema": 1,
        "name": "decoder",
        "fingerprint": "12" * 32,
        "quantization": {"mode": "fp32", "compute_dtype": "float32"},
        "architecture": "Decoder",
        "vocabulary_size": 48,
        "context_tokens": 16,
        "modules": {
            name: {"kind": "linear", "out_features": layer.out_features, "in_features": layer.in_features}
            for name, layer in linears.items()
        },
    }


# PEFT sorts the patterns when it saves them, and the first match wins: only sorted ones mean the same when loaded.
AWKWARD = [
    {"target_modules": ["q_proj", "v_proj"], "r": 8, "lora_alpha": 16},
    {"target_modules": "all-linear", "r": 4, "lora_alpha": 4, "use_rslora": True},
    {"target_modules": r".*\.(q|v)_proj", "r": 2, "lora_alpha": 3},
    {"target_modules": ["lm_head", "down_proj"], "r": 3},
    {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {"attn.q_proj": 6, "model.layers.1.self_attn.q_proj": 5, "self_attn.v_proj": 3, "v_proj": 2},
        "alpha_pattern": {"0.self_attn.q_proj": 11, "down_proj": 9, "layers.10.mlp.down_proj": 7},
    },
    {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "q_proj": 4},
        "alpha_pattern": {"q_proj": 4},
        "use_rslora": True,
    },
    {"target_modules": ["q_proj"], "layers_to_transform": [1, 3]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"]},
]


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.sqlite_only
@pytest.mark.parametrize("options", AWKWARD)
def test_ranks_and_scales_are_those_of_peft(tmp_path: Path, reg: registry.Registry, options: dict[str, Any]) -> None:
    model = Decoder()
    document = base_of(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(init_lora_weights=False, **options))
    wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    _follow_the_advice_on_auto_mapping(tmp_path / "adapter" / "adapter_config.json")
    record = reg.register_base(document)
    version = reg.publish(
        tmp_path / "adapter",
        "acme/a",
        principal=registry.Principal.operator(),
        base_fingerprint=record.fingerprint,
    )
    adapter = AdapterFolder.open(reg.pull(version, tmp_path / "out"))
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in wrapped.named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }
    assert adapter.pairs.keys() == layers.keys()
    for name, layer in layers.items():
        assert adapter.config.rank_of(name) == layer.r["default"] == adapter.pairs[name].rank, name
        assert adapter.config.scale_of(name) == pytest.approx(layer.scaling["default"], rel=1e-12), name
    loaded = peft.PeftModel.from_pretrained(Decoder(), str(tmp_path / "out"))
    assert {name for name, _ in loaded.named_modules() if name.endswith("lora_A.default")}


def _follow_the_advice_on_auto_mapping(path: Path) -> None:
    """PEFT names the library of a model that is not of transformers: here this test, which nobody should import."""
    config = json.loads(path.read_text())
    assert config["auto_mapping"]["parent_library"] == __name__
    path.write_text(json.dumps(config | {"auto_mapping": None}))
