"""The demo as a user runs it, on its small setting: everything is real, from the data to the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import registry
from loraplex.demo.cli import demo as command
from loraplex.demo.cli import demo_home
from loraplex.demo.plan import full_plan, quick_plan
from registry import Principal

DEMO_SECONDS = 240
LAST_PROCESS_SECONDS = 5
POINTS_ABOVE_BASE = 0.25  # of the quick setting; the whole demo reaches far more

pytestmark = pytest.mark.timeout(DEMO_SECONDS + 60)


@dataclass(frozen=True)
class FinishedRun:
    """What one run of the command left behind."""

    home: Path
    output: str
    results: dict[str, Any]


@dataclass(frozen=True)
class StartedDemo:
    """The command in a process group of its own, as a terminal has it; what it prints goes into a file."""

    process: subprocess.Popen[bytes]
    home: Path
    printed: Path

    def output(self) -> str:
        return self.printed.read_text()

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEMO_SECONDS
        while not is_so():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def tell(self, kill: Callable[[int, int], None], number: int) -> int:
        """Send a signal to the command alone (`os.kill`) or to its group (`os.killpg`); its exit status."""
        kill(self.process.pid, number)
        return self.process.wait(60)


@contextmanager
def started_demo(folder: Path, *options: str) -> Iterator[StartedDemo]:
    home, printed = folder / "home", folder / "printed"
    # Whoever runs the tests in the background ignores interrupts, and so would the command.
    heeding = "from signal import *; signal(SIGINT, default_int_handler); import loraplex.cli as c; c.main()"
    command = [sys.executable, "-c", heeding, "demo", "--quick", "--home", str(home), *options]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
        )
    try:
        yield StartedDemo(process, home, printed)
        deadline = time.monotonic() + LAST_PROCESS_SECONDS
        while found := _left_behind(process.pid, home):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _left_behind(group: int, home: Path) -> list[str]:
    """Processes of the demo's group, and those that speak of its home: the engine has a group of its own."""
    found = []
    for each in psutil.process_iter(["pid", "cmdline", "status"]):
        with suppress(ProcessLookupError):
            words = each.info["cmdline"] or []
            is_ours = os.getpgid(each.info["pid"]) == group or any(str(home) in word for word in words)
            if is_ours and each.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(" ".join(words))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("demo")
    file = folder / "out" / "results.json"
    with started_demo(folder, "--once", "--json", str(file)) as demo:
        assert demo.process.wait(DEMO_SECONDS) == 0, demo.output()
    return FinishedRun(demo.home, demo.output(), json.loads(file.read_text()))


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


def _imports_torch(demo: StartedDemo) -> bool:
    """What reaches the group reaches the training processes, and they must not speak of it."""
    return len(_children(demo.process.pid, "spawn_main")) >= 1


def _trains(demo: StartedDemo) -> bool:
    return " step " in demo.output()


@pytest.mark.parametrize(
    ("moment", "kill", "number", "status"),
    [
        (_imports_torch, os.killpg, signal.SIGINT, 130),
        (_imports_torch, os.killpg, signal.SIGTERM, 143),
        (_trains, os.kill, signal.SIGTERM, 143),
    ],
    ids=["ctrl-c", "service-manager", "kill"],
)
def test_a_signal_on_the_way_ends_everything_with_one_line(
    tmp_path: Path, moment: Callable[[StartedDemo], bool], kill: Callable[[int, int], None], number: int, status: int
) -> None:
    with started_demo(tmp_path) as demo:
        demo.wait_until(lambda: moment(demo))
        assert demo.tell(kill, number) == status
        last = demo.output().splitlines()[-1]
        assert last.startswith("Stopped: nothing of the demo is running any more.")
        assert last.count(str(demo.home)) == 1
        assert "Traceback" not in demo.output()
        assert "Aborted" not in demo.output()


def _children(pid: int, word: str) -> list[int]:
    found = psutil.Process(pid).children(recursive=True)
    return [each.pid for each in found if any(word in part for part in each.cmdline())]


@pytest.mark.parametrize(
    ("given", "environment", "home"),
    [
        ([], {}, Path("~/.loraplex/demo").expanduser()),
        (["--home", "/mine"], {"LORAPLEX_HOME": "/users"}, Path("/mine")),
        ([], {"LORAPLEX_HOME": "/users"}, Path("/users/demo")),
    ],
    ids=["default", "flag", "environment"],
)
def test_the_users_own_registry_gets_no_tenants_of_the_demo(
    given: list[str], environment: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORAPLEX_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ctx = command.make_context("demo", given)
    assert demo_home(ctx, ctx.params["home"]) == home


@pytest.mark.parametrize("plan", [full_plan(), quick_plan()], ids=["full", "quick"])
def test_plans_have_more_adapters_than_slots_and_two_tenants(plan: Any) -> None:
    assert len(plan.adapters) > plan.adapter_slots
    assert len(plan.tenants) == 2
    assert any(adapter.alias for adapter in plan.adapters)
