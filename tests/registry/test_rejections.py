"""Every reason of refusal, planted as exactly that damage. `test_every_reason_is_planted` keeps the table complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import registry
from registry.blobs import LocalBlobs
from registry.errors import BaseMismatchError, RejectedAdapterError
from registry.reasons import ADVICE, RejectReason
from registry.tensor_file import CHUNK_BYTES, HEADER_BYTES_LIMIT, check_finite, read_tensors
from tests.registry.adapter_folders import (
    FINGERPRINT,
    OTHER_FINGERPRINT,
    PREFIX,
    base_document,
    config_document,
    manifest_document,
    write_adapter,
    write_raw_safetensors,
)
from tests.registry.planting import (
    A0,
    B0,
    CONFIG,
    MANIFEST,
    Q0,
    WEIGHTS,
    Damage,
    added,
    as_dtype,
    both,
    config,
    config_without,
    header,
    link_weights,
    manifest,
    many_notes,
    poisoned,
    poisoned_bf16,
    probe,
    raw_header,
    removed,
    renamed,
    replace_by_file,
    reshaped,
    text,
    truncated,
    without_a_base,
)

DEEP_JSON = '{"a":' * 100 + "1" + "}" * 100
VERY_DEEP_JSON = "[" * 100_000 + "]" * 100_000

DOWN0, EMBEDDING = f"{PREFIX}model.layers.0.mlp.down_proj", f"{PREFIX}model.embed_tokens"

R = RejectReason
DAMAGES: list[tuple[str, RejectReason, Damage]] = [
    ("a file instead of a folder", R.NOT_A_FOLDER, replace_by_file),
    ("a folder inside", R.SUBFOLDER, lambda folder: (folder / "default").mkdir()),
    ("a symbolic link", R.NOT_A_PLAIN_FILE, link_weights),
    ("a dangling link", R.NOT_A_PLAIN_FILE, lambda folder: (folder / "x.md").symlink_to("nowhere")),
    ("a pipe", R.NOT_A_PLAIN_FILE, lambda folder: os.mkfifo(folder / "README.md")),
    ("a pickle", R.FILE_NOT_ALLOWED, text("adapter_model.bin", b"\x80\x04")),
    ("a torch file", R.FILE_NOT_ALLOWED, text("optimizer.pt", b"PK")),
    ("code", R.FILE_NOT_ALLOWED, text("modeling.py", "import os")),
    ("a tokenizer", R.FILE_NOT_ALLOWED, text("tokenizer.json", "{}")),
    ("a chat template", R.FILE_NOT_ALLOWED, text("tokenizer_config.json", '{"chat_template": "{{1}}"}')),
    ("a jinja file", R.FILE_NOT_ALLOWED, text("chat_template.jinja", "{{1}}")),
    ("other weights", R.FILE_NOT_ALLOWED, text("model.safetensors", "")),
    ("a hidden file", R.FILE_NOT_ALLOWED, text(".hidden.md", "")),
    ("a control character in a name", R.FILE_NOT_ALLOWED, text("a\x1b[2J.md", "")),
    ("no config", R.MISSING_FILE, lambda folder: (folder / CONFIG).unlink()),
    ("no weights", R.MISSING_FILE, lambda folder: (folder / WEIGHTS).unlink()),
    ("a huge config", R.FILE_TOO_LARGE, text(CONFIG, " " * 4_000_001)),
    ("huge notes", R.FILE_TOO_LARGE, text("README.md", " " * 1_000_001)),
    ("too many files", R.FILE_TOO_LARGE, many_notes),
    ("config cut short", R.BAD_JSON, text(CONFIG, '{"peft_type": "LORA"')),
    ("config not UTF-8", R.BAD_JSON, text(CONFIG, b'{"a": "\xff"}')),
    ("config a list", R.BAD_JSON, text(CONFIG, "[]")),
    ("config with a key twice", R.BAD_JSON, text(CONFIG, '{"r": 4, "r": 8}')),
    ("config with NaN", R.BAD_JSON, text(CONFIG, '{"lora_alpha": NaN}')),
    ("config with a number of 10,000 digits", R.BAD_JSON, text(CONFIG, '{"r": ' + "9" * 10_000 + "}")),
    ("config nested deeply", R.BAD_JSON, text(CONFIG, DEEP_JSON)),
    ("config nested very deeply", R.BAD_JSON, text(CONFIG, VERY_DEEP_JSON)),
    ("half of a surrogate pair", R.BAD_JSON, text(CONFIG, '{"peft_version": "\\ud800"}')),
    ("half of a surrogate pair in a key", R.BAD_JSON, text(MANIFEST, '{"\\udfff": 1}')),
    ("a number beyond all bounds", R.BAD_JSON, text(CONFIG, '{"lora_dropout": 1e999}')),
    ("manifest not JSON", R.BAD_JSON, text(MANIFEST, "no")),
    ("no rank", R.BAD_CONFIG, config_without("r")),
    ("rank 0", R.BAD_CONFIG, config(r=0)),
    ("rank true", R.BAD_CONFIG, config(r=True)),
    ("rank as text", R.BAD_CONFIG, config(r="4")),
    ("rank a million", R.BAD_CONFIG, config(r=10**6)),
    ("no alpha", R.BAD_CONFIG, config_without("lora_alpha")),
    ("alpha 0", R.BAD_CONFIG, config(lora_alpha=0)),
    ("alpha huge", R.BAD_CONFIG, config(lora_alpha=1e300)),
    ("alpha a list", R.BAD_CONFIG, config(lora_alpha=[8])),
    ("use_rslora as text", R.BAD_CONFIG, config(use_rslora="yes")),
    ("rank_pattern a list", R.BAD_CONFIG, config(rank_pattern=["q_proj"])),
    ("rank_pattern with text", R.BAD_CONFIG, config(rank_pattern={"q_proj": "4"})),
    ("alpha_pattern with null", R.BAD_CONFIG, config(alpha_pattern={"q_proj": None})),
    ("target_modules an object", R.BAD_CONFIG, config(target_modules={"q_proj": 1})),
    ("target_modules of numbers", R.BAD_CONFIG, config(target_modules=[1])),
    ("prompt tuning", R.UNSUPPORTED_METHOD, config(peft_type="PROMPT_TUNING")),
    ("AdaLoRA", R.UNSUPPORTED_METHOD, config(peft_type="ADALORA")),
    ("no peft_type", R.UNSUPPORTED_METHOD, config_without("peft_type")),
    ("a classifier", R.UNSUPPORTED_TASK, config(task_type="SEQ_CLS")),
    ("aLoRA", R.UNSUPPORTED_CONFIG, config(alora_invocation_tokens=[1, 2])),
    ("QA-LoRA", R.UNSUPPORTED_CONFIG, config(use_qalora=True)),
    ("target_parameters", R.UNSUPPORTED_CONFIG, config(target_parameters=["experts.gate"])),
    ("an unknown field that is on", R.UNSUPPORTED_CONFIG, config(use_something_new=True)),
    ("an unknown init", R.UNSUPPORTED_CONFIG, config(init_lora_weights="something")),
    ("megatron", R.UNSUPPORTED_CONFIG, config(megatron_config={"a": 1})),
    ("X-LoRA", R.UNSUPPORTED_METHOD, config(peft_type="XLORA")),
    ("use_dora as text", R.BAD_CONFIG, config(use_dora="yes")),
    ("a bias of no kind", R.BAD_CONFIG, config(bias="some")),
    ("token ids as text", R.BAD_CONFIG, config(trainable_token_indices="all")),
    ("token ids below 0", R.BAD_CONFIG, config(trainable_token_indices={"embed_tokens": [-1]})),
    ("tied weights made by PEFT", R.UNSUPPORTED_CONFIG, config(ensure_weight_tying=True)),
    ("DoRA without magnitudes", R.INCOMPLETE_PAIR, config(use_dora=True)),
    ("a magnitude without factors", R.INCOMPLETE_PAIR, added(f"{DOWN0}.lora_magnitude_vector", 64)),
    ("a magnitude of another length", R.SHAPE_MISMATCH, added(f"{PREFIX}{Q0}.lora_magnitude_vector", 63)),
    ("a bias of lora_B without factors", R.INCOMPLETE_PAIR, added(f"{DOWN0}.lora_B.bias", 64)),
    ("a bias where the base has none", R.UNKNOWN_MODULE, added(f"{PREFIX}{Q0}.base_layer.bias", 64)),
    ("modules_to_save without tensors", R.TARGETS_MISMATCH, config(modules_to_save=["lm_head"])),
    ("a whole layer beside its LoRA", R.UNSUPPORTED_MODULES_TO_SAVE, added(f"{PREFIX}{Q0}.weight", 64, 64)),
    ("a head of another width", R.SHAPE_MISMATCH, added(f"{PREFIX}lm_head.weight", 96, 63)),
    ("a smaller vocabulary", R.SHAPE_MISMATCH, added(f"{EMBEDDING}.weight", 95, 64)),
    ("half of LoRA on an embedding", R.INCOMPLETE_PAIR, added(f"{EMBEDDING}.lora_embedding_A", 4, 96)),
    ("a bias of an embedding", R.UNKNOWN_MODULE, added(f"{EMBEDDING}.bias", 64)),
    ("a norm that is not there", R.UNKNOWN_MODULE, added(f"{PREFIX}model.other.weight", 64)),
    ("a norm of another length", R.SHAPE_MISMATCH, added(f"{PREFIX}model.norm.weight", 63)),
    (
        "trained tokens without ids",
        R.UNSUPPORTED_TRAINABLE_TOKENS,
        added(f"{EMBEDDING}.token_adapter.trainable_tokens_delta", 2, 64),
    ),
    (
        "trained tokens that leave a gap",
        R.UNSUPPORTED_TRAINABLE_TOKENS,
        both(
            added(f"{EMBEDDING}.token_adapter.trainable_tokens_delta", 2, 64),
            config(trainable_token_indices=[3, 97]),
        ),
    ),
    ("a tensor of another tuner", R.UNEXPECTED_TENSOR, added(f"{PREFIX}{Q0}.lora_E", 4, 1)),
    ("layer replication", R.UNSUPPORTED_LAYER_REPLICATION, config(layer_replication=[[0, 2], [1, 2]])),
    ("a regex in rank_pattern", R.UNSUPPORTED_PATTERN, config(rank_pattern={r"layers\.\d+\.q_proj": 8})),
    ("a slow regex in alpha_pattern", R.UNSUPPORTED_PATTERN, config(alpha_pattern={"(a+)+$": 8})),
    ("an anchor in rank_pattern", R.UNSUPPORTED_PATTERN, config(rank_pattern={"q_proj$": 8})),
    *[
        (f"init {init}", R.BASE_CHANGING_INIT, config(init_lora_weights=init))
        for init in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga")
    ],
    ("auto_mapping of os", R.FOREIGN_AUTO_MAPPING, config(auto_mapping={"parent_library": "os"})),
    (
        "auto_mapping below transformers",
        R.FOREIGN_AUTO_MAPPING,
        config(auto_mapping={"parent_library": "transformers.models.x.evil"}),
    ),
    ("auto_mapping with more", R.FOREIGN_AUTO_MAPPING, config(auto_mapping={"auto_map": {"AutoModel": "x.py"}})),
    ("auto_mapping as text", R.FOREIGN_AUTO_MAPPING, config(auto_mapping="os")),
    ("an empty weights file", R.BAD_SAFETENSORS, text(WEIGHTS, b"")),
    ("a header that is cut", R.BAD_SAFETENSORS, text(WEIGHTS, b"\x10\0\0\0\0\0\0\0{}")),
    ("a header of 2**63 bytes", R.BAD_SAFETENSORS, text(WEIGHTS, b"\xff" * 8 + b"{}")),
    ("weights cut by one byte", R.BAD_SAFETENSORS, truncated(1)),
    ("weights cut in half", R.BAD_SAFETENSORS, truncated(1000)),
    ("bytes that belong to no tensor", R.BAD_SAFETENSORS, header(lambda document: None, data_bytes=8)),
    ("a header that is no JSON", R.BAD_SAFETENSORS, raw_header(b"{nope}")),
    ("a header with a name twice", R.BAD_SAFETENSORS, raw_header(b'{"a": 1, "a": 2}')),
    ("metadata of numbers", R.BAD_SAFETENSORS, raw_header(b'{"__metadata__": {"a": 1}}')),
    (
        "overlapping tensors",
        R.BAD_SAFETENSORS,
        header(lambda document: document[A0].update(data_offsets=document[B0]["data_offsets"])),
    ),
    (
        "negative offsets",
        R.BAD_SAFETENSORS,
        header(lambda document: document[A0].update(data_offsets=[-1024, 0])),
    ),
    ("a shape that needs other bytes", R.BAD_SAFETENSORS, header(lambda document: document[A0].update(shape=[5, 64]))),
    ("a negative shape", R.BAD_SAFETENSORS, header(lambda document: document[A0].update(shape=[-4, -64]))),
    ("a shape of text", R.BAD_SAFETENSORS, header(lambda document: document[A0].update(shape=["4", 64]))),
    ("a shape that overflows", R.BAD_SAFETENSORS, header(lambda document: document[A0].update(shape=[2**63, 2]))),
    ("100 dimensions", R.BAD_SAFETENSORS, header(lambda document: document[A0].update(shape=[1] * 100))),
    ("an unknown header field", R.BAD_SAFETENSORS, header(lambda document: document[A0].update(code="x"))),
    ("no offsets", R.BAD_SAFETENSORS, header(lambda document: document[A0].pop("data_offsets"))),
    ("a control character in a tensor's name", R.BAD_SAFETENSORS, raw_header(b'{"a\\u001b": {}}')),
    ("a header above 1 MB", R.HEADER_TOO_LARGE, raw_header(b" " * (HEADER_BYTES_LIMIT + 1))),
    ("float64", R.UNSUPPORTED_DTYPE, as_dtype(np.float64)),
    ("int8", R.UNSUPPORTED_DTYPE, as_dtype(np.int8)),
    ("no tensors", R.NO_TENSORS, raw_header(b"{}")),
    ("a prefix that attaches nowhere", R.WRONG_KEY_PREFIX, renamed(lambda name: name.removeprefix("base_model."))),
    ("no prefix", R.WRONG_KEY_PREFIX, renamed(lambda name: name.removeprefix(PREFIX))),
    ("an adapter name in the keys", R.UNEXPECTED_TENSOR, renamed(lambda name: name.replace("A.weight", "A.x.weight"))),
    ("a pair without a module", R.UNEXPECTED_TENSOR, added("base_model.model.lora_A.weight", 4, 4)),
    ("three dimensions", R.UNEXPECTED_TENSOR, reshaped(A0, 4, 8, 8)),
    ("an empty tensor", R.UNEXPECTED_TENSOR, reshaped(A0, 0, 64)),
    ("lora_A alone", R.INCOMPLETE_PAIR, removed(B0)),
    ("lora_B alone", R.INCOMPLETE_PAIR, removed(A0)),
    ("another r in the config", R.RANK_MISMATCH, config(r=8)),
    ("rank_pattern says another", R.RANK_MISMATCH, config(rank_pattern={"q_proj": 8})),
    ("A and B of different ranks", R.RANK_MISMATCH, reshaped(B0, 64, 5)),
    ("a tensor that is not targeted", R.TARGETS_MISMATCH, config(target_modules=["v_proj"])),
    ("a target without tensors", R.TARGETS_MISMATCH, config(target_modules=["q_proj", "v_proj", "down_proj"])),
    ("one layer lost", R.TARGETS_MISMATCH, removed(A0, B0)),
    ("a module that is not there", R.UNKNOWN_MODULE, renamed(lambda name: name.replace("layers.1", "layers.9"))),
    ("linear LoRA on the embedding", R.UNKNOWN_MODULE, renamed(lambda name: name.replace(Q0, "model.embed_tokens"))),
    ("another input width", R.SHAPE_MISMATCH, reshaped(A0, 4, 128)),
    ("another output width", R.SHAPE_MISMATCH, reshaped(B0, 128, 4)),
    ("NaN", R.NOT_FINITE, poisoned(np.nan)),
    ("infinity", R.NOT_FINITE, poisoned(np.inf)),
    ("minus infinity at the end", R.NOT_FINITE, poisoned(-np.inf, position=-1)),
    ("NaN in float16", R.NOT_FINITE, poisoned(np.nan, dtype=np.float16)),
    ("NaN in bfloat16", R.NOT_FINITE, poisoned_bf16),
    ("manifest of another schema", R.BAD_MANIFEST, manifest(schema=2)),
    ("manifest with an unknown field", R.BAD_MANIFEST, manifest(extra=1)),
    ("manifest without a base", R.BAD_MANIFEST, manifest(base=None)),
    ("a fingerprint that is none", R.BAD_MANIFEST, manifest(base={"name": "embedded", "fingerprint": "x"})),
    ("a parent that is no digest", R.BAD_MANIFEST, manifest(parent="../../etc/passwd")),
    ("a parent with a line break", R.BAD_MANIFEST, manifest(parent=f"sha256:{'1' * 64}\n")),
    ("metrics as text", R.BAD_MANIFEST, manifest(metrics={"base": {"loss": "low"}})),
    ("a token beyond the vocabulary", R.BAD_MANIFEST, probe(token_ids=[96])),
    ("a probe longer than the context", R.BAD_MANIFEST, probe(prompt_token_ids=[1] * 129)),
    ("a probe with a logit missing", R.BAD_MANIFEST, probe(token_ids=[1, 2])),
    ("a probe with an infinite logit", R.BAD_JSON, probe(logits=[float("inf")])),
    ("an overflowing logit", R.BAD_JSON, text(MANIFEST, json.dumps(
        manifest_document(probes=[{"prompt_token_ids": [1], "token_ids": [2], "logits": [0.5]}])
    ).replace("0.5", "1e999"))),
    ("a negative token", R.BAD_MANIFEST, probe(prompt_token_ids=[-1])),
    ("too many probes", R.BAD_MANIFEST, manifest(probes=manifest_document()["probes"] * 65)),
    ("no manifest and no base that fits", R.BASE_UNKNOWN, without_a_base),
    ("another base", R.BASE_MISMATCH, manifest(base={"name": "other", "fingerprint": OTHER_FINGERPRINT})),
]  # fmt: skip

PLANTED_ELSEWHERE = {
    RejectReason.CHANGED_WHILE_READ,
    RejectReason.BASE_AMBIGUOUS,
    RejectReason.BASE_UNVERIFIED,
    RejectReason.BAD_MIXTURE,
    RejectReason.BAD_GATE,
    RejectReason.UNKNOWN_EXPERT,
    RejectReason.UNSUPPORTED_EXPERT,
}


@pytest.fixture(scope="module")
def reg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registry.Registry]:
    """One registry for all damages: a refused adapter must leave nothing in it."""
    with registry.open(tmp_path_factory.mktemp("registry")) as opened:
        opened.register_base(base_document())
        yield opened


@pytest.mark.parametrize(("reason", "damage"), [pytest.param(*row[1:], id=row[0]) for row in DAMAGES])
def test_damage_is_refused_with_its_reason(
    reg: registry.Registry,
    make_adapter: Callable[..., Path],
    operator: registry.Principal,
    reason: RejectReason,
    damage: Damage,
) -> None:
    folder = make_adapter()
    damage(folder)
    with pytest.raises(RejectedAdapterError) as caught:
        reg.publish(folder, "acme/text2sql", principal=operator)
    error = caught.value
    assert error.reason is reason, str(error)
    assert f"[{reason.value}]" in str(error)
    assert str(error).endswith(ADVICE[reason].next_step)
    assert "\x1b" not in str(error)
    assert reg.list_adapters(operator) == []
    assert not any((reg.folder / "blobs").glob("[0-9a-f][0-9a-f]/*")), "a refused adapter leaves nothing behind"
    assert not any((reg.folder / "blobs" / "staging").iterdir())


def test_every_reason_is_planted() -> None:
    assert {reason for _, reason, _ in DAMAGES} | PLANTED_ELSEWHERE == set(RejectReason)
    assert set(ADVICE) == set(RejectReason)


def test_a_file_that_vanishes_meanwhile(tmp_path: Path) -> None:
    store = LocalBlobs(tmp_path / "blobs")
    with pytest.raises(RejectedAdapterError) as caught, store.staged(tmp_path, ["gone.md"]):
        pass
    assert caught.value.reason is RejectReason.CHANGED_WHILE_READ


def test_a_file_that_becomes_a_link_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "README.md").symlink_to(tmp_path / "secret")
    store = LocalBlobs(tmp_path / "blobs")
    with pytest.raises(RejectedAdapterError), store.staged(tmp_path, ["README.md"]):
        pass


def test_a_value_in_a_later_chunk_is_seen(tmp_path: Path) -> None:
    document = base_document()
    rows = CHUNK_BYTES // (4 * 4) + 10
    document["modules"]["lm_head"]["out_features"] = rows
    held = {
        f"{PREFIX}lm_head.lora_A.weight": np.ones((4, 64), np.float32),
        f"{PREFIX}lm_head.lora_B.weight": np.ones((rows, 4), np.float32),
    }
    held[f"{PREFIX}lm_head.lora_B.weight"].flat[-1] = np.nan
    folder = write_adapter(tmp_path / "a", tensors=held, config=config_document(target_modules=["lm_head"]))
    with registry.open(tmp_path / "registry") as reg:
        reg.register_base(document)
        with pytest.raises(RejectedAdapterError, match="NaN or infinity") as caught:
            reg.publish(folder, "acme/a", principal=registry.Principal.operator())
    assert caught.value.tensor == f"{PREFIX}lm_head.lora_B.weight"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_whatever_is_not_finite_is_seen_among_every_other_value(tmp_path: Path, dtype: str) -> None:
    """Every 16-bit value, and around it numbers of both signs: the check looks at the largest of each sign."""
    patterns = np.arange(1 << 16, dtype=np.uint32)
    if dtype == "F32":
        patterns = (patterns << 16) | (patterns & 1)
    exponent = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F80_0000}[dtype]
    bits = patterns.astype("<u4" if dtype == "F32" else "<u2")
    is_finite = (bits & exponent) != exponent
    path = tmp_path / "x.safetensors"

    def refused(values: np.ndarray[Any, Any]) -> bool:
        raw = values.tobytes()
        write_raw_safetensors(path, {"x": {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, len(raw)]}}, raw)
        try:
            check_finite(path, read_tensors(path))
        except RejectedAdapterError as error:
            return error.reason is RejectReason.NOT_FINITE
        return False

    finite, other = bits[is_finite], bits[~is_finite]
    assert not refused(finite)
    assert len(other) > 100
    for value in other[:: max(1, len(other) // 40)]:
        for neighbours in (finite[:0], finite[finite < finite.max() // 2], finite[finite > finite.max() // 2]):
            assert refused(np.insert(neighbours, len(neighbours) // 2, value)), hex(value)


def test_another_base_names_both_fingerprints(
    reg: registry.Registry, make_adapter: Callable[..., Path], operator: registry.Principal
) -> None:
    folder = make_adapter(manifest=manifest_document(OTHER_FINGERPRINT))
    with pytest.raises(BaseMismatchError) as caught:
        reg.publish(folder, "acme/text2sql", principal=operator)
    assert FINGERPRINT in str(caught.value)
    assert OTHER_FINGERPRINT in str(caught.value)
    assert (caught.value.found, caught.value.expected) == (OTHER_FINGERPRINT, (FINGERPRINT,))


def test_a_base_named_against_the_manifest_names_both_fingerprints(
    tmp_path: Path, make_adapter: Callable[..., Path], operator: registry.Principal
) -> None:
    with registry.open(tmp_path / "registry") as reg:
        reg.register_base(base_document())
        reg.register_base(base_document(OTHER_FINGERPRINT, "other"))
        with pytest.raises(BaseMismatchError) as caught:
            reg.publish(make_adapter(), "acme/text2sql", principal=operator, base_fingerprint=OTHER_FINGERPRINT)
    assert (caught.value.found, caught.value.expected) == (FINGERPRINT, (OTHER_FINGERPRINT,))
