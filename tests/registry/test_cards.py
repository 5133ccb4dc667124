"""Cards, read by a real Markdown parser and a real YAML parser: what an adapter says never becomes markup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

import registry
from registry.attestation import Attestation, AttestationKind
from registry.cards import render_card
from tests.registry.adapter_folders import base_document, config_document, manifest_document

OPERATOR = registry.Principal.operator()
Make = Callable[..., Path]

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](https://evil.example/x.png)",
    "[click](javascript:alert(1))",
    "https://evil.example www.evil.example <https://evil.example> a@evil.example",
    "`` ` ``` </code><b>x</b>",
    "`<b>x</b>`",
    "| a | b |",
    "a \\| b \\",
    "\\`<img src=x>\\`",
    "---\nbase_model: evil/evil\n---\n# Heading\n\n> quote\n\n<details>",
    "\u202eevil\u2066 \x1b[2J \x00 \u2028 \x85",
    "\n```\n<b>",
    "{{ config }} ${x} $$x$$",
    "&lt;b&gt; &#60;b&#62;",
]


VERSION = registry.Version(
    tenant="acme",
    adapter="acme/sql",
    number=1,
    digest="sha256:" + "1" * 64,
    base_fingerprint="ab" * 32,
    base_verified=True,
    files=(registry.FileEntry("adapter_config.json", 1, "2" * 64),),
    adapter_bytes=1,
    rank=4,
    target_modules=("q_proj",),
    visibility=registry.Visibility.PRIVATE,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    created_by="operator",
    manifest=None,
    message="",
)


def hostile_card(text: str) -> str:
    """A card in which everything that somebody else may have written is this text."""
    manifest = {
        "training": {"method": text, "hardware": text, "steps": text, "versions": {text: text}},
        "metrics": {"base": {text: 1.0}, "adapter": {text: 2.0}},
    }
    evaluation = Attestation(
        1, "acme/sql", 1, AttestationKind.EVALUATION, "golden", None, {"metrics": {text: 0.5}}, "operator",
        datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    version = replace(
        VERSION,
        manifest=manifest,
        message=text,
        target_modules=(text,),
        files=(registry.FileEntry(text, 1, "2" * 64),),
    )
    base = registry.BaseRecord.from_json(base_document() | {"revision": text})
    return render_card(version, base, aliases={"prod": 1}, attestations=[evaluation])


def tokens_of(card: str) -> list[Token]:
    """Every token of the body, those inside of others too."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(card.split("---\n", 2)[2]):
        found += [token, *(token.children or ())]
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_adapters_texts_are_no_markup(text: str) -> None:
    card = hostile_card(text)
    tokens, plain = tokens_of(card), tokens_of(hostile_card("plain"))
    assert [token.type for token in tokens] == [token.type for token in plain], "the same document, other words"
    words = [(one.content, two.content) for one, two in zip(tokens, plain, strict=True)]
    kinds = {token.type for token, (one, two) in zip(tokens, words, strict=True) if one != two and not token.children}
    assert kinds <= {"code_inline", "text"}
    assert not any("evil" in token.content or "<" in token.content for token in tokens if token.type == "text")
    assert all(character.isprintable() or character == "\n" for character in card)


@pytest.mark.parametrize("text", HOSTILE)
def test_the_front_matter_is_ours(text: str) -> None:
    front = yaml.safe_load(hostile_card(text).split("---\n", 2)[1])
    assert set(front) == {"base_model", "library_name", "pipeline_tag", "tags", "metrics"}
    assert front["base_model"] == "embedded"
    assert len(front["metrics"]) == 1
    assert front["tags"] == ["lora", "loraplex"]


def test_the_hubs_own_reader_takes_the_card(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    data = ModelCard(reg.card("acme/sql", OPERATOR)).data
    assert data.base_model == "embedded"
    assert data.library_name == "peft"
    assert data.tags == ["lora", "loraplex"]
    assert data.metrics == ["exact_match", "perplexity", "validation_loss"]


def test_what_a_card_tells(reg: registry.Registry, make_adapter: Make) -> None:
    version = reg.publish(make_adapter(), "acme/sql", principal=OPERATOR, message="first try")
    reg.promote("acme/sql@1", "prod", principal=OPERATOR)
    reg.attest_evaluation("acme/sql@1", "golden", {"accuracy": 0.875}, principal=OPERATOR)
    card = reg.card("acme/sql@prod", OPERATOR)
    for fact in (
        "# `acme/sql`",
        version.digest,
        "| aliases | `prod` |".replace("aliases", "`aliases`"),
        "| `exact_match` | `0` | `0.94` |",
        "| `golden` | `accuracy` | `0.875` | `operator` |",
        "| `vllm` | `yes (max_lora_rank 8)` |",
        "| `data` | `sha256:" + "1" * 64,
        "| `message` | `first try` |",
        "loraplex pull acme/sql@1 ./adapter",
    ):
        assert fact in card, fact


def test_an_unverified_base_is_a_tag(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(has_manifest=False), "acme/sql", principal=OPERATOR)
    card = reg.card("acme/sql", OPERATOR)
    assert "base-unverified" in yaml.safe_load(card.split("---\n", 2)[1])["tags"]
    assert "(not verified)" in card


def test_a_path_is_no_base_model(reg: registry.Registry, make_adapter: Make) -> None:
    reg.register_base(base_document("ef" * 32, "/srv/models/x"))
    folder = make_adapter(has_manifest=False, config=config_document(base_model_name_or_path="/srv/models/x"))
    reg.publish(folder, "acme/sql", principal=OPERATOR)
    assert "base_model" not in yaml.safe_load(reg.card("acme/sql", OPERATOR).split("---\n", 2)[1])


def test_a_card_is_bounded(reg: registry.Registry, make_adapter: Make) -> None:
    metrics: dict[str, Any] = {f"m{number}{'x' * 400}": 1.0 for number in range(1000)}
    manifest = manifest_document(
        metrics={"adapter": metrics}, training={"method": "q", "versions": {"v": "x" * 100_000}}
    )
    reg.publish(make_adapter(manifest=manifest), "acme/sql", principal=OPERATOR, message="m" * 2000)
    assert len(reg.card("acme/sql", OPERATOR)) < 100_000


def test_a_foreign_card_is_missing(reg: registry.Registry, make_adapter: Make) -> None:
    reg.publish(make_adapter(), "acme/sql", principal=OPERATOR)
    reg.create_tenant("globex")
    foreign = reg.authenticate(reg.create_token("globex", "admin").secret)
    with pytest.raises(registry.NotFoundError, match="There is no adapter 'acme/sql'"):
        reg.card("acme/sql", foreign)
