"""Fused blocks against the modules of transformers, and bit by bit against the kernel's own parts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, PretrainedConfig

from basemodel.adapter_changes import Changes
from basemodel.adapter_weights import AdapterWeights
from basemodel.attach import AdapterSites
from basemodel.fused_attention import FusedAttention
from basemodel.fused_layer import FusedLayer
from basemodel.fused_mlp import FusedMLP
from basemodel.fused_norm import FusedNorm
from basemodel.fusion import fuse
from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_snapshot
from basemodel.lora_ops import plan_lora
from basemodel.lora_segment import RankRows, Segment
from basemodel.snapshot import Snapshot
from tests.engine.workbench import FAMILIES, SMALL, make_snapshot

pytestmark = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
FUSED: dict[str, PretrainedConfig] = {
    name: FAMILIES[name] for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
} | {"gemma3": Gemma3TextConfig(**SMALL, sliding_window=6, query_pre_attn_scalar=16)}
RANK_ROWS = 48
A, B = RankRows(0, 16), RankRows(16, 5, weight=0.5)


@pytest.fixture(scope="module", params=FUSED)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    config = FUSED[request.param].__class__(**FUSED[request.param].to_dict() | {"head_dim": 32})
    return make_snapshot(config, tmp_path_factory.mktemp(f"blocks-{request.param}"), compute_dtype="bfloat16")


def fused_model(base: Snapshot) -> tuple[nn.Module, AdapterSites]:
    """A fused model with two adapters placed, the second on some layers only."""
    model = load_snapshot(base).model
    sites = AdapterSites(model, base.description, rows=RANK_ROWS, dtype=torch.float32)
    torch.manual_seed(4)
    for use in (A, B):
        pairs = {
            path: sites.weights.layouts[path].lay_out(
                0.1 * torch.randn(use.rank, shape.in_features), 0.1 * torch.randn(shape.out_features, use.rank), 1.0
            )
            for path, shape in base.description.modules.items()
            if shape.quantized and (use is A or not path.endswith(("k_proj", "up_proj")))
        }
        sites.place(use.start, AdapterWeights(rank=use.rank, modules=pairs, adapter_bytes=0))
    with torch.no_grad():  # norms start at ones or zeros: a weight that is left out would not show
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.weight += 0.2 * torch.randn_like(module.weight)
    fusion, _ = fuse(model, sites)
    fusion.attend = lambda layer, query, key, value, **options: query
    return model, sites


def blocks(model: nn.Module, kind: type) -> Iterator[tuple[nn.Module, object]]:
    found = [(module, module.forward) for module in model.modules() if isinstance(module.forward, kind)]
    assert found
    yield from found


def almost_equal(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal, but for single roundings to bfloat16."""
    assert ours.shape == theirs.shape
    assert (ours == theirs).float().mean() > 0.97
    assert ((ours.double() - theirs.double()).abs() <= 2**-7 * theirs.double().abs() + 1e-6).all()


def test_every_layer_is_fused(base: Snapshot) -> None:
    model, _ = fused_model(base)
    layers = base.description.modules
    assert len(list(blocks(model, FusedAttention))) == len(list(blocks(model, FusedMLP)))
    assert len(list(blocks(model, FusedMLP))) == sum(path.endswith("up_proj") for path in layers)
    assert len(list(blocks(model, FusedLayer))) == len(list(blocks(model, FusedMLP)))
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert len(norms) == len(list(blocks(model, FusedNorm)))


@torch.inference_mode()
def test_norms_and_gates_are_those_of_transformers(base: Snapshot) -> None:
    model, _ = fused_model(base)
    x = torch.randn(33, 64).to(torch.bfloat16) * torch.logspace(-3, 2, 33)[:, None].to(torch.bfloat16)
    for module, block in blocks(model, FusedNorm):
        width = module.weight.shape[0]
        almost_equal(block(x[:, :width]), type(module).forward(module, x[:, :width]))


