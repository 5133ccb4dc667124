"""loraplex_mixture.json, judged on its own: which experts, how many at a time, and what the gate looks at.

The same document is read by the engine (`basemodel.mixture_gate`), which this package does not import. Whether the
experts exist and fit is judged with the catalog (`mixture.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from registry.decoding import convert
from registry.errors import RejectedAdapterError
from registry.json_document import parse_json_object
from registry.reasons import RejectReason

MIXTURE_FILE = "loraplex_mixture.json"
GATE_FILE = "gate.safetensors"
GATE_BYTES_LIMIT = 16_000_000
"""16 experts over a hidden size of 65,536 are 4 MB."""

_Fingerprint = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z", max_length=71)]
_Decay = Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]


class GateConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the router looks at: the token alone, or the mean of its own and the earlier tokens' scores."""

    context: Literal["token", "running_mean"]
    decay: _Decay | None


class MixtureConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of loraplex_mixture.json. `experts` are digests of adapter versions, in the order of the gate's rows."""

    schema: Literal[1]
    method: Literal["switch"]
    base_fingerprint: _Fingerprint
    top_k: Annotated[int, msgspec.Meta(ge=1)]
    experts: Annotated[tuple[_Digest, ...], msgspec.Meta(min_length=2, max_length=16)]
    gate: GateConfig


def parse_mixture(raw: bytes) -> MixtureConfig:
    """Judge the document. Raises RejectedAdapterError."""
    document = parse_json_object(raw, file=MIXTURE_FILE)
    try:
        config = convert(document, MixtureConfig)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from error
    if len(set(config.experts)) != len(config.experts):
        raise _refused("an expert is listed twice", "experts")
    if config.top_k > len(config.experts):
        raise _refused(f"`top_k` is {config.top_k}, and there are {len(config.experts)} experts", "top_k")
    if config.gate.decay is not None and config.gate.context != "running_mean":
        raise _refused("`gate.decay` belongs to the context running_mean only", "gate.decay")
    return config


def _refused(detail: str, field: str | None = None) -> RejectedAdapterError:
    return RejectedAdapterError(RejectReason.BAD_MIXTURE, detail, file=MIXTURE_FILE, field=field)
