"""The gate of a LoRA-Switch mixture: which experts a token uses, and with which weights.

It does: read and write a mixture's two files, score every token of the vocabulary once, and route tokens.
It does not: attach experts, train a gate (`trainer`), or decide who may use one (`registry`).

The router reads the input of the first adapted layer, which depends on the token id alone: its scores are a table. What
context it has is a running mean of the scores, so a choice depends on the request's own tokens up to there and nothing
else: not on its neighbours, nor on how its prompt was cut into chunks or what was cached. One choice is for all layers.
Source: LoRA-Switch (arXiv 2405.17741), whose merge into the weights is left out (one base serves other rows as well).

Letters: V vocabulary, H hidden size, E experts, T tokens, k experts per token.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from basemodel.errors import MixtureFormatError

MIXTURE_FILE = "loraplex_mixture.json"
GATE_FILE = "gate.safetensors"
SCHEMA = 1
METHOD = "switch"
FEWEST_EXPERTS, MOST_EXPERTS = 2, 16
MOST_HIDDEN = 65_536
MOST_DOCUMENT_BYTES = 65_536
NORM_EPS = 1e-6
TABLE_ROWS_AT_ONCE = 4096

Context = Literal["token", "running_mean"]
DOCUMENT_KEYS = {"schema", "method", "base_fingerprint", "top_k", "experts", "gate"}
GATE_KEYS = {"context", "decay"}
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture as its files say it. `experts` are digests of adapter versions, in the order of the gate's rows.

    weight [E, H] and bias [E], float32, on the CPU. `decay` is None for a plain mean.
    """

    base_fingerprint: str
    top_k: int
    experts: tuple[str, ...]
    context: Context
    decay: float | None
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class RouterState:
    """What a request's earlier tokens leave to the next one: sums of their scores, and of their own weights (tokens).

    With a decay, both shrink by it at every token. A context of "token" needs neither and keeps both empty.
    """

    sums: tuple[float, ...] = ()
    mass: float = 0.0


class ScoreTable:
    """The scores of every token under one mixture's gate. It does not change after it is made.

    embedding [V, H] is the base's input embedding, in any type. Raises MixtureFormatError where the gate does not fit.
    """

    def __init__(self, mixture: Mixture, embedding: torch.Tensor) -> None:
        width, wanted = embedding.shape[1], mixture.weight.shape[1]
        if width != wanted:
            raise MixtureFormatError(f"its gate is for a hidden size of {wanted}; this base has {width}")
        self.experts = len(mixture.experts)
        self.top_k = mixture.top_k
        self.context = mixture.context
        self.decay = mixture.decay
        with torch.no_grad():
            parts = [token_scores(rows, mixture.weight, mixture.bias) for rows in embedding.split(TABLE_ROWS_AT_ONCE)]
        self._scores: NDArray[np.float32] = torch.cat(parts).numpy()
        if not np.isfinite(self._scores).all():
            raise MixtureFormatError("its gate is so large that scores are not finite")

    @property
    def table_bytes(self) -> int:
        """Host memory that the table takes."""
        return self._scores.nbytes

    def route(
        self, token_ids: Sequence[int] | NDArray[np.int64], state: RouterState
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], RouterState]:
        """Experts [T, k] and weights [T, k] of the next tokens of a request, and the state after them.

        A request's tokens may come in any chunks: the result is the same, bit for bit.
        """
        scores, state = self.scores(token_ids, state)
        experts, weights = choose_experts(scores, self.top_k)
        return experts, weights, state

    def scores(
        self, token_ids: Sequence[int] | NDArray[np.int64], state: RouterState
    ) -> tuple[NDArray[np.float64], RouterState]:
        """What `route` chooses by, [T, E], and the state after these tokens.

        For who has many requests: `choose_experts` works row by row, so it can take the scores of all of them at once.
        """
        own = self._scores[np.asarray(token_ids, dtype=np.int64)].astype(np.float64)
        if self.context == "token" or not len(own):
            return own, state
        sums = np.array(state.sums or (0.0,) * self.experts)
        return self._running_mean(own, sums, state.mass)

    def _running_mean(
        self, own: NDArray[np.float64], sums: NDArray[np.float64], mass: float
    ) -> tuple[NDArray[np.float64], RouterState]:
        """Sums in the order of the tokens, each from the one before: where a chunk ends leaves no trace."""
        if self.decay is None:
            running = np.cumsum(np.concatenate([sums[None], own]), axis=0)[1:]
            masses = mass + np.arange(1.0, len(own) + 1)
        else:
            columns = [_decayed(start, column, self.decay) for start, column in zip(sums, own.T, strict=True)]
            running = np.array(columns).T
            masses = np.array(_decayed(mass, np.ones(len(own)), self.decay))
        return running / masses[:, None], RouterState(tuple(running[-1].tolist()), float(masses[-1]))


