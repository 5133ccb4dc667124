"""The gate of a LoRA-Switch mixture: which experts a token uses, and with which weights.

It does: read and write a mixture's two files, and say what a gate's score of a token is.
It does not: route (`score_table`), attach experts, train a gate (`trainer`), or decide who may use one (`registry`).

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
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
