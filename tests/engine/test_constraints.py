"""Answers that follow a grammar: every token is one that it allows, whatever else happens to the request."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from basemodel.kernels.library import has_cpu_kernels
from basemodel.load import load_base
from serving.engine.constraint import Allowed, Constraint
from serving.grammars.compiler import GrammarCompiler
from serving.grammars.source import GrammarSource, from_choices, from_grammar, from_regex, from_schema
from serving.messages import Generate, Sampling, TokenLogprob
from tests.engine.workbench import Recorder, make_engine

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


class Bench:
    """Engines with the embedded base: one for most tests, made once."""

    def __init__(self, bases: Path) -> None:
        self._bases = bases
        self._engine: ConstrainedRecorder | None = None

    def engine(self) -> ConstrainedRecorder:
        """The one that is shared: nothing is in it, and nothing recorded."""
        self._engine = self._engine or self.own_engine()
        assert not self._engine.engine.has_work
        for recorded in (self._engine.recorder.logits, self._engine.recorder.tokens, self._engine.recorder.last):
            recorded.clear()
        return self._engine

    def own_engine(self, **settings: Any) -> ConstrainedRecorder:
        recorder = make_engine(load_base("embedded", cache_dir=self._bases), **settings)
        base = recorder.engine.runner.base
        compiler = GrammarCompiler.load(
            base.folder / "tokenizer.json",
            vocabulary_tokens=base.description.vocabulary_size,
            end_token_ids=sorted(recorder.engine.end_token_ids),
        )
        return ConstrainedRecorder(recorder, compiler)


class ConstrainedRecorder:
    def __init__(self, recorder: Recorder, compiler: GrammarCompiler) -> None:
        self.recorder = recorder
        self.engine = recorder.engine
        self.compiler = compiler
        self.tokenizer = recorder.engine.runner.base.tokenizer

    def ask(self, name: str, source: GrammarSource | None, prompt: str = "Answer:", **settings: Any) -> None:
        tenant, draft_tokens = settings.pop("tenant", "acme"), settings.pop("draft_tokens", 0)
        grammar = None if source is None else self.compiler.translate(source)
        sampling = Sampling(**({"max_tokens": 200, "temperature": 1.0, "seed": 1} | settings))
        prompt_token_ids = self.tokenizer.encode(prompt)
        message = Generate(
            request_id=name,
            tenant=tenant,
            prompt_token_ids=prompt_token_ids,
            sampling=sampling,
            grammar=grammar,
            draft_tokens=draft_tokens,
        )
        self.engine.add(message)

    def run(self) -> None:
        self.recorder.run()

    def text(self, name: str) -> str:
        return self.tokenizer.decode(self.recorder.tokens[name], skip_special_tokens=True)

    def reason(self, name: str) -> str | None:
        return self.recorder.last[name].finish_reason


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bases"))


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """No mask is worked out until the function is called."""
    is_open = [False]
    advance = Constraint._advance

    def later(self: Constraint, token: int | None) -> Allowed:
        while not is_open[0]:
            time.sleep(0.001)
        return advance(self, token)

    monkeypatch.setattr(Constraint, "_advance", later)
    yield lambda: is_open.__setitem__(0, True)
    is_open[0] = True


def is_of_schema(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["name", "age", "tags"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 12
        and 0 <= value["age"] <= 150
        and set(value["tags"]) <= {"red", "green", "blue"}
    )


@pytest.mark.skipif(not has_cpu_kernels(), reason="elsewhere a row's last bits depend on its batch")
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_beside_a_constrained_answer_change_neither(bench: Bench, temperature: float) -> None:
    """The constrained request asks for drafts too, and has none: what a grammar allows next is not known ahead."""
    answers = []
    for draft_tokens in (0, 6):
        run = bench.engine()
        before = run.engine.stats()
        for seed in range(2):
            settings = {"seed": seed, "temperature": temperature, "draft_tokens": draft_tokens}
            run.ask(f"object{seed}", from_schema(SCHEMA), **settings)
            run.ask(f"free{seed}", None, "one two three four " * 8, **settings | {"temperature": 0.0, "max_tokens": 60})
        run.run()
        after = run.engine.stats()
        assert (after.accepted_tokens > before.accepted_tokens) == (draft_tokens > 0)
        answers.append(dict(run.recorder.tokens))
        assert all(is_of_schema(run.text(f"object{seed}")) for seed in range(2))
    assert answers[0] == answers[1]


def test_each_kind_of_source_is_followed_at_every_temperature(bench: Bench) -> None:
    run = bench.engine()
    sources = {
        "schema": from_schema(SCHEMA),
        "regex": from_regex(r"[A-F]{2}-[0-9]{3}"),
        "choice": from_choices(["north", "south-west", "é☃"]),
        "lark": from_grammar('start: "<" WORD ("," WORD){0,2} ">"\nWORD: /[a-z]{1,5}/'),
        "gbnf": from_grammar('root ::= "yes " ("maybe" | "no")'),
    }
    for name, source in sources.items():
        for seed, temperature in enumerate((0.0, 0.7, 2.0)):
            run.ask(f"{name}{seed}", source, temperature=temperature, seed=seed)
    run.run()
    for name in sources:
        for seed in range(3):
            assert run.reason(f"{name}{seed}") == "stop", (name, run.recorder.last[f"{name}{seed}"])
    for seed in range(3):
        assert is_of_schema(run.text(f"schema{seed}"))
        assert len(run.text(f"regex{seed}")) == 6
        assert run.text(f"choice{seed}") in ("north", "south-west", "é☃")
        assert run.text(f"lark{seed}").strip("<>").replace(",", "").isalpha()
        assert run.text(f"gbnf{seed}") in ("yes maybe", "yes no")


def test_a_grammar_holds_through_preemption(bench: Bench) -> None:
    roomy, tight = bench.engine(), bench.own_engine(kv_cache_tokens=128, kv_block_tokens=4)
    for run in (roomy, tight):
        for index in range(6):
            run.ask(
                f"r{index}", from_schema(SCHEMA) if index % 2 else None, seed=index, max_tokens=60, ignore_eos=False
            )
        run.run()
    assert tight.engine.scheduler.preemptions > 0
    assert tight.recorder.tokens == roomy.recorder.tokens
    assert is_of_schema(tight.text("r1"))


def test_neighbours_of_a_constrained_row_keep_their_bits(bench: Bench) -> None:
    tokens = []
    for neighbours in (0, 4):
        run = bench.engine()
        run.ask("free", None, max_tokens=24, ignore_eos=True)
        for index in range(neighbours):
            run.ask(f"bound{index}", from_schema(SCHEMA), seed=index)
        run.run()
        tokens.append(run.recorder.tokens["free"])
    assert tokens[0] == tokens[1]


def test_the_end_of_text_is_allowed_only_where_the_grammar_accepts(bench: Bench) -> None:
    run = bench.engine()
    end = min(run.engine.end_token_ids)
    run.ask("eager", from_regex("[ab]{3,5}"), logit_bias={end: 100.0})
    run.ask("never", from_regex("[ab]{3,5}"), logit_bias={end: -100.0}, seed=4)
    run.run()
    assert len(run.text("eager")) == 3
    assert run.recorder.last["eager"].stop_token_id == end
    assert len(run.text("never")) == 5
    assert run.reason("never") == "stop"


def test_the_longest_answer_cuts_with_length(bench: Bench) -> None:
    run = bench.engine()
    run.ask("cut", from_regex("(ab)*"), max_tokens=4, logit_bias=dict.fromkeys(run.engine.end_token_ids, -100.0))
    run.run()
    assert run.reason("cut") == "length"
    assert set(run.text("cut")) == {"a", "b"}


def test_penalties_and_logprobs(bench: Bench) -> None:
    """Penalties act among what is allowed; log-probabilities are the model's own, before the grammar."""
    run = bench.engine()
    run.ask(
        "shaped",
        from_regex("[01]{12}"),
        logprobs=2,
        temperature=0.0,
        frequency_penalty=2.0,
        repetition_penalty=1.5,
        presence_penalty=1.0,
        max_tokens=40,
    )
    run.ask("free", None, temperature=0.0, logprobs=2, max_tokens=1)
    logprobs = []
    while run.engine.has_work:
        for output in run.recorder.step():
            if output.request_id == "shaped":
                logprobs += output.logprobs or []
    assert set(run.text("shaped")) == {"0", "1"}, "frequency penalties bring both"
    recorded = iter(run.recorder.logits["shaped"])  # a row whose mask was late has been computed once more
    for entry in logprobs:
        assert any(_are_of(entry, torch.log_softmax(logits, -1)) for logits in recorded)


