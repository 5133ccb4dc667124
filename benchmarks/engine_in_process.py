"""An engine in this process for a benchmark, without HTTP: made, asked and stepped as the engine process does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.workload import open_base, random_adapters, ready_engine
from serving.engine.engine import Engine
from serving.engine.process import LOADING_POLL_MS
from serving.messages import AdapterUse, EngineSettings, Generate, Output, Sampling

RANK = 16


class EngineInProcess:
    """An engine and `folders` of random adapters for it. Owned by one benchmark."""

    def __init__(self, model: str, folder: Path, *, device: str, adapters: int, **settings: Any) -> None:
        base = open_base(model, folder, device=device)
        self.folders = random_adapters(base.description, folder / "adapters", count=adapters, rank=RANK)
        options: dict[str, Any] = {"check_probes": False, "adapter_slots": 16, "adapter_pool_bytes": None} | settings
        self.engine: Engine = ready_engine(
            base, EngineSettings(socket="", base=model, bases_folder="", device=device, **options)
        )
        self._asked = 0

    def adapter(self, number: int, name: str = "a") -> AdapterUse:
        """One of any number of adapters: the engine knows them by their names, whichever files are behind them."""
        return AdapterUse(digest=f"{name}{number}", folder=str(self.folders[number % len(self.folders)]))

    def ask(
        self, prompt: list[int], tokens: int, adapter: AdapterUse | None = None, *, drafts: int = 0, **sampling: Any
    ) -> str:
        """Queue a request of `tokens` tokens; returns its id."""
        self._asked += 1
        options: dict[str, Any] = {"max_tokens": tokens, "temperature": 0.0, "ignore_eos": True} | sampling
        self.engine.add(
            Generate(
                request_id=str(self._asked),
                tenant="t",
                prompt_token_ids=prompt,
                sampling=Sampling(**options),
                adapters=() if adapter is None else (adapter,),
                draft_tokens=drafts,
            )
        )
        return str(self._asked)

    def step(self) -> list[Output]:
        """One step; where there is nothing to compute until an adapter is read, a short sleep too."""
        outputs = self.engine.step()
        if not outputs and not self.engine.scheduler.running:
            time.sleep(LOADING_POLL_MS / 1000)
        return outputs

    def drain(self) -> None:
        """Steps until nothing is left."""
        while self.engine.has_work:
            self.step()


def prompt_of(number: int, tokens: int) -> list[int]:
    """A prompt like no other's."""
    return [64 + (number * 37 + position * 11) % 900 for position in range(tokens)]