@torch.inference_mode()
def test_a_gate_is_as_exact_as_torch() -> None:
    torch.manual_seed(5)
    gates, ups = (3 * torch.randn(2, 40, 100)).to(torch.bfloat16)
    gates[0, :4] = torch.tensor([0.0, -200.0, 200.0, float("nan")])
    for number, activate in enumerate([nn.functional.silu, lambda x: nn.functional.gelu(x, approximate="tanh")]):
        ours, theirs = torch.ops.loraplex.gate(gates, ups, number), activate(gates) * ups
        exact = (activate(gates.double()) * ups.double()).nan_to_num(0)
        assert torch.equal(ours.isnan(), theirs.isnan())
        ours, theirs = (value.nan_to_num(0).double() for value in (ours, theirs))
        assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean() * 1.001
        assert (ours == theirs).double().mean() > (0.999 if number == 0 else 0.9)  # torch's GELU cancels below zero


@pytest.mark.parametrize("width", [1, 15, 16, 33, 1000])
def test_the_largest_value_is_found_and_a_row_that_is_not_finite_is_told(width: int) -> None:
    torch.manual_seed(width)
    logits = torch.randn(6, width).to(torch.bfloat16)
    logits[1] = -3.0  # the first of equals
    logits[2, width // 2], logits[3, -1], logits[4, 0] = float("nan"), float("inf"), float("-inf")
    expected = logits.float().argmax(-1)
    expected[2:5] = -1
    assert torch.equal(torch.ops.loraplex.largest(logits), expected)


BATCHES = {
    "base alone": [Segment(3, ())],
    "decoding": [Segment(1, (A,)), Segment(1, ()), Segment(1, (B,)), Segment(1, (A, B))],
    "and a prompt": [Segment(1, (B,)), Segment(30, (A,)), Segment(1, ())],
    "a long prompt": [Segment(100, (A, B)), Segment(1, (B,))],
}


@pytest.mark.parametrize("name", BATCHES)
@torch.inference_mode()
def test_a_fused_block_equals_its_parts_by_the_bit(base: Snapshot, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites = fused_model(base)
    segments = BATCHES[name]
    tokens = sum(segment.tokens for segment in segments)
    x = torch.randn(tokens, 64).to(torch.bfloat16)
    angles = torch.rand(1, tokens, 16).repeat(1, 1, 2) * 6
    turn = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
    sites.plan = plan_lora(segments, device=x.device, dtype=torch.float32)

    def computed() -> list[torch.Tensor]:
        inputs = [part for _, block in blocks(model, FusedAttention) for part in block.inputs(x, *turn)]  # type: ignore[attr-defined]
        mlps = [block(x[None])[0] for _, block in blocks(model, FusedMLP)]  # type: ignore[operator]
        layers = [block(x[None], position_embeddings=turn)[0] for _, block in blocks(model, FusedLayer)]  # type: ignore[operator]
        return [*inputs, *mlps, *layers]

    together = computed()
    for layer in sites._sites.values():
        monkeypatch.setattr(layer, "joins", lambda plan: False)
    for ours, parts in zip(together, computed(), strict=True):
        assert torch.equal(ours, parts)
    sites.plan = None
    if name != "base alone":
        assert not torch.equal(together[0], computed()[0]), "the adapters made no difference"


def test_a_module_that_computes_something_else_is_left_alone(base: Snapshot) -> None:
    model = load_snapshot(base).model
    sites = AdapterSites(model, base.description, rows=RANK_ROWS, dtype=torch.float32)
    for name, module in model.named_modules():
        if type(module).__name__.endswith(("RMSNorm", "MLP")) and not name.endswith(("q_norm", "k_norm")):
            module.forward = lambda x, own=module: type(own).forward(own, x) * 1.01  # type: ignore[method-assign]
        if type(module).__name__.endswith("Attention"):
            module.scaling *= 1.01
    fuse(model, sites)
    fused = [name for name, module in model.named_modules() if isinstance(module.forward, FusedNorm | FusedMLP)]
    assert all(name.endswith(("q_norm", "k_norm")) for name in fused)
    for module, block in blocks(model, FusedAttention):
        assert block.options["scaling"] == module.scaling  # type: ignore[attr-defined]


WALKED = {"llama", "mistral", "qwen2", "qwen3", "gemma"}


@torch.inference_mode()
def test_a_walk_over_the_model_gives_the_bits_of_its_own_forward(base: Snapshot) -> None:
    """Adapters on some tokens, all tokens sampled or some, and a norm that an adapter replaced afterwards."""
    model = load_snapshot(base).model
    sites = AdapterSites(model, base.description, rows=RANK_ROWS, dtype=torch.float32)
    fusion, walk = fuse(model, sites)
    assert (walk is not None) == (model.config.model_type in WALKED)
    if walk is None:
        return
    fusion.attend = lambda layer, query, key, value, **options: query
    ids, positions = torch.tensor([[7, 100, 7, 31, 2]]), torch.tensor([[0, 1, 90, 4, 127]])
    pair = {
        path: sites.weights.layouts[path].lay_out(
            0.1 * torch.randn(A.rank, shape.in_features), 0.1 * torch.randn(shape.out_features, A.rank), 1.0
        )
        for path, shape in base.description.modules.items()
        if shape.quantized
    }
    vectors = {"model.norm": {"weight": torch.full((64,), 1.5, dtype=torch.bfloat16)}}
    norm = Changes({}, {}, vectors, ("modules_to_save",), vocabulary_size=192, head_size=192)
    seen = []
    for placed in (None, AdapterWeights(rank=A.rank, modules=pair, adapter_bytes=0, changes=norm)):
        slot = None if placed is None else sites.place(A.start, placed)
        use = RankRows(A.start, A.rank, slot=slot)
        for index in (torch.arange(5), torch.tensor([1, 4])):
            sites.plan = sites.head_plan = None
            if placed is not None:
                segments = [Segment(2, ()), Segment(3, (use,))]
                sites.plan = plan_lora(segments, device=ids.device, dtype=torch.float32)
                last = [Segment(1, ()), Segment(1, (use,))] if len(index) == 2 else segments
                sites.head_plan = plan_lora(last, device=ids.device, dtype=torch.float32)
            theirs = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=index).logits[0]
            ours = walk(ids, positions, index)
            assert torch.equal(ours, theirs)
            seen.append(ours[-1])
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2]), "the adapter made no difference"


