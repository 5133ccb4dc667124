"""Drafts change how many steps a text takes, and nothing else: not a token, not a log-probability, not a neighbour."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.engine.answer import choose
from serving.engine.drafts import LONGEST_REST_STEPS, Drafts
from serving.engine.request import Request, Row
from serving.messages import Sampling
from tests.engine.simulation import Simulation
from tests.engine.workbench import FAMILIES, Recorder, make_adapter, make_engine, make_snapshot

# A text that repeats itself: there is much to copy.
PROMPT = [20, 31, 7, 44, 9, 12, 60, 61] * 4
# A bias that leaves a few tokens only, which come again and again in ever other orders: some drafts are right.
FEW = dict.fromkeys((20, 31, 7), 60.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """On the CPU kernels, where a request's logits are the same bits in any batch."""
    config = FAMILIES["llama"].__class__(**FAMILIES["llama"].to_dict() | {"head_dim": 32})
    return make_snapshot(config, tmp_path_factory.mktemp("bf16"), compute_dtype="bfloat16")


@pytest.fixture(scope="module")
def adapter(base: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    return make_adapter(base, folder, seed=1, r=8, lora_alpha=8, target_modules="all-linear")


def run(base: Snapshot, adapter: Path | None, draft_tokens: int, **sampling: Any) -> Recorder:
    recorder = make_engine(load_snapshot(base))
    for index, uses in enumerate([adapter, None]):
        recorder.ask(f"r{index}", PROMPT[index:], uses, draft_tokens=draft_tokens, **sampling)
    recorder.run()
    return recorder


@pytest.mark.skipif(not has_cpu_kernels(), reason="elsewhere a row's last bits depend on its batch")
@pytest.mark.parametrize(
    "sampling",
    [
        {"max_tokens": 40, "logprobs": 2},
        {"max_tokens": 40, "temperature": 0.7, "seed": 5, "logprobs": 0, "logit_bias": FEW},
        {"max_tokens": 40, "temperature": 1.0, "top_k": 5, "min_p": 0.05, "seed": 3, "logit_bias": FEW},
        {"max_tokens": 40, "repetition_penalty": 1.05, "frequency_penalty": 0.1, "logit_bias": FEW},
        {"max_tokens": 40, "temperature": 0.4, "top_p": 0.8, "presence_penalty": 0.2, "seed": 8, "logit_bias": FEW},
    ],
)
def test_the_same_tokens_and_logprobs_with_and_without_drafts(
    base: Snapshot, adapter: Path, sampling: dict[str, Any]
) -> None:
    plain, drafted = run(base, adapter, 0, **sampling), run(base, adapter, 6, **sampling)
    assert drafted.tokens == plain.tokens
    assert drafted.logprobs == plain.logprobs
    assert {name: output.finish_reason for name, output in drafted.last.items()} == {"r0": "length", "r1": "length"}
    stats = drafted.engine.stats()
    assert 0 < stats.accepted_tokens <= stats.drafted_tokens
    assert stats.generation_tokens == plain.engine.stats().generation_tokens == 80
    assert stats.kv_blocks_used == 0


def test_accepted_drafts_save_steps(base: Snapshot, adapter: Path) -> None:
    plain, drafted = run(base, adapter, 0, max_tokens=40), run(base, adapter, 6, max_tokens=40)
    assert drafted.engine.stats().accepted_tokens > 10
    assert drafted.engine.stats().steps < plain.engine.stats().steps


def test_a_text_ends_inside_a_draft_where_it_would_end_without(base: Snapshot) -> None:
    plain = run(base, None, 0, max_tokens=40)
    told = plain.tokens["r0"]
    for most in (1, 2, 5, 9):
        assert run(base, None, 8, max_tokens=most).tokens["r0"] == told[:most]
    for stop in set(told[3:]):
        ended = run(base, None, 8, max_tokens=40, stop_token_ids=(stop,))
        assert ended.tokens["r0"] == told[: told.index(stop)]
        assert ended.last["r0"].stop_token_id == stop
        assert ended.engine.stats().kv_blocks_used == 0


def test_refused_drafts_leave_nothing_in_the_prefix_cache(base: Snapshot) -> None:
    """What a first request computed for tokens that were refused must not be found by a second one."""
    recorder = make_engine(load_snapshot(base), kv_block_tokens=4)
    for name in ("first", "second"):
        recorder.ask(name, PROMPT, temperature=1.0, seed=4, max_tokens=60, draft_tokens=8, logit_bias=FEW)
        recorder.run()
    stats = recorder.engine.stats()
    assert stats.drafted_tokens > stats.accepted_tokens, "no draft was refused"
    whole = [*PROMPT, *recorder.tokens["first"]]
    recorder.ask("found", whole, max_tokens=8)
    recorder.run()
    assert recorder.engine.stats().prefix_hits - stats.prefix_hits >= len(whole) - 8
    fresh = make_engine(load_snapshot(base), kv_block_tokens=4)
    fresh.ask("found", whole, max_tokens=8)
    fresh.run()
    assert recorder.tokens["first"] == recorder.tokens["second"]
    assert recorder.tokens["found"] == fresh.tokens["found"]


def test_drafts_are_accepted_with_their_own_probability() -> None:
    """The pairs of tokens that are drawn follow the model's distribution, whatever was drafted."""
    logits = torch.tensor([[1.0, 0.5, -1.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0]])
    draws, pairs = 3000, Counter[tuple[int, ...]]()
    for seed in range(draws):
        sampling = Sampling(max_tokens=9)
        generator = torch.Generator().manual_seed(seed)
        request = Request("r", "t", [0], sampling, (), 0, ends_at_tokens=10, generator=generator)
        request.computed = 0
        (answer,) = choose([Row(request, 3, (1, 2))], set(), logits, frozenset())
        pairs[tuple(pick.token_id for pick in answer.picks[:2])] += 1
    first, second = torch.softmax(logits[0], -1).tolist(), torch.softmax(logits[1], -1).tolist()
    expected = {(0,): first[0], (2,): first[2]} | {(1, token): first[1] * second[token] for token in range(3)}
    assert set(pairs) == set(expected)
    for pair, share in expected.items():
        assert abs(pairs[pair] / draws - share) < 4 * (share * (1 - share) / draws) ** 0.5


def test_a_draft_continues_the_longest_match_and_repeats_itself() -> None:
    drafts = Drafts(8)
    assert drafts.propose([1, 2, 3, 9, 1, 2, 3], 8) == (9, 1, 2, 3)
    assert Drafts(8).propose([5, 6, 5, 6], 3) == (5, 6, 5)
    assert Drafts(8).propose([1, 2, 3, 4], 8) == ()
    assert Drafts(8).propose([1, 2, 3, 9, 1, 2, 3], 0) == ()


def test_drafts_grow_where_they_are_right_and_rest_where_they_are_not() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 2, 3]
    drafts = Drafts(6)
    lengths = []
    for _ in range(3):
        draft = drafts.propose(text, 16)
        lengths.append(len(draft))
        drafts.judge(len(draft), len(draft))
    assert lengths == [4, 6, 6]
    steps, proposed = 0, 0
    while proposed < 12:
        steps += 1
        draft = drafts.propose(text, 16)
        if draft:
            proposed += 1
            drafts.judge(len(draft), 0)
    assert steps > 5 * LONGEST_REST_STEPS, "it goes on guessing though nothing is right"
    while not (draft := drafts.propose(text, 16)):
        pass
    drafts.judge(len(draft), len(draft))
    assert drafts.propose(text, 16)


