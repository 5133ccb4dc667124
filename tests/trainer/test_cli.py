"""The command end to end: from a data file to an adapter in a real registry, and one clean line for what is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from registry.opening import open_registry
from registry.principal import Principal
from tests.trainer.workshop import Bench, animal_rows, write_rows
from trainer.cli import train
from trainer.events import PhaseAdvanced, PhaseStarted, StepDone, Validated
from trainer.progress import RunProgress

OPERATOR = Principal.operator()


def call(bench: Bench, *arguments: str) -> Result:
    return CliRunner().invoke(train, [*arguments, "--home", str(bench.home)])


def flags(bench: Bench, *more: str) -> list[str]:
    return [
        *("--base", str(bench.base), "--train", str(bench.train), "--validation", str(bench.validation)),
        *("--run", str(bench.folder / "run"), "--max-steps", "4", "--r", "8", "--learning-rate", "5e-3"),
        *more,
    ]


def job_file(bench: Bench, extra: str = "") -> Path:
    path = bench.folder / "job.toml"
    more = f'[evaluation]\nvalidation = "validation.jsonl"\n[output]\nrun = "run"\n{extra}'
    path.write_text(
        f'[base]\nsource = "{bench.base}"\n[data]\ntrain = "train.jsonl"\n[adapter]\nr = 8\n[optimization]\n'
        f"max_steps = 4\nlearning_rate = 5e-3\n{more}"
    )
    return path


def test_it_trains_evaluates_publishes_and_says_what_to_do_next(bench: Bench, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    publish = ("--publish", "acme/animals", "--alias", "prod", "--visibility", "public", "--registry", str(registry))
    outcome = call(bench, *flags(bench, *publish))
    assert outcome.exit_code == 0, outcome.output
    for words in ("validation loss", "perplexity", "exact match", "base", "adapter", "loss.png"):
        assert words in outcome.stdout
    assert re.search(r"published +acme/animals@1, alias prod +sha256:[0-9a-f]{12}", outcome.stdout)
    served = f"loraplex serve --base {bench.base} --home {bench.home} --registry {registry}"
    assert served in outcome.stdout
    assert "/v1/chat/completions" in outcome.stdout
    assert '"model": "acme/animals@1"' in outcome.stdout
    assert "96 rows to train, 16 to validate (chat)" in outcome.stderr
    assert re.search(r"step 4/4  loss [\d.]+.* tok/s  0:00 left", outcome.stderr)
    with open_registry(registry) as reg:
        version = reg.resolve("acme/animals@prod", principal=OPERATOR)
        assert version.base_verified
        assert (version.number, version.rank, version.visibility) == (1, 8, "public")
        assert version.manifest is not None
        assert version.manifest["training"]["steps"] == 4
        pulled = reg.pull(version, tmp_path / "pulled")
    for path in pulled.iterdir():
        assert path.read_bytes() == (bench.folder / "run" / "adapter" / path.name).read_bytes()


def test_a_mixture_is_published_after_its_experts(bench: Bench, tmp_path: Path) -> None:
    """One expert is a version, one a folder, one begins fresh: the mixture names all three by digest."""
    registry = tmp_path / "registry"
    place = ("--registry", str(registry))
    assert call(bench, *flags(bench, "--publish", "acme/first", "--alias", "prod", *place)).exit_code == 0
    assert call(bench, *flags(bench, "--seed", "1", "--overwrite")).exit_code == 0
    second = (bench.folder / "run" / "adapter").rename(bench.folder / "second")
    arguments = [
        *("--base", str(bench.base), "--train", str(bench.train), "--validation", str(bench.validation)),
        *("--method", "switch", "--experts", f"acme/first@prod,{second}", "--no-train-experts"),
        *("--new-experts", "1", "--r", "4"),
        *("--run", str(bench.folder / "mixture"), "--max-steps", "3", "--no-exact-match", *place),
    ]
    outcome = call(bench, *arguments, "--publish", "acme/assistant", "--alias", "prod")
    assert outcome.exit_code == 0, outcome.output
    assert re.search(r"published +acme/assistant@1, alias prod", outcome.stdout)
    assert '"model": "acme/assistant@1"' in outcome.stdout
    assert "1 acme/first@1  sha256:" in outcome.stdout
    document = json.loads((bench.folder / "mixture" / "adapter" / "loraplex_mixture.json").read_text())
    with open_registry(registry) as reg:
        names = ("acme/first@prod", "acme/assistant-2", "acme/assistant-3")
        assert document["experts"] == [reg.resolve(name, principal=OPERATOR).digest for name in names]
        pulled = reg.pull(reg.resolve("acme/assistant@prod", principal=OPERATOR), tmp_path / "pulled")
    assert (pulled / "loraplex_mixture.json").is_file()
    outcome = call(bench, *arguments, "--overwrite")
    folder = bench.folder / "mixture"
    assert f"loraplex publish {second} TENANT/train-2 --home" in outcome.stdout
    assert f"loraplex publish {folder / 'adapter'} TENANT/train --home" in outcome.stdout


def test_json_is_one_document_on_stdout(bench: Bench) -> None:
    outcome = call(bench, str(job_file(bench)), "--json")
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    assert document["published"] is None
    assert document["steps"] == 4
    assert set(document["metrics"]) == {"base", "adapter"}
    assert Path(document["adapter_folder"], "adapter_model.safetensors").is_file()
    assert json.loads((bench.folder / "run" / "summary.json").read_text()) == {
        key: value for key, value in document.items() if key != "published"
    }


def test_a_file_and_flags_train_the_same_adapter(bench: Bench) -> None:
    assert call(bench, str(job_file(bench))).exit_code == 0
    weights = bench.folder / "run" / "adapter" / "adapter_model.safetensors"
    from_file = weights.read_bytes()
    assert call(bench, *flags(bench, "--overwrite")).exit_code == 0
    assert weights.read_bytes() == from_file


def test_prompts_and_completions_get_the_other_curl(bench: Bench, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["messages"][0]["content"], "completion": " " + row["messages"][1]["content"]}
        for row in animal_rows(30, seed=3)
    ]
    write_rows(bench.train, rows)
    publish = ("--publish", "acme/plain", "--registry", str(tmp_path / "registry"))
    arguments = flags(bench, *publish)
    index = arguments.index("--validation")
    outcome = call(bench, *arguments[:index], *arguments[index + 2 :])
    assert outcome.exit_code == 0, outcome.output
    assert "/v1/completions" in outcome.stdout
    assert "(prompt-completion)" in outcome.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("[optimization2]\nlr = 1\n", "optimization2: is no setting of a job. Did you mean 'optimization'?"),
        ("runn = 1\n", "output.runn: is no setting of a job. Did you mean 'output.run'?"),
        ('publish = "No Name"\n', "No Name"),
        ('publish = "acme/x"\nalias = "a b"\n', "a b"),
        ('message = "x"\n', "only where publish is given"),
    ],
)
def test_a_wrong_job_is_one_line_before_anything_is_loaded(bench: Bench, change: str, words: str) -> None:
    outcome = call(bench, str(job_file(bench, change)))
    assert outcome.exit_code == 1
    assert words in outcome.stderr
    assert outcome.stderr.startswith("Error: ")
    assert len(outcome.stderr.splitlines()) == 1
    assert not (bench.folder / "run").exists()


def test_wrong_data_is_one_line_with_its_number(bench: Bench) -> None:
    bench.train.write_text(bench.train.read_text() + "{oops\n")
    outcome = call(bench, *flags(bench))
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith(f"Error: {bench.train}, line 97: is not JSON")
    assert len(outcome.stderr.splitlines()) == 1


def test_wrong_flags_are_named(bench: Bench) -> None:
    outcome = call(bench, *flags(bench, "--r", "0"))
    assert (outcome.exit_code, "the command: adapter.r: 0 is not allowed" in outcome.stderr) == (1, True)
    outcome = call(bench, *flags(bench, "--base", str(bench.folder / "nothing")))
    assert outcome.exit_code == 1
    assert "nothing" in outcome.stderr
    outcome = call(bench, *flags(bench, "--resume", "--overwrite"))
    assert outcome.exit_code == 2
    outcome = call(bench, "--r", "4")
    assert outcome.exit_code == 2
    assert "Give a job file, or at least --train FILE." in outcome.stderr


def test_the_same_run_folder_twice_needs_a_decision(bench: Bench) -> None:
    assert call(bench, *flags(bench)).exit_code == 0
    outcome = call(bench, *flags(bench))
    assert outcome.exit_code == 1
    assert "--overwrite" in outcome.stderr
    outcome = call(bench, *flags(bench, "--resume"))
    assert "that run is finished" in outcome.stderr


def test_ctrl_c_leaves_a_state_that_resume_completes_to_the_bit(bench: Bench) -> None:
    whole = call(bench, *flags(bench, "--max-steps", "12", "--run", str(bench.folder / "whole"), "--no-exact-match"))
    assert whole.exit_code == 0, whole.output
    arguments = flags(bench, "--max-steps", "12", "--every-steps", "1", "--no-exact-match")
    code = "import sys; from trainer.cli import train; train(sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, *arguments, "--home", str(bench.home)]
    lines: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 2  validation loss"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(lines)
    assert any("the run can be resumed" in line for line in lines)
    assert re.match(r"Error: stopped after step \d+ of 12; .*--resume", lines[-1])
    resumed = call(bench, *arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    names = [bench.folder / run / "adapter" / "adapter_model.safetensors" for run in ("whole", "run")]
    assert names[0].read_bytes() == names[1].read_bytes()


class Screen:
    """A console that keeps what is printed."""

    def __init__(self, *, terminal: bool):
        self.text = StringIO()
        self.console = Console(file=self.text, force_terminal=terminal, width=120)


def step(number: int, **changes: Any) -> StepDone:
    values = {
        "step": number, "steps": 100, "epoch": 0, "loss": 1.25, "learning_rate": 1e-3, "grad_norm": 0.5,
        "tokens_per_s": 1234.0, "seconds_left": 3725.0,
    }  # fmt: skip
    return StepDone(**(values | changes))


def test_progress_is_sparse_lines_where_there_is_no_terminal() -> None:
    now = 0.0
    screen = Screen(terminal=False)
    with RunProgress(screen.console, clock=lambda: now) as progress:
        for number in range(1, 101):
            now += 1.0
            progress(step(number))
            if number == 50:
                progress(Validated(50, 0.75, is_best=True, patience_left=None))
    lines = screen.text.getvalue().splitlines()
    assert lines[0] == "step 1/100  loss 1.2500  1,234 tok/s  1:02:05 left"
    assert "step 50  validation loss 0.7500, the best so far" in lines
    assert lines[-1].startswith("step 100/100  loss 1.2500  val 0.7500")
    assert len(lines) == 12


def test_progress_is_a_bar_on_a_terminal() -> None:
    screen = Screen(terminal=True)
    with RunProgress(screen.console) as progress:
        progress(PhaseStarted("Exact match of the base", total=4))
        progress(PhaseAdvanced(3))
        time.sleep(0.15)
    text = screen.text.getvalue()
    assert "Exact match of the base" in text
    assert "3/4" in text
