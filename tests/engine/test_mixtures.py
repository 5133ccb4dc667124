"""LoRA-Switch mixtures in the engine: what is computed, that it is its own bits, and what can never fit."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_snapshot
from basemodel.lora_segment import Choice
from basemodel.mixture_gate import Mixture, write_mixture
from basemodel.score_table import RouterState, ScoreTable
from basemodel.snapshot import Snapshot
from serving.engine.router import Router
from serving.messages import AdapterUse
from tests.engine.workbench import FAMILIES, Recorder, make_adapter, make_engine, make_snapshot

needs_kernels = pytest.mark.skipif(
    not has_cpu_kernels(), reason="the kernels need a C++ compiler and a processor with AVX512-BF16 and AMX"
)
PROMPT = [3 + (11 * index) % 150 for index in range(45)]
EXPERTS = 4


def use_of(folder: Path) -> AdapterUse:
    return AdapterUse(digest=digest_of(folder), folder=str(folder))


def digest_of(folder: Path) -> str:
    return f"sha256:{folder.name.encode().hex():0>64}"


def make_mixture(
    snapshot: Snapshot, folder: Path, experts: list[Path], *, top_k: int = 2, context: str = "running_mean"
) -> AdapterUse:
    """A mixture with a random gate, sharp enough that tokens choose differently."""
    torch.manual_seed(len(folder.name) + top_k)
    folder.mkdir(parents=True)
    hidden = next(s.out_features for s in snapshot.description.modules.values() if s.kind == "embedding")
    mixture = Mixture(
        base_fingerprint=snapshot.description.fingerprint,
        top_k=top_k,
        experts=tuple(digest_of(expert) for expert in experts),
        context=context,  # type: ignore[arg-type]
        decay=0.6 if context == "running_mean" else None,
        weight=torch.randn(len(experts), hidden) * 0.5,
        bias=torch.randn(len(experts)) * 0.1,
    )
    write_mixture(mixture, folder)
    return dataclass_use(folder, experts)


def dataclass_use(folder: Path, experts: list[Path]) -> AdapterUse:
    return AdapterUse(digest=digest_of(folder), folder=str(folder), experts=tuple(map(use_of, experts)))


class World:
    """A base, experts of different ranks, and a mixture of them."""

    def __init__(self, folder: Path, family: str, *, compute_dtype: str, mode: str = "nf4") -> None:
        config = FAMILIES[family].__class__(**FAMILIES[family].to_dict() | {"head_dim": 32})
        self.snapshot = make_snapshot(config, folder, compute_dtype=compute_dtype, mode=mode)
        self.experts = [
            make_adapter(
                self.snapshot, folder / f"e{seed}", seed=seed, r=4 + 2 * seed, lora_alpha=8, target_modules="all-linear"
            )
            for seed in range(EXPERTS)
        ]
        self.mixture = make_mixture(self.snapshot, folder / "mixture", self.experts)

    def engine(self, **settings: object) -> Recorder:
        return make_engine(load_snapshot(self.snapshot), **settings)

    def routes(self, tokens: list[int]) -> Choice:
        """What the gate chooses, computed in one go."""
        from basemodel.mixture_gate import read_mixture

        model = load_snapshot(self.snapshot).model
        table = ScoreTable(read_mixture(Path(self.mixture.folder)), model.get_input_embeddings().weight)
        experts, weights, _ = table.route(tokens, RouterState())
        return Choice(experts, weights)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> World:
    """In float32, without kernels: for comparison with a plain reference."""
    return World(tmp_path_factory.mktemp("exact"), "llama", compute_dtype="float32")


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> World:
    """In bfloat16, on the kernels."""
    return World(tmp_path_factory.mktemp("fast"), "llama", compute_dtype="bfloat16")


def reference_logits(world: World, tokens: list[int]) -> torch.Tensor:
    """Dense: every expert's update [O, H] formed whole, weighted anew for each token: logits [T, V]."""
    from basemodel.adapter_weights import read_adapter
    from basemodel.site_weights import SiteWeights

    base = load_snapshot(world.snapshot)
    choice = world.routes(tokens)
    shares = torch.zeros(len(tokens), EXPERTS)
    for token, (experts, weights) in enumerate(zip(choice.chosen, choice.weights, strict=True)):
        for expert, weight in zip(experts.tolist(), weights.tolist(), strict=True):
            shares[token, expert] += weight
    own = SiteWeights(base.model, base.description)
    read = [read_adapter(folder, base.description, torch.float32, own) for folder in world.experts]

    def hook(path: str):
        deltas = [adapter.modules[path].a.T @ adapter.modules[path].b[0] for adapter in read]  # [H, O]

        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            each = torch.stack([inputs[0][0].float() @ delta for delta in deltas], dim=1)  # [T, E, O]
            return output + (shares[:, :, None] * each).sum(1)[None].to(output.dtype)

        return add

    for path in read[0].modules:
        base.model.get_submodule(path).register_forward_hook(hook(path))
    with torch.no_grad():
        return base.model(torch.tensor([tokens])).logits[0].float()


