"""A job is one description: TOML and flags agree, and what would not be honoured is refused with the key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import trainer.cli as cli
from trainer.errors import JobError
from trainer.job import Job, known_keys
from trainer.job_values import FAMILIAR_NAMES
from trainer.setting import reference_table, settings

TOML = """
name = "sql"
[base]
source = "acme/base@main"
quantization = "bf16"
device = "cpu"
[data]
train = "train.jsonl"
format = "chat"
as_chat = false
max_row_tokens = 512
too_long = "truncate"
[adapter]
method = "lora"
r = 16
alpha = 8
dropout = 0.05
target_modules = ["q_proj", "v_proj"]
rslora = true
dtype = "bfloat16"
[optimization]
max_steps = 100
learning_rate = 1e-4
schedule = "linear"
warmup_ratio = 0.1
batch_rows = 4
gradient_accumulation = 2
gradient_checkpointing = "on"
max_grad_norm = 0.3
weight_decay = 0.01
seed = 7
[evaluation]
validation = "held.csv"
every_steps = 10
early_stopping_patience = 3
exact_match = false
loss_rows = 100
exact_match_rows = 50
[output]
run = "here"
publish = "acme/sql"
visibility = "public"
alias = "prod"
message = "a-note"
"""
FLAGS = """
--name sql --base acme/base@main --quantization bf16 --device cpu --train train.jsonl --format chat --no-as-chat
--max-row-tokens 512 --too-long truncate --method lora --r 16 --alpha 8 --dropout 0.05
--target-modules q_proj,v_proj --rslora --dtype bfloat16 --max-steps 100 --learning-rate 1e-4 --schedule linear
--warmup-ratio 0.1 --batch-rows 4 --gradient-accumulation 2 --gradient-checkpointing on --max-grad-norm 0.3
--weight-decay 0.01 --seed 7 --validation held.csv --every-steps 10 --early-stopping-patience 3 --no-exact-match
--loss-rows 100 --exact-match-rows 50 --run here --publish acme/sql --visibility public --alias prod --message a-note
""".split()


MORE = """
[data]
train = "train.jsonl"
[adapter]
init_from = "acme/sql@prod"
"""
MORE_FLAGS = "--train train.jsonl --init-from acme/sql@prod".split()
MIXTURE = """
[data]
train = "train.jsonl"
[adapter]
method = "switch"
r = 4
[mixture]
experts = ["acme/sql@prod", "./log2json"]
new_experts = 1
train_experts = false
top_k = 3
gate_context = "running_mean"
gate_decay = 0.9
gate_learning_rate = 0.1
balance = 0.5
"""
MIXTURE_FLAGS = """
--train train.jsonl --method switch --r 4 --experts acme/sql@prod,./log2json --new-experts 1 --no-train-experts
--top-k 3 --gate-context running_mean --gate-decay 0.9 --gate-learning-rate 0.1 --balance 0.5
""".split()


def job_of(*arguments: str, monkeypatch: pytest.MonkeyPatch, **context: Any) -> Job:
    """The job that the command would run with these arguments."""
    jobs: list[Job] = []

    def keep(job: Job, *_: Any, **__: Any) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", keep)
    monkeypatch.setattr(cli, "check_publication", lambda *_: None)
    outcome = CliRunner().invoke(cli.train, list(arguments), **context)
    assert jobs, outcome.output
    return jobs[0]


def test_a_file_and_flags_give_the_same_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(TOML)
    from_file = Job.from_toml(Path("job.toml"))
    assert job_of(*FLAGS, monkeypatch=monkeypatch) == from_file
    assert job_of("job.toml", monkeypatch=monkeypatch) == from_file
    mixture = Job.from_values(tomllib.loads(MIXTURE))
    assert job_of(*MIXTURE_FLAGS, monkeypatch=monkeypatch) == mixture
    assert job_of(*MORE_FLAGS, monkeypatch=monkeypatch) == Job.from_values(tomllib.loads(MORE))
    given = {word for word in [*FLAGS, *MIXTURE_FLAGS, *MORE_FLAGS] if word.startswith("--")}
    not_given = {setting.flag for setting in settings() if setting.kind != "switch"} - given
    assert not_given == {"--epochs", "--batch-tokens", "--validation-fraction"}, "each excludes one that is given"


def test_a_flag_wins_over_the_file_which_wins_over_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.toml"
    file.write_text('[data]\ntrain = "x.jsonl"\n[optimization]\nmax_steps = 5\nseed = 3\n')
    job = job_of(
        str(file),
        "--epochs",
        "2",
        monkeypatch=monkeypatch,
        default_map={"setting_optimization_seed": 9, "setting_adapter_r": 4},
    )
    assert (job.optimization.epochs, job.optimization.max_steps) == (2, None), "one of a pair displaces the other"
    assert job.optimization.seed == 3
    assert job.adapter.r == 4


def test_paths_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[base]\nsource = "./model"\n[data]\ntrain = "d/x.jsonl"\n')
    job = Job.from_toml(tmp_path / "job.toml")
    assert job.data.train == tmp_path / "d" / "x.jsonl"
    assert job.base.source == str(tmp_path / "model")


def test_experts_of_a_file_are_names_or_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(MIXTURE)
    job = Job.from_toml(tmp_path / "job.toml")
    assert job.mixture.experts == ("acme/sql@prod", str(tmp_path / "log2json"))
    assert job.to_json()["mixture"]["experts"] == ["acme/sql@prod", "log2json"]
    assert job.mode == "nf4"
    assert "mixture" not in Job.from_values({"data": {"train": "x.jsonl"}}).to_json()


def test_a_job_shows_no_path_of_this_machine(tmp_path: Path) -> None:
    values = {
        "base": {"source": str(tmp_path / "model")},
        "data": {"train": tmp_path / "x.jsonl"},
        "evaluation": {"validation": tmp_path / "v.csv"},
        "output": {"run": tmp_path / "run"},
    }
    document = Job.from_values(values).to_json()
    assert str(tmp_path) not in str(document)
    assert document["data"]["train"] == "x.jsonl"
    assert document["base"]["source"] == "model"


def switch(*, adapter: dict[str, Any] | None = None, optimization: Any = None, **mixture: Any) -> dict[str, Any]:
    return {
        "adapter": {"method": "switch", **(adapter or {})},
        "mixture": {"experts": ["./a", "./b"], **mixture},
        "optimization": optimization or {},
    }


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({}, "data.train", "required"),
        ({"data": {"trian": "x"}}, "data.trian", "Did you mean 'data.train'?"),
        ({"optimisation": {"epochs": 1}}, "optimisation", "Did you mean 'optimization'?"),
        ({"optimization": {"learning_rat": 1}}, "optimization.learning_rat", "'optimization.learning_rate'"),
        ({"adapter": {"epochs": 1}}, "adapter.epochs", "'optimization.epochs'"),
        ({"optimization": {"lr": 1e-3}}, "optimization.lr", "'optimization.learning_rate'"),
        ({"lora_alpha": 3}, "lora_alpha", "'adapter.alpha'"),
        ({"adapter": {"r": 0}}, "adapter.r", "0 is not allowed: expected `int` >= 1"),
        ({"adapter": {"r": 1.5}}, "adapter.r", "1.5"),
        ({"adapter": {"r": True}}, "adapter.r", "True"),
        ({"adapter": {"dropout": 1.0}}, "adapter.dropout", "< 1.0"),
        ({"adapter": {"method": "dora"}}, "adapter.method", 'one of "lora", "qlora", "switch"'),
        ({"mixture": {"top_k": 3}}, None, 'only where adapter.method is "switch"'),
        (switch(experts=["./a"]), None, "2 to 16 experts, and mixture.experts with mixture.new_experts are 1"),
        (switch(experts=["./a"], new_experts=16), None, "are 17"),
        (switch(experts=["./a", "./a"]), "mixture", "each one once"),
        (switch(top_k=3), None, "mixture.top_k is 3, and there are 2 experts"),
        (switch(gate_context="token", gate_decay=0.5), "mixture", "gate_decay has a meaning only"),
        (switch(gate_decay=1.0), "mixture.gate_decay", "< 1.0"),
        (switch(experts=[], new_experts=2, train_experts=False), None, "none is named"),
        ({"adapter": {"init_from": "./a", "r": 4}}, None, "adapter.r: adapter.init_from names an adapter"),
        (switch(adapter={"init_from": "./a"}), None, "a mixture begins with mixture.experts"),
        (switch(adapter={"r": 4}), None, "adapter.r: of experts that train here"),
        (switch(train_experts=False, adapter={"dtype": "bfloat16"}), None, "adapter.dtype"),
        (
            switch(train_experts=False, optimization={"learning_rate": 0.1}),
            None,
            "optimization.learning_rate: of experts that train here",
        ),
        (switch(train_experts=False, adapter={"alpha": 4}), None, "adapter.alpha"),
        (switch(new_experts=1, adapter={"dropout": 0.1}), None, "adapter.dropout is not for mixtures"),
        ({"adapter": {"target_modules": []}}, "adapter", "at least one"),
        ({"adapter": {"target_modules": ["q_proj", "q_proj"]}}, "adapter", "each one once"),
        ({"adapter": {"target_modules": [".*"]}}, "adapter.target_modules[0]", "regex"),
        ({"optimization": {"learning_rate": 0}}, "optimization.learning_rate", "> 0"),
        ({"optimization": {"learning_rate": float("nan")}}, "optimization.learning_rate", "finite"),
        ({"optimization": {"warmup_ratio": -0.1}}, "optimization.warmup_ratio", ">= 0"),
        ({"optimization": {"epochs": 1, "max_steps": 1}}, "optimization", "exclude each other"),
        ({"optimization": {"batch_rows": 1, "batch_tokens": 1}}, "optimization", "exclude each other"),
        ({"optimization": {"seed": -1}}, "optimization.seed", ">= 0"),
        ({"evaluation": {"validation_fraction": 0.9}}, "evaluation.validation_fraction", "<= 0.5"),
        ({"evaluation": {"early_stopping_patience": 1, "validation_fraction": 0}}, "evaluation", "needs validation"),
        ({"output": {"alias": "prod"}}, "output", "only where publish is given"),
        ({"base": {"quantization": "bf16"}}, None, "qlora"),
        ({"adapter": {"method": "lora"}, "base": {"quantization": "nf4"}}, None, "qlora"),
        ({"data": 3}, "data", "section"),
        ({"name": "../x"}, "name", "regex"),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused(values: dict[str, Any], key: str | None, words: str) -> None:
    if values and isinstance(values.get("data", {}), dict) and "trian" not in values.get("data", {}):
        values = {**values, "data": {"train": "x.jsonl", **values.get("data", {})}}
    with pytest.raises(JobError) as error:
        Job.from_values(values, origin="job.toml")
    assert error.value.key == key
    assert words in str(error.value)
    assert str(error.value).startswith("job.toml: ")


def test_a_file_that_is_no_toml_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"none\.toml: cannot be read: No such file"):
        Job.from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[data\n")
    with pytest.raises(JobError, match=r"bad\.toml: is not TOML: .*line 1"):
        Job.from_toml(tmp_path / "bad.toml")


def test_familiar_names_lead_to_settings_that_exist() -> None:
    dotted = {setting.dotted for setting in settings()}
    assert set(FAMILIAR_NAMES.values()) <= dotted
    assert not set(FAMILIAR_NAMES) & {setting.key for setting in settings()}


def test_every_flag_is_one_setting() -> None:
    flags = [setting.flag for setting in settings()]
    assert len(set(flags)) == len(flags)
    names = {option for parameter in cli.train.params for option in parameter.opts}
    assert set(flags) <= names


@pytest.mark.parametrize("section", [None, *[name for name, keys in known_keys().items() if keys]])
def test_the_reference_in_the_documentation_is_the_job_itself(section: str | None) -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    assert reference_table(section) in page, f"docs/training.md is behind; it needs:\n{reference_table(section)}"


@pytest.mark.parametrize(
    ("publish", "train", "expected"),
    [("acme/sql", "x.jsonl", "sql"), (None, "my data.jsonl", "my-data"), (None, "….csv", "run")],
)
def test_a_run_has_a_name(publish: str | None, train: str, expected: str) -> None:
    job = Job.from_values({"data": {"train": train}, "output": {"publish": publish}})
    assert job.run_name == expected