def choose_experts(scores: NDArray[np.float64], top_k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `top_k` best experts of each row of scores [T, E] and their weights, best first; of equals the lower index.

    The weights are a softmax over all experts, kept for the best and scaled to sum to 1. Each row is computed for
    itself, in an order that does not depend on the others.
    """
    experts = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    kept = np.take_along_axis(scores, experts, axis=1)
    shares = np.exp(kept - kept[:, :1])
    total = np.zeros(len(shares))
    for column in range(top_k):
        total += shares[:, column]
    return experts, (shares / total[:, None]).astype(np.float32)


def token_scores(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Scores [T, E], float32, of embedding rows [T, H]: rmsnorm(rows) weight^T + bias; differentiable in the gate.

    Computed in float64 and rounded once, so that the server's table holds what the trainer saw, whatever computed it.
    """
    x = normalized(rows).to(weight.device)
    return (x @ weight.double().T + bias.double()).float()


def normalized(rows: torch.Tensor) -> torch.Tensor:
    """What a gate reads, in float64: embedding rows [T, H], each divided by its root mean square."""
    x = rows.detach().double()
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + NORM_EPS)


def read_mixture(folder: Path) -> Mixture:
    """Read and check a mixture's folder. Raises MixtureFormatError, which says what is wrong and where."""
    document = _read_document(folder / MIXTURE_FILE)
    experts = tuple(document["experts"])
    gate = document["gate"]
    weight, bias = _read_gate(folder / GATE_FILE, len(experts))
    return Mixture(
        base_fingerprint=document["base_fingerprint"],
        top_k=document["top_k"],
        experts=experts,
        context=gate["context"],
        decay=gate["decay"],
        weight=weight,
        bias=bias,
    )


