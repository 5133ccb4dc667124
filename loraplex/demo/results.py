"""What the demo measured, and the JSON that `--json FILE` writes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskResult:
    """One adapter on data that it has never seen. Exact match is a share, 0 to 1, measured through the server."""

    name: str
    model: str
    digest: str
    base_exact_match: float
    adapter_exact_match: float


@dataclass(frozen=True)
class DemoResults:
    """The whole demo. Tokens are generated ones, of all rows of a batch together; `seconds` is wall time."""

    tasks: tuple[TaskResult, ...]
    mixed_tokens_per_s: float
    base_tokens_per_s: float
    seconds: float

    def write(self, file: Path) -> None:
        """Write the results as JSON."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