def _are_of(entry: TokenLogprob, own: torch.Tensor) -> bool:
    told, best = float(own[entry.token_id]), float(own.max())
    return entry.logprob == pytest.approx(told, abs=1e-4) and entry.top[0][1] == pytest.approx(best, abs=1e-4)


def test_a_row_whose_mask_is_late_holds_nobody_up(bench: Bench, held_back: Callable[[], None]) -> None:
    run = bench.engine()
    run.ask("late", from_choices(["one"]))
    run.ask("free", None, max_tokens=12, ignore_eos=True)
    while run.recorder.last.get("free") is None or run.reason("free") is None:
        run.recorder.step()
    assert run.recorder.tokens.get("late", []) == []
    held_back()
    run.run()
    assert run.text("late") == "one"


def test_a_late_mask_changes_no_token(bench: Bench, held_back: Callable[[], None]) -> None:
    tokens = []
    for is_late in (True, False):
        run = bench.engine()
        run.ask("r", from_schema(SCHEMA), seed=11)
        for _ in range(5 if is_late else 0):
            run.recorder.step()
            time.sleep(0.01)
        held_back()
        run.run()
        tokens.append(run.recorder.tokens["r"])
    assert tokens[0] == tokens[1]


def test_a_slow_compilation_holds_nobody_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.engine()
    compiling: Future[None] = Future()
    compile_now = GrammarCompiler.compile

    def slow(self: GrammarCompiler, grammar: str) -> Any:
        compiling.result()
        return compile_now(self, grammar)

    monkeypatch.setattr(GrammarCompiler, "compile", slow)
    run.ask("slow", from_choices(["one"]))
    run.ask("left", from_choices(["two"]))
    run.ask("free", None, max_tokens=6, ignore_eos=True)
    while run.recorder.last.get("free") is None or run.reason("free") is None:
        run.recorder.step()
    run.engine.abort("left")
    run.engine.check_integrity()
    compiling.set_result(None)
    run.run()
    assert run.text("slow") == "one"
    assert "left" not in run.recorder.last