def write_mixture(mixture: Mixture, folder: Path) -> None:
    """Write the two files that `read_mixture` reads into an existing folder."""
    document = {
        "schema": SCHEMA,
        "method": METHOD,
        "base_fingerprint": mixture.base_fingerprint,
        "top_k": mixture.top_k,
        "experts": list(mixture.experts),
        "gate": {"context": mixture.context, "decay": mixture.decay},
    }
    (folder / MIXTURE_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    save_file({"gate.weight": mixture.weight.contiguous(), "gate.bias": mixture.bias.contiguous()}, folder / GATE_FILE)


def _decayed(start: float, column: NDArray[np.float64], decay: float) -> list[float]:
    """The running sums of `column` after `start`, each the one before times `decay` plus the next value."""
    sums = list(accumulate(column.tolist(), lambda before, value: before * decay + value, initial=float(start)))
    return sums[1:]


def _read_document(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MOST_DOCUMENT_BYTES:
            raise MixtureFormatError(f"{MIXTURE_FILE} is larger than {MOST_DOCUMENT_BYTES} bytes")
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _unreadable(MIXTURE_FILE, error) from error
    except (ValueError, RecursionError) as error:
        raise MixtureFormatError(f"{MIXTURE_FILE} is not JSON ({error})") from error
    _check_keys(document, DOCUMENT_KEYS, MIXTURE_FILE)
    _check_keys(document["gate"], GATE_KEYS, f"{MIXTURE_FILE}: gate")
    if document["schema"] != SCHEMA or isinstance(document["schema"], bool):
        raise MixtureFormatError(f"{MIXTURE_FILE} has schema {document['schema']!r}; this release reads {SCHEMA}")
    if document["method"] != METHOD:
        raise MixtureFormatError(f"{MIXTURE_FILE} has method {document['method']!r}; this release reads '{METHOD}'")
    _check_text(document["base_fingerprint"], FINGERPRINT, "base_fingerprint", "64 hex digits")
    _check_experts(document["experts"])
    top_k = document["top_k"]
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= len(document["experts"]):
        raise MixtureFormatError(f"{MIXTURE_FILE} has top_k {top_k!r}; it is 1 to the number of experts")
    _check_context(document["gate"])
    return dict(document)


def _check_keys(value: object, keys: set[str], where: str) -> None:
    if not isinstance(value, dict):
        raise MixtureFormatError(f"{where} is not an object")
    for key in sorted(keys - set(value)):
        raise MixtureFormatError(f"{where} has no '{key}'")
    for key in sorted(set(value) - keys):
        raise MixtureFormatError(f"{where} has '{key[:100]}', which this release does not know")


def _check_text(value: object, pattern: re.Pattern[str], key: str, wanted: str) -> None:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise MixtureFormatError(f"{MIXTURE_FILE} has {key} {str(value)[:100]!r}; it is {wanted}")


def _check_experts(experts: object) -> None:
    if not isinstance(experts, list) or not FEWEST_EXPERTS <= len(experts) <= MOST_EXPERTS:
        raise MixtureFormatError(f"{MIXTURE_FILE}: experts must list {FEWEST_EXPERTS} to {MOST_EXPERTS} digests")
    for expert in experts:
        _check_text(expert, DIGEST, "an expert", "'sha256:' and 64 hex digits")
        if experts.count(expert) > 1:
            raise MixtureFormatError(f"{MIXTURE_FILE} names the expert {expert} twice")


def _check_context(gate: dict[str, Any]) -> None:
    context, decay = gate["context"], gate["decay"]
    if context not in get_args(Context):
        raise MixtureFormatError(f"{MIXTURE_FILE} has gate.context {context!r}; known: {', '.join(get_args(Context))}")
    if decay is None:
        return
    if context != "running_mean":
        raise MixtureFormatError(f"{MIXTURE_FILE} has gate.decay, which only the context 'running_mean' has")
    if not isinstance(decay, int | float) or isinstance(decay, bool) or not 0 < decay < 1:
        raise MixtureFormatError(f"{MIXTURE_FILE} has gate.decay {decay!r}; it is null, or between 0 and 1")


def _read_gate(file: Path, experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The gate's tensors, whose shapes and types are judged by the header, before anything is read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            if set(tensors.keys()) != {"gate.weight", "gate.bias"}:
                raise MixtureFormatError(f"{GATE_FILE} must hold 'gate.weight' and 'gate.bias', and nothing else")
            weight, bias = tensors.get_slice("gate.weight"), tensors.get_slice("gate.bias")
            shape = weight.get_shape()
            if weight.get_dtype() != "F32" or bias.get_dtype() != "F32":
                raise MixtureFormatError(f"{GATE_FILE} must be float32")
            if len(shape) != 2 or shape[0] != experts or not 1 <= shape[1] <= MOST_HIDDEN:
                raise MixtureFormatError(f"{GATE_FILE}: gate.weight is {shape}, not [{experts} experts, hidden size]")
            if bias.get_shape() != [experts]:
                raise MixtureFormatError(f"{GATE_FILE}: gate.bias is {bias.get_shape()}, not [{experts} experts]")
            gate = tensors.get_tensor("gate.weight"), tensors.get_tensor("gate.bias")
    except OSError as error:
        raise _unreadable(GATE_FILE, error) from error
    except SafetensorError as error:
        raise MixtureFormatError(f"{GATE_FILE} is damaged ({error})") from error
    if not all(math.isfinite(tensor.abs().max().item()) for tensor in gate):
        raise MixtureFormatError(f"{GATE_FILE} holds values that are not finite")
    return gate


def _unreadable(file: str, error: OSError) -> MixtureFormatError:
    """Says why, without the path that the operating system's own text carries: it reaches clients."""
    return MixtureFormatError(f"{file} cannot be read ({error.strerror or type(error).__name__})")
