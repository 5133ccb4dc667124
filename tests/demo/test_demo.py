"""The demo as a user runs it, on its small setting: everything is real, from the data to the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import registry
from loraplex.demo.plan import full_plan, quick_plan
from registry import Principal

DEMO_SECONDS = 240
POINTS_ABOVE_BASE = 0.25  # of the quick setting; the whole demo reaches far more

pytestmark = pytest.mark.timeout(DEMO_SECONDS + 60)


@dataclass(frozen=True)
class FinishedRun:
    """What one run of the command left behind."""

    home: Path
    output: str
    results: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedRun]:
    folder = tmp_path_factory.mktemp("demo")
    home, file = folder / "home", folder / "out" / "results.json"
    command = [sys.executable, "-m", "loraplex", "demo", "--once", "--quick", "--json", str(file), "--home", str(home)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=DEMO_SECONDS, cwd=folder, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    yield FinishedRun(home, done.stdout, json.loads(file.read_text()))
    left_behind = [each.info["pid"] for each in psutil.process_iter(["pid", "cmdline"]) if _mentions(each, home)]
    assert left_behind == []


def _mentions(process: psutil.Process, home: Path) -> bool:
    return any(str(home) in word for word in process.info["cmdline"] or [])


def test_results_have_exactly_the_documented_keys(run: FinishedRun) -> None:
    assert set(run.results) == {"tasks", "mixed_tokens_per_s", "base_tokens_per_s", "seconds"}
    for task in run.results["tasks"]:
        assert set(task) == {"name", "model", "digest", "base_exact_match", "adapter_exact_match"}
    assert [task["name"] for task in run.results["tasks"]] == ["text2sql", "log2json", "text2cron"]


def test_each_adapter_is_better_than_the_base(run: FinishedRun) -> None:
    for task in run.results["tasks"]:
        assert task["adapter_exact_match"] - task["base_exact_match"] >= POINTS_ABOVE_BASE, task


def test_each_digest_is_the_registrys(run: FinishedRun) -> None:
    with registry.open(run.home / "registry") as opened:
        for task in run.results["tasks"]:
            version = opened.resolve(task["model"], principal=Principal.operator())
            assert version.digest == task["digest"]
            assert version.base_verified
            assert version.visibility == "private"
        assert len({task["digest"] for task in run.results["tasks"]}) == 3
        assert [tenant.name for tenant in opened.list_tenants()] == ["acme", "globex"]


def test_speeds_and_time_are_measured(run: FinishedRun) -> None:
    assert run.results["mixed_tokens_per_s"] > 0
    assert run.results["base_tokens_per_s"] > 0
    assert 0 < run.results["seconds"] < DEMO_SECONDS


def test_the_output_shows_every_step_in_plain_text(run: FinishedRun) -> None:
    assert "\x1b" not in run.output
    for shown in ("Train", "Publish", "Serve", "Throughput", "Metrics", "tokens/s", "404", "loss"):
        assert shown in run.output, shown
    for task in run.results["tasks"]:
        assert task["digest"][:19] in run.output
    assert "loraplex_adapter_evictions_total" in run.output


def test_fewer_slots_than_adapters_make_the_server_swap(run: FinishedRun) -> None:
    evictions = next(line for line in run.output.splitlines() if "loraplex_adapter_evictions_total" in line)
    assert float(evictions.split()[-1]) > 0


def test_no_token_is_shown_or_kept_in_a_log(run: FinishedRun) -> None:
    assert "lpx_" not in run.output
    for log in (run.home / "logs").iterdir():
        assert "lpx_" not in log.read_text()


def test_the_documented_mixture_of_the_demos_adapters_is_made(run: FinishedRun) -> None:
    """The commands of docs/training.md up to the server, with fewer rows and steps."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = page[page.index("### From the demo's three adapters") :]
    commands = section.split("```")[1]
    making = commands[commands.index("cat ") : commands.index("loraplex token")]
    assert making.count("--max-steps 40") == making.count("cat ") == 1
    script = making.replace("cat ", "head -qn 60 ").replace("--max-steps 40", "--max-steps 2")
    script = script.replace("loraplex ", f"{sys.executable} -m loraplex ")
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False, cwd=run.home)
    assert done.returncode == 0, done.stdout + done.stderr
    operator = Principal.operator()
    with registry.open(run.home / "registry") as opened:
        mixture = opened.resolve("acme/assistant@prod", principal=operator)
        experts = [opened.resolve(f"acme/assistant-{number}", principal=operator) for number in (1, 2, 3)]
    assert mixture.experts == tuple(expert.digest for expert in experts)
    assert [expert.parent_digest for expert in experts] == [task["digest"] for task in run.results["tasks"]]


@pytest.mark.parametrize("plan", [full_plan(), quick_plan()], ids=["full", "quick"])
def test_plans_have_more_adapters_than_slots_and_two_tenants(plan: Any) -> None:
    assert len(plan.adapters) > plan.adapter_slots
    assert len(plan.tenants) == 2
    assert any(adapter.alias for adapter in plan.adapters)