def test_a_model_that_does_more_between_its_modules_is_not_walked(base: Snapshot) -> None:
    model = load_snapshot(base).model
    sites = AdapterSites(model, base.description, rows=RANK_ROWS, dtype=torch.float32)
    forward = model.base_model.forward

    def doubled(*arguments: object, **options: object) -> object:
        result = forward(*arguments, **options)
        result.last_hidden_state = result.last_hidden_state * 2
        return result

    model.base_model.forward = doubled
    fusion, walk = fuse(model, sites)
    assert walk is None
    assert fusion.layers


@torch.inference_mode()
def test_another_adapter_in_the_same_rows_is_seen(base: Snapshot) -> None:
    """What a block remembers of its layers is not that of the adapter that was there before."""
    model = load_snapshot(base).model
    sites = AdapterSites(model, base.description, rows=RANK_ROWS, dtype=torch.float32)
    fuse(model, sites)
    _, block = next(blocks(model, FusedMLP))
    assert isinstance(block, FusedMLP)
    gate, up, down = block.layers
    x = torch.randn(5, 64).to(torch.bfloat16)
    seen = [block(x)]
    for ending in ("gate_proj", "up_proj"):
        pairs = {
            path: sites.weights.layouts[path].lay_out(
                torch.randn(A.rank, shape.in_features), torch.randn(shape.out_features, A.rank), 1.0
            )
            for path, shape in base.description.modules.items()
            if path.endswith(ending)
        }
        sites.place(A.start, AdapterWeights(rank=A.rank, modules=pairs, adapter_bytes=0))
        sites.plan = plan_lora([Segment(5, (A,))], device=x.device, dtype=torch.float32)
        seen.append(block(x))
        assert torch.equal(seen[-1], down(torch.ops.loraplex.gate(gate(x), up(x), block.activation)))
        sites.clear(A.start)
        sites.plan = None
    assert not any(torch.equal(ours, theirs) for ours, theirs in pairwise(seen))