def test_a_grammar_that_cannot_be_compiled_fails_its_own_request(bench: Bench) -> None:
    run = bench.engine()
    message = Generate(
        request_id="bad", tenant="t", prompt_token_ids=[7], sampling=Sampling(max_tokens=3), grammar="start: ("
    )
    run.engine.add(message)
    run.ask("free", None, max_tokens=6, ignore_eos=True)
    run.run()
    fault = run.recorder.last["bad"].fault
    assert fault is not None
    assert fault.code == "invalid_request"
    assert "grammar cannot be followed" in fault.message
    assert run.reason("free") == "length"


def test_an_aborted_constrained_request_is_gone(bench: Bench) -> None:
    run = bench.engine()
    run.ask("leaves", from_schema(SCHEMA), max_tokens=200)
    while len(run.recorder.tokens.get("leaves", [])) < 3:
        run.recorder.step()
    run.engine.abort("leaves")
    run.engine.check_integrity()
    assert not run.engine.has_work
    assert run.engine.stats().kv_blocks_used == 0


def test_a_grammar_that_grows_too_complex_ends_its_own_request(bench: Bench) -> None:
    run = bench.engine()
    run.ask("amb", from_grammar('start: a+\na: b | c | "x"\nb: a a | "x"\nc: a a a | "x"'), max_tokens=500)
    run.ask("free", None, max_tokens=6, ignore_eos=True)
    run.run()
    fault = run.recorder.last["amb"].fault
    assert fault is not None
    assert fault.code == "invalid_request"
    assert "too much work" in fault.message
    assert run.reason("free") == "length"


def test_a_tenants_threads_end_with_its_last_request(bench: Bench) -> None:
    run = bench.engine()
    threads = run.engine.constrained._grammars._threads
    run.ask("a", from_choices(["x"]), tenant="acme")
    run.ask("b", from_choices(["x"]), tenant="rival")
    assert set(threads) == {"acme", "rival"}
    run.run()
    assert not threads


def test_compiled_grammars_are_kept_per_tenant_and_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_now = GrammarCompiler.compile
    monkeypatch.setattr(
        GrammarCompiler, "compile", lambda self, grammar: compiled.append(grammar) or compile_now(self, grammar)
    )
    run = bench.engine()
    for index, tenant in enumerate(("acme", "acme", "rival")):
        run.ask(f"{tenant}{index}", from_choices(["kept"]), tenant=tenant)
        run.run()
    assert len(compiled) == 2, "one each for acme and rival"
    for index in range(40):
        run.ask(f"many{index}", from_choices([f"y{index}"]), tenant="acme")
    run.run()
    kept = run.engine.constrained._grammars._kept
    assert sum(tenant == "acme" for tenant, _ in kept) == 16
    assert sum(tenant == "rival" for tenant, _ in kept) >= 1
