"""All layers in one call against layer after layer, bit by bit, and the rotary table against its module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from basemodel.adapter_changes import Changes
from basemodel.adapter_weights import AdapterWeights
from basemodel.attach import AdapterSites
from basemodel.factor_layout import LoraPair
from basemodel.fused_decoder import FusedDecoder, fused_decoder
from basemodel.fused_layer import FusedLayer, Fusion, PagedRows
from basemodel.fusion import fuse
from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_snapshot
from basemodel.lora_ops import LoraPlan, plan_lora
from basemodel.lora_segment import RankRows, Segment
from basemodel.rotary_table import RotaryTable
from basemodel.snapshot import Snapshot
from tests.basemodel.test_blocks import FUSED
from tests.engine.workbench import SMALL, make_snapshot

needs_kernels = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
SHAPES: dict[str, PretrainedConfig] = {
    **FUSED,
    "biases": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True),
    "wide": LlamaConfig(  # enough work in a layer to wake the threads
        **SMALL | {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3, "num_attention_heads": 16}
    ),
}
RANK_ROWS = 48
A, B = RankRows(0, 16), RankRows(16, 5, weight=0.5)
SLOTS = 256
# Each row: the positions that it has already, and what it uses. One token decodes, several are a prompt's chunk.
STEPS: dict[str, list[tuple[int, Segment]]] = {
    "one row": [(9, Segment(1, ()))],
    "decoding": [(0, Segment(1, (A,))), (11, Segment(1, ())), (30, Segment(1, (B,))), (7, Segment(1, (A, B)))],
    "and prompts": [(20, Segment(1, (B,))), (0, Segment(30, (A,))), (13, Segment(7, ()))],
    "a long prompt": [(3, Segment(1, (A,))), (5, Segment(90, (A, B)))],
}


def build(name: str, folder: Path) -> tuple[Snapshot, nn.Module, AdapterSites, Fusion, FusedDecoder, list[FusedLayer]]:
    """A fused model whose norms and biases show, with A everywhere and B on some layers only."""
    config = SHAPES[name].__class__(**SHAPES[name].to_dict() | {"head_dim": 32})
    base = make_snapshot(config, folder, compute_dtype="bfloat16")
    model = load_snapshot(base).model
    torch.manual_seed(4)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith((".bias", "norm.weight")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    sites = AdapterSites(model, base.description, rows=RANK_ROWS, dtype=torch.float32)
    for use in (A, B):
        place(base, sites, use, ("k_proj", "up_proj") if use is B else ())
    fusion, _ = fuse(model, sites)
    layers = [module.forward for module in model.modules() if isinstance(module.forward, FusedLayer)]
    assert len(layers) == config.num_hidden_layers
    decoder = fused_decoder(layers, sites, fusion)
    assert decoder is not None
    return base, model, sites, fusion, decoder, layers


def place(base: Snapshot, sites: AdapterSites, use: RankRows, without: tuple[str, ...]) -> None:
    pairs: dict[str, LoraPair] = {}
    for path, shape in base.description.modules.items():
        if shape.quantized and not path.endswith(without or ("nothing",)):
            a, b = torch.randn(use.rank, shape.in_features), torch.randn(shape.out_features, use.rank)
            pair = sites.weights.layouts[path].lay_out(0.1 * a, 0.1 * b, 1.0)
            assert pair is not None
            pairs[path] = pair
    sites.place(use.start, AdapterWeights(rank=use.rank, modules=pairs, adapter_bytes=0))


def paged(rows: list[tuple[int, Segment]], layers: list[FusedLayer]) -> PagedRows:
    """Every row's positions in slots of its own, scattered, over caches that hold something already."""
    order = torch.randperm(SLOTS)
    slots: list[int] = []
    starts: list[int] = []
    lengths: list[int] = []
    writes: list[int] = []
    for past, segment in rows:
        begin = len(slots)
        slots += order[begin : begin + past + segment.tokens].tolist()
        starts += [begin] * segment.tokens
        lengths += [past + token + 1 for token in range(segment.tokens)]
        writes += slots[begin + past :]
    generator = torch.Generator().manual_seed(7)
    caches = tuple(
        (
            torch.randn(SLOTS, layer.linears[1].out_features // 32, 32, generator=generator).to(torch.bfloat16),
            torch.randn(SLOTS, layer.linears[1].out_features // 32, 32, generator=generator).to(torch.bfloat16),
        )
        for layer in layers
    )
    return PagedRows(caches, *(torch.tensor(each) for each in (slots, starts, lengths, writes)))


def copied(step: PagedRows) -> PagedRows:
    return step._replace(caches=tuple((keys.clone(), values.clone()) for keys, values in step.caches))


def one_by_one(
    layers: list[FusedLayer], fusion: Fusion, step: PagedRows, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: float | None) -> torch.Tensor:
        scaling, window, softcap = (options[name] for name in ("scaling", "sliding_window", "softcap"))
        how = (32**-0.5 if scaling is None else scaling, window or 0, softcap or 0.0)
        table = (step.slots, step.starts, step.lengths)
        out: torch.Tensor = torch.ops.loraplex.paged_attention(
            q, *step.caches[layer], *table, *how, k, v, step.write_slots
        )
        return out

    fusion.attend = attend  # type: ignore[assignment]
    for layer in layers:
        x = layer(x, position_embeddings=turn, attention_mask=None)
    return x


def plan_of(rows: list[tuple[int, Segment]]) -> LoraPlan:
    return plan_lora([segment for _, segment in rows], device=torch.device("cpu"), dtype=torch.float32)


@needs_kernels
@pytest.mark.parametrize("name", SHAPES)
@torch.inference_mode()
def test_all_layers_at_once_give_the_bits_of_one_after_the_other(name: str, tmp_path: Path) -> None:
    """Steps of several sizes after each other: what is kept between them is none of the next one's business."""
    base, model, sites, fusion, decoder, layers = build(name, tmp_path)
    table = RotaryTable(LlamaRotaryEmbedding(LlamaConfig(**SMALL | {"head_dim": 32})))
    seen = []
    for kind in (*STEPS, "decoding", "replaced"):
        if kind == "replaced":  # in the same rows, of which a layer was left alone before
            place(base, sites, B, ())
        rows = STEPS["decoding" if kind == "replaced" else kind]
        tokens = sum(segment.tokens for _, segment in rows)
        torch.manual_seed(3)
        x = torch.randn(1, tokens, layers[0].linears[0].in_features).to(torch.bfloat16)
        step = paged(rows, layers)
        expected_step = copied(step)
        turns = table.of(step.lengths[None] - 1, x)
        sites.plan = plan_of(rows)
        fusion.paged = lambda step=step: step
        found = decoder(x, turns)
        expected = one_by_one(layers, fusion, expected_step, x, turns.of_tokens())
        assert found is not None
        assert torch.equal(found, expected), kind
        for ours, theirs in zip(step.caches, expected_step.caches, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        seen.append(found)
        sites.plan = None
        bare = decoder(x, turns)
        assert bare is not None
        assert torch.equal(bare, found) == (kind == "one row"), "adapters made no difference, or those of no row did"
    assert torch.equal(seen[1], seen[-2])
    assert not torch.equal(seen[-1], seen[-2]), "the adapter that was there before is still used"
    assert model is not None


@needs_kernels
@torch.inference_mode()
def test_a_step_that_needs_more_goes_layer_by_layer(tmp_path: Path) -> None:
    base, _, sites, fusion, decoder, layers = build("qwen3", tmp_path)
    rows = [(0, Segment(3, ()))]
    step = paged(rows, layers)
    turns = RotaryTable(LlamaRotaryEmbedding(LlamaConfig(**SMALL | {"head_dim": 32}))).of(
        step.lengths[None] - 1, torch.zeros(1, dtype=torch.bfloat16)
    )
    x = torch.randn(1, 3, 64).to(torch.bfloat16)
    assert decoder(x, turns) is None, "nobody said where the rows are"
    fusion.paged = lambda: None
    assert decoder(x, turns) is None
    fusion.paged = lambda: step
    assert decoder(x, turns) is not None
    assert decoder(x.float(), turns) is None
    for path in ("model.layers.1.input_layernorm", "model.layers.0.self_attn.q_norm"):
        width = 32 if path.endswith("q_norm") else 64
        vectors = {path: {"weight": torch.full((width,), 1.5, dtype=torch.bfloat16)}}
        changes = Changes({}, {}, vectors, ("modules_to_save",), vocabulary_size=192, head_size=192)
        slot = sites.place(32, AdapterWeights(rank=1, modules={}, adapter_bytes=0, changes=changes))
        use = RankRows(32, 1, slot=slot)
        sites.plan = plan_of([(0, replace(rows[0][1], adapters=(use,)))])
        assert decoder(x, turns) is None, path
        sites.clear(32)
        sites.plan = None
    assert decoder(x, turns) is not None
    assert base is not None


@needs_kernels
@torch.inference_mode()
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    _, _, _, fusion, decoder, layers = build("llama", tmp_path)
    step = paged([(0, Segment(3, ()))], layers)
    x = torch.randn(1, 3, 64).to(torch.bfloat16)
    turns = RotaryTable(LlamaRotaryEmbedding(LlamaConfig(**SMALL | {"head_dim": 32}))).of(step.lengths[None] - 1, x)
    before = copied(step)
    for wrong, words in (
        (step._replace(write_slots=torch.tensor([0, 1, SLOTS])), "leaves the cache"),
        (step._replace(lengths=step.lengths[:2]), "for each row"),
    ):
        fusion.paged = lambda wrong=wrong: wrong
        with pytest.raises(RuntimeError, match=words):
            decoder(x, turns)
    fusion.paged = lambda: step
    with pytest.raises(RuntimeError, match="beyond the cosines"):
        decoder(x, turns._replace(places=torch.tensor([0, 1, 100_000])))
    for ours, theirs in zip(step.caches, before.caches, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


ROPES: dict[str, dict[str, object]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
        "factor": 4.0,
    },
}


@pytest.mark.parametrize("name", ROPES)
@torch.inference_mode()
def test_a_rotary_table_gives_the_bits_of_its_module(name: str) -> None:
    """Positions that grow, and shrink again; dynamic scaling and longrope depend on the longest, and are not kept."""
    config = LlamaConfig(**SMALL, rope_parameters={"rope_theta": 10000.0} | ROPES[name])
    ours, theirs = LlamaRotaryEmbedding(config), LlamaRotaryEmbedding(config)
    table = RotaryTable(ours)
    like = torch.zeros(1, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(1)
    for longest in (1, 60, 70, 511, 512, 5000, 200_000, 40):
        positions = torch.randint(longest, (1, 37), generator=generator)
        positions[0, 5] = longest - 1
        turns = table.of(positions, like)
        found, expected = turns.of_tokens(), theirs(like, position_ids=positions)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)), longest
        assert (turns.places is not None) == (name not in ("dynamic", "longrope") and longest < 200_000)
        assert turns.cosines.nbytes + turns.sines.nbytes <= 4 << 20
