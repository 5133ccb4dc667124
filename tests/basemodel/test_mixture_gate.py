"""The gate's files, refused where they are not what they must be, and the router against its definition."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from basemodel.errors import MixtureFormatError
from basemodel.mixture_gate import GATE_FILE, MIXTURE_FILE, Mixture, read_mixture, write_mixture
from basemodel.score_table import RouterState, ScoreTable, choose_experts

EXPERTS, HIDDEN, VOCABULARY = 5, 32, 200
DIGESTS = tuple(f"sha256:{number:064x}" for number in range(EXPERTS))


def make_mixture(**changes: Any) -> Mixture:
    torch.manual_seed(1)
    mixture = Mixture(
        base_fingerprint="ab" * 32,
        top_k=2,
        experts=DIGESTS,
        context="running_mean",
        decay=None,
        weight=torch.randn(EXPERTS, HIDDEN),
        bias=torch.randn(EXPERTS),
    )
    return replace(mixture, **changes)


def embedding() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(VOCABULARY, HIDDEN).to(torch.bfloat16)


def token_ids(count: int) -> list[int]:
    return np.random.default_rng(3).integers(0, VOCABULARY, count).tolist()


CONTEXTS: list[dict[str, Any]] = [
    {"context": "token"},
    {"context": "running_mean"},
    {"context": "running_mean", "decay": 0.9},
]


def expected_scores(mixture: Mixture, ids: list[int]) -> np.ndarray[Any, Any]:
    """As the definition reads: float32 scores of each token, then the mean of all up to each place."""
    rows = embedding().double()[ids]
    rows = rows / torch.sqrt((rows**2).mean(1, keepdim=True) + 1e-6)
    own = (rows @ mixture.weight.double().T + mixture.bias.double()).float().double().numpy()
    if mixture.context == "token":
        return own
    decay = mixture.decay if mixture.decay is not None else 1.0
    means = []
    for last in range(len(ids)):
        shares = decay ** np.arange(last, -1, -1)
        means.append((shares[:, None] * own[: last + 1]).sum(0) / shares.sum())
    return np.array(means)


@pytest.mark.parametrize("changes", CONTEXTS)
@pytest.mark.parametrize("top_k", [1, 2, EXPERTS])
def test_routing_is_what_the_definition_says(changes: dict[str, Any], top_k: int) -> None:
    mixture = make_mixture(top_k=top_k, **changes)
    ids = token_ids(50)
    experts, weights, _ = ScoreTable(mixture, embedding()).route(ids, RouterState())
    assert experts.shape == weights.shape == (50, top_k)
    assert (experts.dtype, weights.dtype) == (np.int64, np.float32)
    scores = torch.from_numpy(expected_scores(mixture, ids))
    shares = torch.softmax(scores, dim=1)
    kept, best = shares.topk(top_k, dim=1)
    assert experts.tolist() == best.tolist()
    torch.testing.assert_close(torch.from_numpy(weights).double(), kept / kept.sum(1, keepdim=True), atol=1e-6, rtol=0)


@pytest.mark.parametrize("changes", CONTEXTS)
def test_chunks_leave_no_trace(changes: dict[str, Any]) -> None:
    """Bit for bit, whatever the chunks: one by one as in decoding, or any cut of a prompt."""
    table = ScoreTable(make_mixture(**changes), embedding())
    ids = token_ids(700)
    whole_experts, whole_weights, whole_state = table.route(ids, RouterState())
    random = np.random.default_rng(4)
    for cuts in ([*range(1, 700)], sorted(random.choice(700, 20).tolist()), [1], [699], [0, 350, 350]):
        state, experts, weights = RouterState(), [], []
        for start, end in zip([0, *cuts], [*cuts, 700], strict=True):
            part_experts, part_weights, state = table.route(ids[start:end], state)
            experts.append(part_experts)
            weights.append(part_weights)
        assert np.array_equal(np.concatenate(experts), whole_experts)
        assert np.concatenate(weights).tobytes() == whole_weights.tobytes()
        assert state == whole_state


@pytest.mark.parametrize("changes", CONTEXTS)
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1, 1, 1), (1, 40, 1, 3)])
def test_routing_many_requests_at_once_is_each_request_alone(changes: dict[str, Any], lengths: tuple[int, ...]) -> None:
    """Bit for bit, with what each leaves behind: requests that decode, some from their first token, and prompts."""
    table = ScoreTable(make_mixture(**changes), embedding())
    ids = token_ids(200)
    states = [table.route(ids[number:][: 9 * number], RouterState())[2] for number in range(len(lengths))]
    asked = [(ids[50 + number :][:length], states[number]) for number, length in enumerate(lengths)]
    together = table.route_each(asked)
    for (experts, weights, state), (tokens, before) in zip(together, asked, strict=True):
        own_experts, own_weights, own_state = table.route(tokens, before)
        assert np.array_equal(experts, own_experts)
        assert weights.tobytes() == own_weights.tobytes()
        assert state == own_state


def test_choices_of_many_requests_at_once_are_each_requests_own() -> None:
    table = ScoreTable(make_mixture(), embedding())
    parts = [table.scores(token_ids(length), RouterState())[0] for length in (1, 7, 30)]
    experts, weights = choose_experts(np.concatenate(parts), 2)
    start = 0
    for part in parts:
        own_experts, own_weights = choose_experts(part, 2)
        assert np.array_equal(experts[start : start + len(part)], own_experts)
        assert weights[start : start + len(part)].tobytes() == own_weights.tobytes()
        start += len(part)


def test_the_context_remembers_and_the_token_alone_does_not() -> None:
    ids = token_ids(40)
    for changes, remembers in zip(CONTEXTS, (False, True, True), strict=True):
        table = ScoreTable(make_mixture(**changes), embedding())
        _, after_others, _ = table.route(ids, RouterState())
        _, alone, _ = table.route(ids[-1:], RouterState())
        assert (not np.array_equal(after_others[-1:], alone)) == remembers


def test_of_equal_scores_the_lower_index_is_chosen() -> None:
    experts, weights = choose_experts(np.array([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]]), 2)
    assert experts.tolist() == [[1, 2], [0, 1]]
    assert weights.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_scores_far_apart_stay_finite() -> None:
    _, weights = choose_experts(np.array([[-1e30, 1e30, 0.0]]), 3)
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


def test_no_tokens_change_nothing() -> None:
    table = ScoreTable(make_mixture(), embedding())
    _, _, state = table.route(token_ids(3), RouterState())
    experts, weights, after = table.route([], state)
    assert experts.shape == weights.shape == (0, 2)
    assert after == state


def test_what_is_written_is_read(tmp_path: Path) -> None:
    mixture = make_mixture(decay=0.75)
    write_mixture(mixture, tmp_path)
    read = read_mixture(tmp_path)
    for name in ("base_fingerprint", "top_k", "experts", "context", "decay"):
        assert getattr(read, name) == getattr(mixture, name)
    assert torch.equal(read.weight, mixture.weight)
    assert torch.equal(read.bias, mixture.bias)


def test_a_gate_of_another_width_is_refused() -> None:
    with pytest.raises(MixtureFormatError, match="hidden size of 32; this base has 16"):
        ScoreTable(make_mixture(), torch.zeros(10, 16))


def test_a_gate_that_overflows_is_refused() -> None:
    with pytest.raises(MixtureFormatError, match="not finite"):
        ScoreTable(make_mixture(weight=torch.full((EXPERTS, HIDDEN), 3e38)), torch.ones(10, HIDDEN))


def without(key: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.pop(key)


def with_value(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update({key: value})


def with_gate(**values: object) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["gate"].update(values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("top_k"), "has no 'top_k'"),
        (with_value("extra", 1), "has 'extra'"),
        (with_value("schema", 2), "schema 2"),
        (with_value("schema", True), "schema True"),
        (with_value("method", "merge"), "method 'merge'"),
        (with_value("base_fingerprint", "sha256:" + "ab" * 32), "64 hex digits"),
        (with_value("base_fingerprint", None), "64 hex digits"),
        (with_value("top_k", 0), "top_k 0"),
        (with_value("top_k", EXPERTS + 1), f"top_k {EXPERTS + 1}"),
        (with_value("top_k", 2.0), "top_k 2.0"),
        (with_value("top_k", True), "top_k True"),
        (with_value("experts", [DIGESTS[0]]), "2 to 16"),
        (with_value("experts", [f"sha256:{n:064x}" for n in range(17)]), "2 to 16"),
        (with_value("experts", "sha256"), "2 to 16"),
        (with_value("experts", [DIGESTS[0], "acme/sql@prod"]), "64 hex digits"),
        (with_value("experts", [DIGESTS[0], DIGESTS[0]]), "twice"),
        (with_value("gate", None), "gate is not an object"),
        (with_gate(context="prompt"), "gate.context 'prompt'"),
        (with_gate(temperature=2), "gate has 'temperature'"),
        (with_gate(decay=1), "gate.decay 1"),
        (with_gate(decay=float("nan")), "gate.decay nan"),
        (with_gate(decay="0.5"), "gate.decay '0.5'"),
        (with_gate(context="token", decay=0.5), "only the context 'running_mean'"),
    ],
)
def test_a_wrong_document_is_refused(tmp_path: Path, spoil: Callable[[dict[str, Any]], object], message: str) -> None:
    write_mixture(make_mixture(), tmp_path)
    document = json.loads((tmp_path / MIXTURE_FILE).read_text())
    spoil(document)
    (tmp_path / MIXTURE_FILE).write_text(json.dumps(document))
    with pytest.raises(MixtureFormatError, match=message):
        read_mixture(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 30_000, "\xff", " " * 70_000])
def test_a_document_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    write_mixture(make_mixture(), tmp_path)
    (tmp_path / MIXTURE_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(MixtureFormatError, match=MIXTURE_FILE):
        read_mixture(tmp_path)


@pytest.mark.parametrize("file", [MIXTURE_FILE, GATE_FILE])
def test_a_missing_file_is_named_without_its_path(tmp_path: Path, file: str) -> None:
    write_mixture(make_mixture(), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(MixtureFormatError, match=file) as caught:
        read_mixture(tmp_path)
    assert str(tmp_path) not in str(caught.value)


WEIGHT, BIAS = torch.zeros(EXPERTS, HIDDEN), torch.zeros(EXPERTS)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"gate.weight": WEIGHT}, "and nothing else"),
        ({"gate.weight": WEIGHT, "gate.bias": BIAS, "more": torch.ones(1)}, "and nothing else"),
        ({"gate.weight": WEIGHT.half(), "gate.bias": BIAS}, "float32"),
        ({"gate.weight": WEIGHT, "gate.bias": BIAS.double()}, "float32"),
        ({"gate.weight": WEIGHT[:3], "gate.bias": BIAS}, "5 experts, hidden size"),
        ({"gate.weight": WEIGHT[0], "gate.bias": BIAS}, "5 experts, hidden size"),
        ({"gate.weight": torch.zeros(EXPERTS, 0), "gate.bias": BIAS}, "5 experts, hidden size"),
        ({"gate.weight": WEIGHT, "gate.bias": BIAS[:4]}, "gate.bias is"),
        ({"gate.weight": WEIGHT + float("nan"), "gate.bias": BIAS}, "not finite"),
        ({"gate.weight": WEIGHT, "gate.bias": BIAS + float("inf")}, "not finite"),
    ],
)
def test_wrong_tensors_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    write_mixture(make_mixture(), tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / GATE_FILE)
    with pytest.raises(MixtureFormatError, match=message):
        read_mixture(tmp_path)


def test_a_damaged_gate_is_refused(tmp_path: Path) -> None:
    write_mixture(make_mixture(), tmp_path)
    (tmp_path / GATE_FILE).write_bytes(b"\x10")
    with pytest.raises(MixtureFormatError, match="damaged"):
        read_mixture(tmp_path)
