"""Checks that an adapter computes here what it computed where it was trained.

It does: read the probes of an adapter's manifest and compare logits.
It does not: run the model (`runner`). The trainer records, for a few prompts, the eight best tokens and their logits.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

MANIFEST_FILE = "loraplex.json"
# bfloat16 keeps 8 bits: over some tens of layers logits of about 10 move by a few hundredths when the order of a sum or
# the type of an adapter changes. A wrong scale or a missed module moves them by whole units.
ABSOLUTE_TOLERANCE = 0.15
RELATIVE_TOLERANCE = 0.04


# The trainer's are of at most 128 tokens. Others may write a manifest too, and what an adapter brings along must not
# hold up the engine: further probes, and longer ones, are not run.
MOST_PROBES = 8
LONGEST_PROBE_TOKENS = 128


class Probe(msgspec.Struct, frozen=True):
    """Expected `logits` of `token_ids` after `prompt_token_ids`."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logits: list[float]


class _Manifest(msgspec.Struct, frozen=True):
    probes: list[Probe] = []


# Made once: several threads read adapters, and msgspec must not meet a type for the first time in two of them.
_decode_manifest = msgspec.json.Decoder(_Manifest).decode


def read_probes(folder: Path) -> tuple[Probe, ...]:
    """The probes of an adapter folder that are run; none without a manifest. Raises msgspec.DecodeError or OSError."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return ()
    probes = _decode_manifest(path.read_bytes()).probes
    return tuple(probe for probe in probes if len(probe.prompt_token_ids) <= LONGEST_PROBE_TOKENS)[:MOST_PROBES]


def probe_difference(probe: Probe, logits: torch.Tensor) -> str | None:
    """None where `logits` [V] agree with the probe, else what differs."""
    expected = torch.tensor(probe.logits)
    found = logits.float().cpu()[torch.tensor(probe.token_ids)]
    allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * float(expected.abs().max())
    difference = float((found - expected).abs().max())
    if difference <= allowed:
        return None
    return f"its logits differ by {difference:.3f} from those recorded at training (allowed {allowed:.3f})"
