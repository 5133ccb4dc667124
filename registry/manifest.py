"""loraplex.json: where an adapter comes from, how good it is, and the probes that the server checks.

Written by the trainer, kept with the version, shown by `loraplex show`. The registry checks its form and its base; it
does not check that the metrics are true.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from registry.base import BaseRecord
from registry.decoding import convert
from registry.errors import RejectedAdapterError
from registry.json_document import parse_json_object
from registry.reasons import RejectReason

MANIFEST_FILE = "loraplex.json"
PROBES_LIMIT = 64
PROBE_CANDIDATES_LIMIT = 64

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
_Fingerprint = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z", max_length=64)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^sha256:[0-9a-f]{64}\Z", max_length=71)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]


class ManifestBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The quantized base that the adapter was trained on."""

    name: _Text
    fingerprint: _Fingerprint
    revision: _Text | None = None
    quantization: dict[str, Any] = {}


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt, and the best tokens after it with their logits, as the trainer saw them."""

    prompt_token_ids: Annotated[tuple[_TokenId, ...], msgspec.Meta(min_length=1, max_length=8192)]
    token_ids: Annotated[tuple[_TokenId, ...], msgspec.Meta(min_length=1, max_length=PROBE_CANDIDATES_LIMIT)]
    logits: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=PROBE_CANDIDATES_LIMIT)]


class TrainingData(msgspec.Struct, frozen=True):
    """What the adapter learned from; the text itself is never in the manifest."""

    digest: _Digest | None = None
    train_rows: _Count | None = None
    validation_rows: _Count | None = None


class Training(msgspec.Struct, frozen=True):
    """How the adapter was made. Fields beyond these are kept and shown as they are."""

    method: _Text
    data: TrainingData | None = None


class Metrics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Named figures of the base alone and of the adapter, on the same validation rows."""

    base: dict[_Text, float | None] = {}
    adapter: dict[_Text, float | None] = {}


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The form of loraplex.json."""

    schema: Literal[1]
    base: ManifestBase
    training: Training | None = None
    metrics: Metrics | None = None
    parent: _Digest | None = None
    probes: Annotated[tuple[Probe, ...], msgspec.Meta(max_length=PROBES_LIMIT)] = ()


def parse_manifest(raw: bytes) -> tuple[Manifest, dict[str, Any]]:
    """Return the manifest, and the document as it was written. Raises RejectedAdapterError."""
    document = parse_json_object(raw, file=MANIFEST_FILE)
    try:
        manifest = convert(document, Manifest)
    except msgspec.ValidationError as error:
        raise RejectedAdapterError(RejectReason.BAD_MANIFEST, str(error), file=MANIFEST_FILE) from error
    return manifest, document


def check_probes(manifest: Manifest, base: BaseRecord) -> None:
    """Check that each probe can be run on this base. Raises RejectedAdapterError."""
    for number, probe in enumerate(manifest.probes):
        fault = _probe_fault(probe, base)
        if fault:
            raise RejectedAdapterError(
                RejectReason.BAD_MANIFEST, f"probe {number} {fault}", file=MANIFEST_FILE, field=f"probes[{number}]"
            )


def _probe_fault(probe: Probe, base: BaseRecord) -> str | None:
    if len(probe.token_ids) != len(probe.logits):
        return f"has {len(probe.token_ids)} tokens and {len(probe.logits)} logits"
    if len(probe.prompt_token_ids) > base.context_tokens:
        return f"is longer than the base's context of {base.context_tokens} tokens"
    largest = max(*probe.prompt_token_ids, *probe.token_ids)
    if largest >= base.vocabulary_size:
        return f"has token {largest}, and the base's vocabulary has {base.vocabulary_size}"
    return None