def logits_of(recorder: Recorder, name: str) -> torch.Tensor:
    return torch.stack(recorder.logits[name])


def test_tokens_of_a_prompt_choose_differently(exact: World) -> None:
    """Were all choices one, the tests below would prove little."""
    choice = exact.routes(PROMPT)
    assert len({tuple(row) for row in choice.chosen.tolist()}) > 3
    assert set(choice.chosen.ravel().tolist()) == set(range(EXPERTS))


def test_a_mixture_computes_what_its_dense_reference_computes(exact: World) -> None:
    recorder = exact.engine()
    recorder.ask_many("it", PROMPT, (exact.mixture,), max_tokens=6)
    recorder.run()
    tokens = PROMPT + recorder.tokens["it"]
    expected = reference_logits(exact, tokens)[len(PROMPT) - 1 : -1]
    found = logits_of(recorder, "it")
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()
    alone = exact.engine()
    alone.ask("plain", PROMPT, None, max_tokens=1)
    alone.run()
    assert (logits_of(alone, "plain")[0] - expected[0]).abs().max() > 0.1, "a missed mixture would not be seen"


@needs_kernels
def test_a_mixed_batch_is_each_request_alone_bit_for_bit(fast: World) -> None:
    """Base, plain adapters, an ensemble and the mixture, whatever the chunks."""
    ensemble = (
        use_of(fast.experts[2]),
        AdapterUse(digest=digest_of(fast.experts[0]), folder=str(fast.experts[0]), weight=-0.5),
    )
    asked = {"base": (), "plain": (use_of(fast.experts[1]),), "ensemble": ensemble, "mixture": (fast.mixture,)}
    expected = {}
    for name, uses in asked.items():
        alone = fast.engine()
        alone.ask_many(name, PROMPT, uses, max_tokens=10)
        alone.run()
        expected[name] = logits_of(alone, name)
    assert len({values[-1].sum().item() for values in expected.values()}) == len(asked)
    for budget in (512, 24, 7):
        dice = random.Random(budget)
        crowd = fast.engine(step_budget_tokens=budget)
        for index in range(4):
            prompt = [dice.randrange(3, 150) for _ in range(dice.randrange(1, 60))]
            crowd.ask_many(f"other{index}", prompt, dice.choice(list(asked.values())), max_tokens=dice.randrange(1, 20))
        crowd.step()
        for name, uses in asked.items():
            crowd.ask_many(name, PROMPT, uses, max_tokens=10)
        crowd.run()
        for name, values in expected.items():
            assert torch.equal(logits_of(crowd, name), values), f"{name} with a budget of {budget} tokens a step"


@needs_kernels
def test_a_cached_prefix_and_a_preemption_do_not_change_a_bit(fast: World) -> None:
    recorder = fast.engine(kv_cache_tokens=96)
    recorder.ask_many("first", PROMPT, (fast.mixture,), max_tokens=12)
    recorder.run()
    assert not recorder.engine.scheduler.prefix_hits
    recorder.ask_many("second", PROMPT, (fast.mixture,), max_tokens=12)
    recorder.ask("other", PROMPT[::-1], None, max_tokens=30)
    recorder.run()
    assert recorder.engine.scheduler.prefix_hits
    assert recorder.engine.scheduler.preemptions
    assert torch.equal(logits_of(recorder, "second")[-12:], logits_of(recorder, "first"))


def test_the_prefix_cache_tells_a_mixture_from_its_experts(exact: World) -> None:
    recorder = exact.engine()
    recorder.ask_many("mixture", PROMPT, (exact.mixture,), max_tokens=2)
    recorder.run()
    recorder.ask("expert", PROMPT, exact.experts[0], max_tokens=2)
    recorder.ask_many("list", PROMPT, exact.mixture.experts, max_tokens=2)
    recorder.run()
    assert recorder.engine.scheduler.prefix_hits == 0


def test_a_router_goes_back_where_a_draft_was_thrown_away(exact: World) -> None:
    from basemodel.mixture_gate import read_mixture

    model = load_snapshot(exact.snapshot).model
    table = ScoreTable(read_mixture(Path(exact.mixture.folder)), model.get_input_embeddings().weight)
    router = Router(table, [0] * EXPERTS)
    tokens = PROMPT[:20]
    router.choose(tokens, 0, 20)
    draft = [*tokens, 7, 8, 9]
    router.choose(draft, 20, 23)
    accepted = [*tokens, 7, 30, 31]  # one token of the draft held
    found = router.choose(accepted, 21, 23)
    again = router.choose(accepted, 0, 23)  # preempted: everything again
    whole = Router(table, [0] * EXPERTS).choose(accepted, 0, 23)
    for choice in (again, whole):
        assert np.array_equal(choice.chosen[21:], found.chosen)
        assert np.array_equal(choice.weights[21:], found.weights)


