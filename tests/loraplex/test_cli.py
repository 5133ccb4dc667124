"""The command as a user meets it: quick help, honest settings, errors without a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from loraplex.cli import COMMANDS, main
from loraplex.lazy_group import SHOWN_TO_USERS, is_shown_to_users

HEAVY = ("torch", "transformers", "litestar", "sqlalchemy", "matplotlib", "httpx", "obstore", "psycopg", "cryptography")


def test_help_and_settings_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from loraplex.cli import main\n"
        "assert CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "assert CliRunner().invoke(main, ['version']).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_loads_and_has_the_listed_help(name: str) -> None:
    command = COMMANDS[name].load()
    assert command.name == name
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert command.help, f"{name} has no help"


def test_each_option_of_each_command_is_explained() -> None:
    silent = []

    def walk(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(f"{path} {name}", child)
        silent.extend(
            f"{path} {param.opts[0]}"
            for param in command.params
            if isinstance(param, click.Option) and not param.help and not param.hidden
        )

    for name, entry in COMMANDS.items():
        walk(name, entry.load())
    assert silent == []


def test_names_are_completed_wherever_one_is_asked_for() -> None:
    silent = []

    def walk(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(f"{path} {name}", child)
        for param in command.params:
            is_reference = isinstance(param, click.Argument) and "TENANT/NAME" in (param.metavar or "")
            is_name = is_reference or "--alias" in param.opts or "--tenant" in param.opts
            if is_name and param._custom_shell_complete is None:
                silent.append(f"{path} {param.name}")

    for name, entry in COMMANDS.items():
        if name != "train":  # its options are the fields of a job
            walk(name, entry.load())
    assert silent == []


def test_lists_of_commands_are_not_cut_short() -> None:
    groups = [(name, found) for name, entry in COMMANDS.items() if isinstance(found := entry.load(), click.Group)]
    assert len(groups) > 8
    for name, group in groups:
        listed = CliRunner().invoke(main, [name, "--help"]).output
        assert "..." not in listed.split("Commands:")[1], name
        assert all(f"\n  {command} " in listed for command in group.commands), name


def test_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["srve"])
    assert result.exit_code == 2
    assert "srve" in result.output


def test_the_named_error_roots_exist_and_are_shown() -> None:
    for name in SHOWN_TO_USERS:
        module, _, attribute = name.rpartition(".")
        code = f"from {module} import {attribute}"
        scope: dict[str, type[Exception]] = {}
        exec(code, scope)
        kind = scope[attribute]
        assert is_shown_to_users(type("Below", (kind,), {"__init__": lambda self: None})())
    assert not is_shown_to_users(ValueError("ours to mend"))


def test_an_error_on_purpose_has_no_traceback(tmp_path: Path) -> None:
    bad = tmp_path / "loraplex.toml"
    bad.write_text("[doctor]\nprot = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "loraplex", "--config", str(bad), "doctor"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Did you mean 'port'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_version_names_what_it_stands_on() -> None:
    versions = json.loads(CliRunner().invoke(main, ["version", "--json"]).output)
    assert versions["loraplex"] == "0.1.0"
    assert versions["torch"]


def test_shell_completion_lists_commands() -> None:
    result = CliRunner().invoke(
        main, [], env={"_LORAPLEX_COMPLETE": "bash_complete", "COMP_WORDS": "loraplex pro", "COMP_CWORD": "1"},
        prog_name="loraplex",
    )  # fmt: skip
    assert "promote" in result.output


def test_what_names_the_registry_has_one_name_in_the_environment() -> None:
    """`LORAPLEX_REGISTRY` names it for every command: one that forgets it acts on another registry."""
    names = {"--registry": "LORAPLEX_REGISTRY", "--token": "LORAPLEX_TOKEN", "--blobs": "LORAPLEX_BLOBS"}
    found: dict[str, list[str]] = {}

    def walk(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(f"{path} {name}", child)
        options = {flag: param for param in command.params for flag in param.opts}
        if path != " doctor":  # it looks at a folder of this machine
            for option in options.keys() & names.keys():
                assert options[option].envvar == names[option], (path, option)
                found.setdefault(option, []).append(path)
            assert ("--registry" in options) <= ("--blobs" in options), path

    for name in COMMANDS:
        walk(f" {name}", COMMANDS[name].load())
    assert all(" serve" in found[option] for option in names)
    assert " registry serve" in found["--blobs"]


def test_every_command_prints_json_for_programs() -> None:
    silent = []

    def walk(path: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                walk(f"{path} {name}", child)
        elif not any("--json" in param.opts for param in command.params):
            silent.append(path)

    for name in COMMANDS:
        walk(name, COMMANDS[name].load())
    assert sorted(silent) == ["completion", "registry serve", "serve"]
