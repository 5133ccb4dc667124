"""Which adapters have shown that they compute here what they computed where they were trained.

It does: run the probes of adapters that are used for the first time, a few tokens of them a step, and hold back the
rows that wait for that. It does not: read probes or compare logits (`probe`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from basemodel.lora_segment import RankRows
from serving.engine.adapter_pool import AdapterPool
from serving.engine.errors import AdapterRefusedError
from serving.engine.probe import Probe, probe_difference
from serving.engine.request import Request, Row
from serving.engine.router import Router
from serving.engine.runner import Runner
from serving.messages import Sampling

# Probes are forwards beside the step, in which everybody waits: after so many tokens the rest waits for the next step.
STEP_PROBE_TOKENS = 128


@dataclass(frozen=True)
class _Part:
    """What of a request has probes of its own: an adapter alone at full weight, or a mixture as it is routed."""

    digest: str
    rank_rows: tuple[RankRows, ...]
    router: Router | None


class Proofs:
    """What was proven, by digest. Only the engine changes it."""

    def __init__(self, runner: Runner, pool: AdapterPool) -> None:
        self._runner = runner
        self._pool = pool
        self._proven: set[str] = set()
        self._left: dict[str, list[Probe]] = {}  # still to be run
        self._tokens_left = 0

    def admit(self, rows: list[Row]) -> tuple[list[Row], list[AdapterRefusedError]]:
        """The rows whose adapters are proven by now, and the adapters that failed."""
        self._tokens_left = STEP_PROBE_TOKENS
        refused: dict[str, AdapterRefusedError] = {}
        proven = [row for row in rows if self._is_proven(row.request, refused)]
        return proven, list(refused.values())

    def _is_proven(self, request: Request, refused: dict[str, AdapterRefusedError]) -> bool:
        if self._proven.issuperset(request.digests):
            return True
        for part in _parts(request):
            if part.digest in refused:
                return False
            left = self._left.setdefault(part.digest, list(self._pool.probes(part.digest)))
            while left and part.digest not in self._proven:
                if self._tokens_left <= 0:
                    return False
                difference = self._difference(left.pop(0), request, part)
                if difference is not None:
                    del self._left[part.digest]
                    refused[part.digest] = AdapterRefusedError(part.digest, difference)
                    return False
            del self._left[part.digest]
            self._proven.add(part.digest)
        return True

    def _difference(self, probe: Probe, request: Request, part: _Part) -> str | None:
        tokens = list(probe.prompt_token_ids)
        self._tokens_left -= len(tokens)
        asked = Request("probe", "", tokens, Sampling(max_tokens=1), request.adapters, arrival=-1)
        asked.rank_rows, asked.router = part.rank_rows, part.router
        return probe_difference(probe, self._runner.run_alone(asked))


def _parts(request: Request) -> Iterator[_Part]:
    rank_rows = request.rank_rows or ()
    for use, rows in zip(request.placed, rank_rows, strict=True):
        yield _Part(use.digest, (replace(rows, weight=1.0),), None)
    if request.router is not None:
        yield _Part(request.adapters[0].digest, rank_rows, request.router.untallied())
