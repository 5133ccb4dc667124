"""Settings: default < file < environment < flag, and nothing in a file that nobody honours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from loraplex.cli import COMMANDS, main
from loraplex.settings import parameters_by_option


def invoke(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, list(args), env={"LORAPLEX_HOME": None, "LORAPLEX_CONFIG": None} | (env or {}))


def settings_of(command: str, *args: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = invoke(*args, "config", command, "--json", env=env)
    assert result.exit_code == 0, result.output
    return {f"{row['command']} {row['option']}": (row["value"], row["origin"]) for row in json.loads(result.output)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text('home = "/srv/lora"\n[doctor]\nport = 8123\n[base.prepare]\nmode = "bf16"\n')
    return path


def test_default() -> None:
    assert settings_of("doctor")["doctor --port"] == (8000, "default")


def test_file_wins_over_default(file: Path) -> None:
    found = settings_of("doctor", "--config", str(file))
    assert found["doctor --port"] == (8123, f"file {file}")
    assert found["doctor --home"] == ("/srv/lora", f"file {file}")


def test_environment_wins_over_file(file: Path) -> None:
    env = {"LORAPLEX_DOCTOR_PORT": "9001", "LORAPLEX_HOME": "/elsewhere"}
    found = settings_of("doctor", "--config", str(file), env=env)
    assert found["doctor --port"] == ("9001", "environment LORAPLEX_DOCTOR_PORT")
    assert found["doctor --home"] == ("/elsewhere", "environment LORAPLEX_HOME")


def test_flag_wins_over_everything(file: Path, tmp_path: Path) -> None:
    home = tmp_path / "from-flag"
    result = invoke("--config", str(file), "base", "ls", "--home", str(home), env={"LORAPLEX_HOME": "/elsewhere"})
    assert str(home) in result.output


def test_shared_key_reaches_a_command_in_a_group(file: Path) -> None:
    found = settings_of("base", "--config", str(file))
    assert found["base prepare --home"] == ("/srv/lora", f"file {file}")
    assert found["base prepare --mode"] == ("bf16", f"file {file}")
    assert found["base show --mode"] == ("nf4", "default")


def test_the_environment_names_the_file(file: Path) -> None:
    assert settings_of("doctor", env={"LORAPLEX_CONFIG": str(file)})["doctor --port"][0] == 8123


def test_the_working_directory_has_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.rename(file.with_name("loraplex.toml"))
    monkeypatch.chdir(file.parent)
    assert settings_of("doctor")["doctor --port"] == (8123, "file loraplex.toml")


def test_changed_shows_only_what_was_set(file: Path) -> None:
    result = invoke("--config", str(file), "config", "--changed", "--json", "doctor")
    assert [row["option"] for row in json.loads(result.output)] == ["--home", "--port"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[doctor]\nprot = 1\n", "doctor.prot: `loraplex doctor` has no such option. Did you mean 'port'?"),
        ("[docter]\nport = 1\n", "docter: is neither a command nor one of home, registry. Did you mean 'doctor'?"),
        ("doctor = 3\n", "doctor: must be a table"),
        ("home = 3\n", "home: must be a path"),
        ("[base]\nprepare = 3\n", "base.prepare: must be a table"),
        ("[base.prepar]\nmode = 'nf4'\n", "base.prepar: `loraplex base` has no such command. Did you mean 'prepare'?"),
        ("port = \n", "is not TOML"),
        ("\xff\xfe", "is not TOML"),
    ],
)
def test_a_file_with_something_that_nothing_honours_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text.encode("latin-1"))
    result = invoke("--config", str(path), "base" if "base" in text else "doctor", *(["ls"] if "base" in text else []))
    assert result.exit_code == 1
    assert message in result.output


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    result = invoke("--config", str(tmp_path / "none.toml"), "version")
    assert result.exit_code == 2
    assert "'--config': File" in result.output
    assert "does not exist" in result.output


def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[doctor]\nport = "many"\n')
    result = invoke("--config", str(path), "doctor")
    assert result.exit_code == 2
    assert f"'--port' (from the settings file {path}): 'many' is not a valid integer" in result.output


@pytest.mark.parametrize(
    ("words", "option", "name", "value"),
    [
        (["doctor"], "--port", "LORAPLEX_DOCTOR_PORT", "many"),
        (["serve"], "--port", "LORAPLEX_SERVE_PORT", "70000"),
        (["serve"], "--upkeep", "LORAPLEX_SERVE_UPKEEP", "maybe"),
        (["base", "prepare"], "--mode", "LORAPLEX_BASE_PREPARE_MODE", "int3"),
        (["canary", "weight", "acme/a", "--alias", "prod"], "--percent", "LORAPLEX_CANARY_WEIGHT_PERCENT", "most"),
        (["registry", "serve", "--data", "none"], "--port", "LORAPLEX_REGISTRY_SERVE_PORT", "-1"),
        (["train"], "--r", "LORAPLEX_TRAIN_R", "big"),
        (["demo"], "--home", "LORAPLEX_HOME", __file__),
        (["version"], "--config", "LORAPLEX_CONFIG", "/no/such/file.toml"),
    ],
)
def test_a_bad_value_of_the_environment_is_refused_with_its_variable(
    words: list[str], option: str, name: str, value: str
) -> None:
    result = invoke(*words, env={name: value})
    assert result.exit_code == 2, result.output
    assert f"Invalid value for '{option}' (from the environment variable {name}): " in result.output


@pytest.mark.parametrize("words", [["serve"], ["ls"], ["base", "ls"], ["train"], ["demo"]])
def test_a_tilde_in_the_home_is_the_users(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke(*words, env={"HOME": str(tmp_path), "LORAPLEX_HOME": "~/file"})
    assert result.exit_code == 2, result.output
    assert f"{tmp_path / 'file'}' is a file" in result.output


def test_a_variable_has_the_name_of_its_flag() -> None:
    wrong = []

    def walk(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(f"{path} {name}", child)
            return
        for flag, name in parameters_by_option(command).items():
            param = next(param for param in command.params if param.name == name)
            own = f"loraplex {path} {flag}".replace(" ", "_").replace("-", "_").upper()
            if param.envvar not in (own, f"LORAPLEX_{flag.replace('-', '_').upper()}"):
                wrong.append((path, flag, param.envvar))

    for name, entry in COMMANDS.items():
        walk(name, entry.load())
    assert wrong == []
    found = settings_of("train", env={"LORAPLEX_TRAIN_MAX_STEPS": "7"})
    assert found["train --max-steps"] == ("7", "environment LORAPLEX_TRAIN_MAX_STEPS")


def test_a_bad_flag_is_refused_without_a_variable() -> None:
    result = invoke("doctor", "--port", "many", env={"LORAPLEX_DOCTOR_PORT": "9000"})
    assert "Invalid value for '--port': 'many'" in result.output


def test_of_two_variables_the_one_that_counts_is_named() -> None:
    env = {"LORAPLEX_DOCTOR_HOME": "/own", "LORAPLEX_HOME": ""}
    assert settings_of("doctor", env=env)["doctor --home"] == ("/own", "environment LORAPLEX_DOCTOR_HOME")
    env["LORAPLEX_HOME"] = "/shared"
    assert settings_of("doctor", env=env)["doctor --home"] == ("/shared", "environment LORAPLEX_HOME")
