"""What somebody vouches for about a version. What records it is in `attestations.py`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class AttestationKind(StrEnum):
    """What is attested. Signatures are made by `signatures.py`."""

    EVALUATION = "evaluation"
    PROBE = "probe"
    SCAN = "scan"
    APPROVAL = "approval"
    SIGNATURE = "signature"


@dataclass(frozen=True)
class Attestation:
    """One statement. `subject` is the evaluation's, prober's or scanner's name, the approved alias, or the key.

    `passed` is None where the statement is neither for nor against; `document` holds the metrics, the note and the role
    of the actor.
    """

    attestation_id: int
    adapter: str
    number: int
    kind: AttestationKind
    subject: str
    passed: bool | None
    document: dict[str, Any]
    actor: str
    created_at: datetime
