"""Who can serve an accepted adapter: this engine, PEFT, vLLM, each with what it needs or why it cannot.

It does: derive the answer from the adapter's ranks, scales and kinds, at admission. It does not: refuse anything; what
this engine cannot serve never becomes a version (`adapter_config.py`, `lora_tensors.py`, `adapter_tensors.py`).

vLLM 0.14 to 0.22: one `max_lora_rank` for all adapters, of a fixed list; one scale per adapter, from `r` and
`lora_alpha` (with rsLoRA too), with `rank_pattern` and `alpha_pattern` left unread; LoRA on `lm_head` up to a
vocabulary of 258,048; nothing but LoRA factors of linear layers. PEFT: configs of newer releases load from 0.14.0 on,
which leaves out the fields that it does not know; trained tokens came with 0.15.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from registry.decoding import decode

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
VLLM_VOCABULARY_LIMIT = 258_048
PEFT_MIN_VERSION = "0.14.0"
PEFT_TOKENS_VERSION = "0.15.0"
MODULES_SHOWN = 3

BaseMatch = Literal["manifest", "named", "name and shapes", "shapes"]
"""How the base was found: its fingerprint in the manifest, the publisher's word, or what the files themselves say."""


class ServerVerdict(msgspec.Struct, frozen=True):
    """One server's answer. `needs` are settings or versions; `why` are the reasons against, or what to know."""

    is_served: bool
    needs: dict[str, str | int] = {}
    why: tuple[str, ...] = ()

    @property
    def answer(self) -> Literal["yes", "no"]:
        """The first word of the line for people."""
        return "yes" if self.is_served else "no"

    @property
    def grounds(self) -> str:
        """The rest of that line: ` (NEEDS)`, `: WHY`, both or nothing."""
        needs = ", ".join(f"{name} {value}" for name, value in self.needs.items())
        return (f" ({needs})" if needs else "") + (f": {'; '.join(self.why)}" if self.why else "")


class ServingVerdict(msgspec.Struct, frozen=True):
    """The answers of all servers, as they were when the version was made."""

    base_match: BaseMatch
    loraplex: ServerVerdict
    peft: ServerVerdict
    vllm: ServerVerdict

    def servers(self) -> dict[str, ServerVerdict]:
        """The answers by the server's name."""
        return {"loraplex": self.loraplex, "peft": self.peft, "vllm": self.vllm}

    def sentences(self) -> dict[str, str]:
        """Each server's answer as one line for people."""
        return {server: verdict.answer + verdict.grounds for server, verdict in self.servers().items()}


def serving_verdict(
    *,
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    config_scale: float,
    vocabulary_size: int,
    base_name: str,
    base_match: BaseMatch,
    kinds: tuple[str, ...] = (),
    known_tokens: int | None = None,
) -> ServingVerdict:
    """Judge from the rank and scale of each module, and the scale that `r` and `lora_alpha` alone would give.

    `kinds` is what the adapter is besides LoRA on linear layers; `known_tokens` its vocabulary, if not the base's.
    """
    has_kinds: dict[str, str | int] = {"kinds": " ".join(kinds)} if kinds else {}
    grown: dict[str, str | int] = {}
    if known_tokens is not None and known_tokens > vocabulary_size:
        grown = {"vocabulary": known_tokens}
    version = PEFT_TOKENS_VERSION if "trainable_token_indices" in kinds else PEFT_MIN_VERSION
    largest = max(ranks.values())
    known = () if base_match == "manifest" else (f"its base is not verified: it was found by {base_match}",)
    if base_match == "named":
        known = ("its base is not verified: it fits by its shapes",)
    return ServingVerdict(
        base_match=base_match,
        loraplex=ServerVerdict(True, {"base": base_name, "rank": largest, **has_kinds, **grown}, known),
        peft=ServerVerdict(True, {"min_version": version, **grown}),
        vllm=_vllm(largest, scales, config_scale, kinds, has_head=_has_head(ranks), vocabulary_size=vocabulary_size),
    )


def mixture_verdict(*, experts: int, top_k: int, rank: int, base_name: str, is_verified: bool) -> ServingVerdict:
    """A LoRA-Switch mixture: this engine routes it, and nobody else knows what its gate is for."""
    alone = ("it is a mixture: a gate chooses among adapters for each token; pull its experts one by one instead",)
    needs: dict[str, str | int] = {"base": base_name, "rank": rank, "experts": experts, "top_k": top_k}
    known = () if is_verified else ("its base is not verified: one of its experts does not record it",)
    return ServingVerdict(
        base_match="manifest",
        loraplex=ServerVerdict(True, needs, known),
        peft=ServerVerdict(False, {}, alone),
        vllm=ServerVerdict(False, {}, alone),
    )


def read_verdict(text: str | None) -> ServingVerdict | None:
    """The verdict as the database keeps it; None for versions of a release that kept none."""
    return None if text is None else decode(text.encode(), ServingVerdict)


def write_verdict(verdict: ServingVerdict) -> str:
    """The verdict as JSON."""
    document: Any = msgspec.to_builtins(verdict)
    return msgspec.json.encode(document, order="sorted").decode()


def _vllm(
    largest: int,
    scales: Mapping[str, float],
    config_scale: float,
    kinds: tuple[str, ...],
    *,
    has_head: bool,
    vocabulary_size: int,
) -> ServerVerdict:
    needed = next((rank for rank in VLLM_RANKS if rank >= largest), None)
    other = sorted(module for module, scale in scales.items() if not math.isclose(scale, config_scale, rel_tol=1e-6))
    why = []
    if needed is None:
        why.append(f"rank {largest} is larger than its largest max_lora_rank, {VLLM_RANKS[-1]}")
    if other:
        named = ", ".join(other[:MODULES_SHOWN]) + (", ..." if len(other) > MODULES_SHOWN else "")
        why.append(
            f"it reads neither rank_pattern nor alpha_pattern, so it would scale {len(other)} of {len(scales)} modules "
            f"wrongly ({named})"
        )
    if has_head and vocabulary_size > VLLM_VOCABULARY_LIMIT:
        why.append(f"it takes LoRA on lm_head for vocabularies up to {VLLM_VOCABULARY_LIMIT} tokens")
    if kinds:
        why.append(f"it takes LoRA on linear layers and nothing besides ({', '.join(kinds)})")
    if why or needed is None:
        return ServerVerdict(False, {}, tuple(why))
    return ServerVerdict(True, {"max_lora_rank": needed})


def _has_head(ranks: Mapping[str, int]) -> bool:
    return any(module.rpartition(".")[2] == "lm_head" for module in ranks)
