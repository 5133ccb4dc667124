"""What clients ask their answers to follow: bounds, verdicts, and the processes that give them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.grammars.checker import GrammarChecker
from serving.grammars.compiler import GrammarCompiler
from serving.grammars.errors import GrammarRefusedError
from serving.grammars.source import (
    MOST_REGEX_CHARACTERS,
    GrammarSource,
    from_choices,
    from_grammar,
    from_regex,
    from_schema,
    from_schema_text,
)
from serving.grammars.verdicts import WorkerSettings
from serving.tool_syntax import HERMES, LLAMA
from tests.serving.byte_base import END, VOCABULARY, to_ids
from tests.serving.server import RunningServer, wait_until
from tests.serving.test_bad_requests import CHAT, TEXT, error_of

# Limits on work inside of llguidance do not bound these: one takes seconds, the other all memory.
ENDLESS = from_grammar("start: A\nA: " + " & ".join(f"/(?s:.*)a{{{i}}}(?s:.*)/" for i in range(1, 30)))
ADD: dict[str, Any] = {
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "integer"}},
    },
}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


class Checked:
    def __init__(self, byte_base: Path, compile_seconds: int = 1, idle_seconds: float = 600.0) -> None:
        self.outcomes: Counter[str] = Counter()
        settings = WorkerSettings(
            tokenizer_file=str(byte_base / "tokenizer.json"),
            vocabulary_tokens=VOCABULARY,
            end_token_ids=(END,),
            compile_seconds=compile_seconds,
            compile_bytes=256 * 1024 * 1024,
        )
        self.checker = GrammarChecker(
            settings, idle_seconds=idle_seconds, judged=lambda outcome: self.outcomes.update([outcome])
        )

    async def refusal(self, source: GrammarSource, tenant: str = "acme") -> str | None:
        try:
            await self.checker.check(tenant, source)
        except GrammarRefusedError as error:
            return error.reason
        return None


@pytest.fixture
async def checked(byte_base: Path) -> AsyncIterator[Checked]:
    checked = Checked(byte_base)
    yield checked
    await checked.checker.close()


@pytest.fixture(scope="module")
def compiler(byte_base: Path) -> GrammarCompiler:
    return GrammarCompiler.load(byte_base / "tokenizer.json", vocabulary_tokens=VOCABULARY, end_token_ids=[END])


def compilers() -> list[psutil.Process]:
    """The compiling processes of this one."""
    return [each for each in psutil.Process().children() if "serving.grammars.worker" in each.cmdline()]


def accepts(compiler: GrammarCompiler, source: GrammarSource, text: str) -> bool:
    """Whether the whole text is an answer."""
    matcher = compiler.compile(compiler.translate(source))
    tokens = to_ids(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting())


# ----------------------------------------------------------------------------------------------------- bounds
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: from_schema(nested(60)), "deeper than 48"),
        (lambda: from_schema(nested(5000)), "deeper than 48"),
        (lambda: from_schema({"enum": list(range(2001))}), "2001 values"),
        (lambda: from_schema({"properties": {f"p{i}": {"const": i} for i in range(9000)}}), "20000 values|characters"),
        (lambda: from_schema({"description": "x" * 140_000}), "characters"),
        (lambda: from_schema({"$ref": "https://example.com/schema.json"}), "outside of the schema"),
        (lambda: from_schema({"items": [{"$ref": "other.json#/a"}]}), "outside of the schema"),
        (lambda: from_schema({"multipleOf": 0.0001234567}), "at most 8 digits"),
        (lambda: from_schema({"items": {"multipleOf": 7e-9}}), "at most 8 digits"),
        (lambda: from_schema({"multipleOf": 123_456_789}), "at most 8 digits"),
        (lambda: from_schema({"multipleOf": 10**300}), "at most 8 digits"),
        (lambda: from_schema({"x-guidance": {"lenient": True}}), "x-guidance"),
        (lambda: from_schema(False), "allows nothing"),
        (lambda: from_schema_text("{"), "not JSON"),
        (lambda: from_schema_text("[1]"), "JSON object"),
        (lambda: from_schema_text("[" * 50_000), "not JSON"),
        (lambda: from_regex("a" * (MOST_REGEX_CHARACTERS + 1)), "4097 characters"),
        (lambda: from_choices([]), "0 choices"),
        (lambda: from_choices(["a"] * 1001), "1001 choices"),
        (lambda: from_choices(["a" * 1025]), "1025 characters"),
        (lambda: from_grammar("x" * 65_537), "65537 characters"),
        (lambda: from_grammar('start: a\na[temperature=0.5]: "x"'), "`temperature`"),
        (lambda: from_grammar('start: a\na[capture, stop="x"]: /.*/'), "`stop`"),
    ],
)
def test_what_is_out_of_bounds_is_refused_before_it_is_compiled(make: Any, said: str) -> None:
    with pytest.raises(GrammarRefusedError, match=said):
        make()


# ----------------------------------------------------------------------------------------------------- meaning
def test_sources_mean_what_they_say(compiler: GrammarCompiler) -> None:
    schema = from_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False})
    assert accepts(compiler, schema, '{"a":1}')
    assert accepts(compiler, schema, '{\n    "a": 1\n}')
    assert not accepts(compiler, schema, '{  "a":1}'), "blanks are bounded"
    assert not accepts(compiler, schema, '{"b":1}')
    assert accepts(compiler, from_schema(True), "[1, 2]")
    assert accepts(compiler, from_schema_text('{"const": "é"}'), '"é"')
    assert accepts(compiler, from_regex("a|b+"), "bb")
    assert not accepts(compiler, from_regex("a"), "xa")
    assert accepts(compiler, from_choices(['say "x"\n', "é", "\0"]), 'say "x"\n')
    assert not accepts(compiler, from_choices(["ab"]), "a")
    assert accepts(compiler, from_grammar('root ::= "a" [0-9]+'), "a42")
    assert accepts(compiler, from_grammar("start: /[0-9]+/"), "42")


def test_calls_must_be_valid_and_text_may_precede_them(compiler: GrammarCompiler) -> None:
    good, bad = HERMES.call_text("add", '{"a": 3}'), HERMES.call_text("add", '{"a": "x"}')
    functions = [ADD, {"name": "added"}]
    auto = HERMES.text_or_calls_grammar(functions, is_many=True)
    for text in ("", "Hello <b>", good, f"Sure.\n{good}", f"{good}\n{good}", HERMES.call_text("added", "{}")):
        assert accepts(compiler, auto, text), text
    for text in (bad, f"Sure.{bad}", "<tool_call>", f"{good} and", HERMES.call_text("other", "{}")):
        assert not accepts(compiler, auto, text), text
    one = HERMES.text_or_calls_grammar(functions, is_many=False)
    assert accepts(compiler, one, good)
    assert not accepts(compiler, one, f"{good}\n{good}")
    required = HERMES.calls_grammar(functions, is_many=True)
    assert accepts(compiler, required, f"{good}\n{good}")
    assert not accepts(compiler, required, f"Sure.{good}")
    assert not accepts(compiler, required, "")


def test_json_of_a_schema_may_stand_instead_of_calls(compiler: GrammarCompiler) -> None:
    good = HERMES.call_text("add", '{"a": 3}')
    either = HERMES.json_or_calls_grammar([ADD], {"const": {"b": 1}}, is_many=True)
    for text in ('{"b": 1}', good, f"{good}\n{good}"):
        assert accepts(compiler, either, text), text
    for text in ("", "text", '{"b": 2}', f'{{"b": 1}}{good}'):
        assert not accepts(compiler, either, text), text
    with pytest.raises(GrammarRefusedError, match="cannot be told"):
        LLAMA.json_or_calls_grammar([ADD], {}, is_many=True)


def test_llama_writes_one_call_or_text(compiler: GrammarCompiler) -> None:
    good = LLAMA.call_text("add", '{"a": 3}')
    auto = LLAMA.text_or_calls_grammar([ADD], is_many=True)
    assert accepts(compiler, auto, good)
    assert accepts(compiler, auto, "The answer is {3}.")
    assert not accepts(compiler, auto, '{"name": "other"}')
    assert not accepts(compiler, LLAMA.calls_grammar([ADD], is_many=True), good + good)


# ----------------------------------------------------------------------------------------------------- verdicts
REFUSED: list[tuple[GrammarSource, str]] = [
    (from_schema({"not": {"type": "string"}}), "not"),
    (from_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    (from_schema({"type": "string", "format": "password"}), "password"),
    (from_schema({"$ref": "#"}), "no text matches"),
    (from_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "no text matches"),
    (from_schema({"$ref": "#/$defs/none"}), ""),
    (from_regex("(" * 2000 + "a" + ")" * 2000), "regex"),
    (from_regex("a(?=b)"), "look"),
    (from_regex("["), "regex"),
    (from_grammar("root ::= " + "(" * 5000 + '"a"' + ")" * 5000), "recursion"),
    (from_grammar('root ::= missing "a"'), "missing"),
    (from_grammar("start: ("), ""),
    (from_grammar("no grammar"), "Expected"),
]


async def test_what_cannot_be_followed_is_refused_with_its_reason(checked: Checked) -> None:
    for source, said in REFUSED:
        reason = await checked.refusal(source)
        assert reason is not None, source
        assert said.lower() in reason.lower(), source
        assert len(reason) < 700
        assert "\n" not in reason


async def test_a_compiler_that_takes_too_long_is_ended_and_the_next_source_finds_another(checked: Checked) -> None:
    reason = await checked.refusal(ENDLESS)
    assert reason is not None
    assert "compile" in reason
    assert await checked.refusal(from_choices(["a"])) is None
    assert checked.outcomes == {"refused": 1, "compiled": 1}


async def test_one_tenants_endless_compilations_do_not_stop_anothers(checked: Checked) -> None:
    endless = [
        asyncio.create_task(checked.refusal(GrammarSource("lark", f"{ENDLESS.text}\nB{i}: /b/"), "hostile"))
        for i in range(4)
    ]
    await asyncio.sleep(0.1)
    assert await checked.refusal(from_choices(["a"]), "modest") is None
    assert not any(task.done() for task in endless[1:]), "they wait for their own tenant's turn"
    for task in endless:
        task.cancel()


async def test_verdicts_are_remembered_per_tenant(checked: Checked) -> None:
    source = from_regex("[a-z]+")
    grammars = await asyncio.gather(*[checked.checker.check("acme", source) for _ in range(5)])
    assert len(set(grammars)) == 1
    assert checked.outcomes == {"compiled": 1}
    await checked.checker.check("rival", source)
    assert checked.outcomes == {"compiled": 2}
    for _ in range(2):
        assert await checked.refusal(from_regex("[")) is not None
    assert checked.outcomes == {"compiled": 2, "refused": 1}


async def test_a_client_that_leaves_does_not_confuse_the_next(checked: Checked) -> None:
    leaving = asyncio.create_task(checked.checker.check("acme", from_choices(["a"])))
    await asyncio.sleep(0.01)
    leaving.cancel()
    grammar = await checked.checker.check("acme", from_choices(["b"]))
    assert '"b"' in grammar


async def test_a_compiler_that_dies_is_replaced(checked: Checked) -> None:
    await checked.checker.check("acme", from_choices(["a"]))
    (child,) = compilers()
    os.kill(child.pid, signal.SIGKILL)
    child.wait(5)
    await checked.refusal(from_choices(["b"]))
    assert await checked.refusal(from_choices(["c"])) is None


async def test_a_compiler_that_has_nothing_to_do_ends_and_another_starts_when_it_is_needed(byte_base: Path) -> None:
    before = set(compilers())
    checked = Checked(byte_base, idle_seconds=0.3)
    try:
        assert await checked.refusal(from_choices(["a"])) is None
        (first,) = set(compilers()) - before
        await asyncio.to_thread(wait_until, lambda: not first.is_running(), seconds=20)
        assert await checked.refusal(from_choices(["a"])) is None  # its verdict is remembered: no process for it
        assert set(compilers()) == before
        assert await checked.refusal(from_choices(["b"])) is None
        (second,) = set(compilers()) - before
        assert second != first
    finally:
        await checked.checker.close()
    assert set(compilers()) == before


async def test_a_compiler_does_not_end_while_it_works(byte_base: Path) -> None:
    """Each source comes before the process was idle for long, and takes it longer than that."""
    checked = Checked(byte_base, compile_seconds=5, idle_seconds=0.01)
    try:
        for salt in "abc":
            texts = [f"{salt}{number}{'x' * 900}" for number in range(900)]
            assert await checked.refusal(from_choices(texts)) is None
    finally:
        await checked.checker.close()


async def test_a_tokenizer_that_cannot_follow_grammars_says_so(tmp_path: Path) -> None:
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    checked = Checked(tmp_path)
    reason = await checked.refusal(from_choices(["a"]))
    assert reason is not None
    assert "tokenizer cannot follow a grammar" in reason


# ----------------------------------------------------------------------------------------------------- the routes
@pytest.mark.parametrize(("route", "valid"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({}, "structured_outputs"),
        ({"json": {}, "regex": "a"}, "structured_outputs"),
        ({"xml": "a"}, "structured_outputs.xml"),
        ({"json": "{"}, "structured_outputs.json"),
        ({"json": {"$ref": "http://127.0.0.1/x"}}, "structured_outputs.json"),
        ({"json": {"not": {}}}, "structured_outputs.json"),
        ({"regex": "["}, "structured_outputs.regex"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": "yes"}, "structured_outputs.choice"),
        ({"grammar": "start: ("}, "structured_outputs.grammar"),
    ],
)
def test_what_cannot_be_followed_is_a_400_that_names_the_field(
    server: RunningServer, route: str, valid: dict[str, Any], asked: dict[str, Any], param: str
) -> None:
    error = error_of(server.client.post(route, json=valid | {"structured_outputs": asked}), 400)
    assert error["code"] == "invalid_field"
    assert error["param"] == param


@pytest.mark.parametrize(
    ("change", "param"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_a_format_that_cannot_be_followed(server: RunningServer, change: dict[str, Any], param: str) -> None:
    assert error_of(server.client.post("/v1/chat/completions", json=CHAT | change), 400)["param"] == param


def test_an_unknown_model_is_told_before_its_grammar_is_compiled(server: RunningServer) -> None:
    error = error_of(server.chat("x", model="acme/none", response_format={"type": "json_object"}), 404)
    assert error["code"] == "model_not_found"


def test_grammars_are_counted(server: RunningServer) -> None:
    server.chat("!say a", structured_outputs={"regex": "counted"})
    before = server.metric("loraplex_grammars_total", outcome="compiled")
    server.chat("!say a", structured_outputs={"regex": "counted"})
    assert server.metric("loraplex_grammars_total", outcome="compiled") == before
    server.chat("!say a", structured_outputs={"regex": "counted too"})
    assert server.metric("loraplex_grammars_total", outcome="compiled") == before + 1
    wait_until(lambda: server.metric("loraplex_sequences_inside") == 0)