def test_a_long_text_is_taken_in_piece_by_piece() -> None:
    tokens = [(7 * index) % 6007 for index in range(50_000)]
    drafts = Drafts(4)
    begin = drafts.propose(tokens, 4)
    assert begin == ()
    for _ in range(40):
        drafts.propose(tokens, 4)
    assert drafts.propose(tokens, 4) == tuple(tokens[50_000 - 6007 + index] for index in range(4))
    assert len(vars(drafts)["_followed_at"]) < 40_000


def test_drafts_use_what_a_step_has_left_and_preempt_nobody() -> None:
    """Blocks for two texts and no more: with drafts there is not one preemption more, and nobody is left out."""
    preemptions = []
    for draft_tokens in (0, 8):
        simulation = Simulation(kv_blocks=24, max_running=5)
        for index in range(5):
            simulation.ask(f"r{index}", f"t{index % 2}", 9, 30, salt=index % 2, drafts=draft_tokens)
        simulation.run()
        assert all(answer == simulation.expected(name) for name, answer in simulation.answers.items())
        preemptions.append(simulation.scheduler.preemptions)
    assert preemptions[1] <= preemptions[0] + 2


def test_a_row_without_usable_values_behind_a_draft_ends_alone() -> None:
    logits = torch.tensor([[0.0, 9.0, 0.0], [float("nan")] * 3, [0.0, 0.0, 9.0]])
    requests = [
        Request(name, "t", [0], Sampling(max_tokens=9, temperature=0), (), 0, ends_at_tokens=10) for name in "ab"
    ]
    rows = [Row(requests[0], 2, (1,)), Row(requests[1], 1)]
    first, second = choose(rows, set(), logits, frozenset())
    assert [pick.finite for pick in first.picks] == [True, False]
    assert first.reason == "error"
    assert second.picks[0].token_id == 2
    assert SimpleNamespace(tokens=requests[0].tokens).tokens == [0, 1]
