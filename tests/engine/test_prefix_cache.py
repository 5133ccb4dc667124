"""What was computed once is not computed again, and nobody is ever given what is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from basemodel.load import load_snapshot
from basemodel.snapshot import Snapshot
from serving.engine.kv_cache import KVBlocks
from serving.engine.prefix_chain import PrefixChain
from serving.messages import AdapterUse
from tests.engine.workbench import Recorder, make_engine

EngineMaker = Callable[..., Recorder]
PROMPT = [3 + (7 * index) % 150 for index in range(50)]  # three full blocks of 16, and a rest
BLOCK = 16
TOLERANCE = 2e-4  # float32: the order of sums, see test_parity.py


def use_of(path: Path, weight: float = 1.0) -> AdapterUse:
    return AdapterUse(digest=f"sha256:{path.name}", folder=str(path), weight=weight)


def ask(
    recorder: Recorder, name: str, prompt: list[int], uses: tuple[AdapterUse, ...] = (), tenant: str = "acme"
) -> int:
    """Run one request to its end; returns how many tokens of its prompt were in the cache."""
    before = recorder.engine.scheduler.prefix_hits
    recorder.ask_many(name, prompt, uses, tenant=tenant)
    recorder.run()
    return recorder.engine.scheduler.prefix_hits - before


# ------------------------------------------------------------------------------------------------------- the engine
def test_a_prefix_is_computed_once_and_the_answer_is_the_same(engine: EngineMaker, llama_adapters: list[Path]) -> None:
    recorder = engine()
    uses = (use_of(llama_adapters[0]),)
    assert ask(recorder, "first", PROMPT, uses) == 0
    counted: list[int] = []
    run = recorder.engine.runner.run
    recorder.engine.runner.run = lambda rows: counted.append(sum(row.count for row in rows)) or run(rows)  # type: ignore[method-assign,func-returns-value]
    assert ask(recorder, "second", PROMPT, uses) == 48
    assert counted[0] == len(PROMPT) - 48
    assert recorder.tokens["first"] == recorder.tokens["second"]
    for first, second in zip(recorder.logits["first"], recorder.logits["second"], strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=TOLERANCE)


def test_a_whole_known_prompt_still_computes_its_last_token(engine: EngineMaker) -> None:
    recorder = engine()
    prompt = PROMPT[:32]
    assert ask(recorder, "first", prompt) == 0
    assert ask(recorder, "second", prompt) == 16
    assert recorder.tokens["first"] == recorder.tokens["second"]


def test_an_answer_is_part_of_the_next_prompt(engine: EngineMaker) -> None:
    """A conversation: the second turn begins with the first one and its answer."""
    recorder = engine()
    recorder.ask("first", PROMPT, max_tokens=20)
    recorder.run()
    longer = [*PROMPT, *recorder.tokens["first"], 5, 6, 7]
    assert ask(recorder, "second", longer) == 64


@pytest.mark.parametrize("other", ["tenant", "adapter", "weight", "none", "first token"])
def test_nobody_is_given_what_is_not_theirs(engine: EngineMaker, llama_adapters: list[Path], other: str) -> None:
    recorder = engine()
    ask(recorder, "first", PROMPT, (use_of(llama_adapters[0]),))
    uses = {
        "adapter": (use_of(llama_adapters[1]),),
        "weight": (use_of(llama_adapters[0], 0.5),),
        "none": (),
    }.get(other, (use_of(llama_adapters[0]),))
    prompt = [9, *PROMPT[1:]] if other == "first token" else PROMPT
    assert ask(recorder, "second", prompt, uses, tenant="globex" if other == "tenant" else "acme") == 0
    assert ask(recorder, "third", PROMPT, (use_of(llama_adapters[0]),)) == 48


def test_requests_that_run_together_share_blocks(engine: EngineMaker) -> None:
    recorder = engine(kv_cache_tokens=160)  # ten blocks: three apart would need twelve
    ask(recorder, "first", PROMPT)
    for index in range(3):
        recorder.ask(f"r{index}", [*PROMPT[:48], 11 + index])
    recorder.step()
    assert len(recorder.engine.scheduler.running) == 3
    recorder.run()
    assert recorder.engine.scheduler.preemptions == 0


def test_a_small_cache_evicts_and_stays_right(engine: EngineMaker, llama: Snapshot) -> None:
    """Many prompts over few blocks, with preemptions: every answer is the one it gives alone."""
    recorder = engine(kv_cache_tokens=128)
    prompts = [[*PROMPT[: 16 * (1 + index % 3)], 20 + index % 4, 7] for index in range(12)]
    for index, prompt in enumerate(prompts):
        recorder.ask(f"r{index}", prompt, max_tokens=12)
    recorder.run()
    assert recorder.engine.scheduler.prefix_hits > 0
    for index in (0, 5, 11):
        alone = make_engine(load_snapshot(llama))
        alone.ask("alone", prompts[index], max_tokens=12)
        alone.run()
        assert recorder.tokens[f"r{index}"] == alone.tokens["alone"]


def test_the_counters_are_told(engine: EngineMaker) -> None:
    recorder = engine()
    ask(recorder, "first", PROMPT)
    ask(recorder, "second", PROMPT)
    stats = recorder.engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (100, 48)
    assert stats.prompt_tokens == 100
    assert stats.kv_blocks_used == 0


# ------------------------------------------------------------------------------------------------------- the blocks
class Blocks(RuleBasedStateMachine):
    """Requests come, grow and leave in any order. A block's content, as a model keeps it, is what a match must find."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = KVBlocks(12, 2)
        self.running: list[tuple[str, list[int], list[int], PrefixChain]] = []
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}  # block -> whose, and all tokens up to its end

    @rule(identity=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9))
    def admit(self, identity: str, tokens: list[int]) -> None:
        owned, chain = self.blocks.match(identity, tokens)
        assert len(owned) * 2 < len(tokens)
        for index, block in enumerate(owned):
            assert self.content[block] == (identity, tuple(tokens[: 2 * index + 2]))
        more = self.blocks.take(self.blocks.blocks_for(len(tokens)) - len(owned))
        if more is None:
            self.blocks.give_back(owned)
            return
        owned += more
        for block in more:
            self.content.pop(block, None)
        for index in range(len(owned) - len(more), len(tokens) // 2):
            self.content[owned[index]] = (identity, tuple(tokens[: 2 * index + 2]))
        self.blocks.publish(chain, tokens, owned, len(tokens))
        self.running.append((identity, tokens, owned, chain))

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.running:
            _, _, owned, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.blocks.give_back(owned)

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if self.running:
            _, _, owned, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
            self.blocks.forget(owned)
            self.blocks.give_back(owned)

    @invariant()
    def adds_up(self) -> None:
        self.blocks.check_integrity(owned for _, _, owned, _ in self.running)


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_end_of_a_prefix_is_evicted_before_its_head() -> None:
    blocks = KVBlocks(3, 2)
    tokens = [1, 2, 3, 4, 5, 6, 7]
    owned = blocks.take(3)
    assert owned is not None
    blocks.publish(PrefixChain("a"), tokens, owned, 6)
    blocks.give_back(owned)
    taken = blocks.take(1)
    assert taken is not None
    assert len(blocks.match("a", tokens)[0]) == 2
