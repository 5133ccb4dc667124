"""Greedy answers of the engine to held-out rows, counted where they are right to the letter.

It does: load the embedded base into an engine in this process, ask it all rows at once, and compare texts, white space
at the ends aside. It does not: train, or go over HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from basemodel.load import load_base
from basemodel.source import EMBEDDED
from loraplex.demo.tasks import DemoTask, write_jsonl
from serving.engine.build import engine_for
from serving.engine.process import LOADING_POLL_MS
from serving.messages import AdapterUse, EngineSettings, Generate, Sampling
from trainer.data import read_data_file
from trainer.encoding import Example, encode_rows
from trainer.job_sections import DataSection

ROWS_AT_ONCE = 32
ADAPTER_SLOTS = 8


class ServedAnswers:
    """An engine over the embedded base. It keeps nothing of one call for the next but what it has cached."""

    def __init__(self, bases: Path) -> None:
        self._base = load_base(EMBEDDED, cache_dir=bases)
        settings = EngineSettings(
            socket="", base=EMBEDDED, bases_folder="", max_running=ROWS_AT_ONCE, adapter_slots=ADAPTER_SLOTS
        )
        self._engine = engine_for(self._base, settings)

    def rows(self, task: DemoTask, rows: int, seed: int, place: Path) -> tuple[Example, ...]:
        """Rows of one task that no training saw, as the server tokenizes them."""
        file = place / f"{task.name}.jsonl"
        write_jsonl(task.held_out(rows, seed), file)
        section = DataSection(train=file)
        data = read_data_file(file, section)
        limit_tokens = self._base.description.context_tokens
        return encode_rows(data, data.rows, self._base.tokenizer, section, limit_tokens=limit_tokens).examples

    def right(self, use: AdapterUse, examples: Sequence[Example]) -> float:
        """The share of `examples` that `use` answers right. Each may have as many tokens as the longest answer."""
        most = max(len(example.token_ids) - (example.answer_start or 0) for example in examples)
        for number, example in enumerate(examples):
            prompt = example.token_ids[: example.answer_start].tolist()
            sampling = Sampling(max_tokens=most, temperature=0.0)
            request = Generate(
                request_id=str(number), tenant="t", prompt_token_ids=prompt, sampling=sampling, adapters=(use,)
            )
            self._engine.add(request)
        answers: list[list[int]] = [[] for _ in examples]
        while self._engine.has_work:
            outputs = self._engine.step()
            if not outputs and not self._engine.scheduler.running:
                time.sleep(LOADING_POLL_MS / 1000)
            for output in outputs:
                if output.fault is not None:
                    raise RuntimeError(f"the engine refused {use.folder}: {output.fault.message}")
                answers[int(output.request_id)] += output.token_ids
        pairs = zip(examples, answers, strict=True)
        return sum(self._text(e.token_ids[e.answer_start :].tolist()) == self._text(a) for e, a in pairs) / len(answers)

    def _text(self, token_ids: list[int]) -> str:
        return str(self._base.tokenizer.decode(token_ids, skip_special_tokens=True)).strip()