@needs_kernels
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "seed": 4}])
def test_drafts_on_a_mixture_change_neither_its_text_nor_a_bit(fast: World, sampling: dict[str, Any]) -> None:
    """Drafts that hold and drafts that do not, beside rows without: the router goes on from the text alone."""
    few = dict.fromkeys((20, 31, 7), 60.0)  # they come again and again in other orders: some drafts are right
    runs = []
    for draft_tokens in (0, 6):
        recorder = fast.engine()
        settings = {"max_tokens": 40, "logprobs": 2, "logit_bias": few, "draft_tokens": draft_tokens} | sampling
        recorder.ask_many("mixture", PROMPT, (fast.mixture,), **settings)
        recorder.ask("plain", PROMPT[5:], fast.experts[1], **settings)
        recorder.ask_many("other", PROMPT[::-1], (fast.mixture,), max_tokens=30)
        recorder.run()
        runs.append(recorder)
    plain, drafted = runs
    assert drafted.tokens == plain.tokens
    assert drafted.logprobs == plain.logprobs
    stats = drafted.engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens


def test_how_often_each_expert_was_chosen_is_counted(exact: World) -> None:
    recorder = exact.engine()
    recorder.ask_many("it", PROMPT, (exact.mixture,), max_tokens=4)
    recorder.run()
    (state,) = recorder.engine.stats().mixtures
    tokens = PROMPT + recorder.tokens["it"][:-1]
    expected = np.bincount(exact.routes(tokens).chosen.ravel(), minlength=EXPERTS)
    assert state.digest == exact.mixture.digest
    assert list(state.chosen) == expected.tolist()


def test_a_mixture_that_never_fits_is_refused_and_holds_nobody_up(exact: World) -> None:
    for settings, reason in (
        ({"adapter_slots": 3}, "--adapter-slots"),
        ({"adapter_pool_bytes": 1}, "--adapter-pool-mib"),
    ):
        recorder = exact.engine(**settings)
        recorder.ask_many("mixture", PROMPT, (exact.mixture,), max_tokens=4)
        recorder.ask("base", PROMPT, None, max_tokens=4)
        recorder.run()
        fault = recorder.last["mixture"].fault
        assert fault is not None
        assert reason in fault.message
        assert recorder.last["base"].finish_reason == "length"


def test_many_mixtures_take_turns_in_a_pool_that_holds_one(exact: World, tmp_path: Path) -> None:
    """Each needs four slots of four, and the rows are cut otherwise each time: nobody waits forever, nobody is lost."""
    others = [
        make_mixture(exact.snapshot, tmp_path / f"m{index}", exact.experts[index:] + exact.experts[:index])
        for index in range(1, 3)
    ]
    recorder = exact.engine(adapter_slots=4)
    for index in range(9):
        mixture = [exact.mixture, *others][index % 3]
        recorder.ask_many(f"m{index}", PROMPT[index:], (mixture,), max_tokens=5)
        recorder.ask(f"p{index}", PROMPT[index:], exact.experts[index % EXPERTS], max_tokens=5)
    recorder.run()
    assert {output.finish_reason for output in recorder.last.values()} == {"length"}
    assert len(recorder.last) == 18


def test_rows_that_are_cut_badly_are_cut_anew(exact: World, tmp_path: Path) -> None:
    """Ranks 4, 6, 8, 10 in 28 rows: after a wider adapter in the middle they fit only if all are placed again."""
    wide = make_adapter(exact.snapshot, tmp_path / "wide", seed=9, r=12, lora_alpha=8, target_modules="all-linear")
    recorder = exact.engine()
    sites = recorder.engine.runner.sites
    sites.rows = 28
    order = [exact.experts[0], wide, exact.experts[3]]
    for index, adapter in enumerate(order):
        recorder.ask(f"p{index}", PROMPT, adapter, max_tokens=2)
    recorder.run()
    recorder.ask_many("it", PROMPT, (exact.mixture,), max_tokens=3)
    recorder.run(20)
    assert recorder.last["it"].finish_reason == "length"


def test_a_gate_for_other_experts_is_refused(exact: World) -> None:
    wrong = AdapterUse(
        digest="sha256:" + "9" * 64, folder=exact.mixture.folder, experts=tuple(reversed(exact.mixture.experts))
    )
    recorder = exact.engine()
    recorder.ask_many("it", PROMPT, (wrong,))
    recorder.run()
    fault = recorder.last["it"].fault
    assert fault is not None
    assert (fault.code, "other experts" in fault.message) == ("adapter_rejected", True)


def test_a_mixture_stands_alone(exact: World) -> None:
    recorder = exact.engine()
    recorder.ask_many("it", PROMPT, (exact.mixture, use_of(exact.experts[0])))
    recorder.run()
    fault = recorder.last["it"].fault
    assert fault is not None
    assert fault.code == "invalid_request"
