"""A training run in a process of its own: its events arrive, its errors are told, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from loraplex.demo.tasks import TASKS, write_jsonl
from loraplex.demo.workers import run_side_by_side
from loraplex.errors import DemoError
from trainer.events import Event, Listener, StepDone
from trainer.job import Job


def small_job(folder: Path, name: str) -> Job:
    data = folder / f"{name}.jsonl"
    write_jsonl(TASKS[2].train(30, seed=1), data)
    return Job.from_values(
        {
            "name": name,
            "data": {"train": data},
            "adapter": {"r": 4, "alpha": 4.0},
            "optimization": {"max_steps": 2, "batch_tokens": 128, "learning_rate": 1e-3},
            "evaluation": {"validation_fraction": 0, "exact_match": False},
            "output": {"run": folder / name},
        }
    )


def test_events_and_results_come_from_each_run_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    heard: dict[str, list[Event]] = {"one": [], "two": []}

    def listener(name: str) -> Listener:
        return heard[name].append

    jobs = [small_job(tmp_path, "one"), small_job(tmp_path, "two")]
    results = run_side_by_side(jobs, tmp_path / "home", most=2, threads=1, listener=listener)
    assert [result.name for result in results] == ["one", "two"]
    for name, result in zip(heard, results, strict=True):
        steps = [event.step for event in heard[name] if isinstance(event, StepDone)]
        assert steps == [1, 2]
        assert (result.adapter_folder / "adapter_model.safetensors").is_file()
    assert multiprocessing.active_children() == []


def test_a_failing_run_ends_the_others(tmp_path: Path) -> None:
    bad = small_job(tmp_path, "bad")
    bad.data.train.write_text("not json\n")
    jobs = [bad, small_job(tmp_path, "good")]
    with pytest.raises(DemoError, match=r"the training of bad failed: .*line 1"):
        run_side_by_side(jobs, tmp_path / "home", most=2, threads=1, listener=lambda _name: lambda _event: None)
    assert multiprocessing.active_children() == []
