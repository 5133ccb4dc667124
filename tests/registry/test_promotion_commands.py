"""The commands about policies, attestations, canaries, lineage, cards and diffs, through the real `loraplex`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import registry
from loraplex.cli import main
from tests.registry.adapter_folders import FINGERPRINT, manifest_document

OPERATOR = registry.Principal.operator()
NAME = "acme/sql"


class Shell:
    def __init__(self, place: Path) -> None:
        self.place = place

    def run(self, *arguments: object, stdin: str | None = None) -> Result:
        words = [str(argument) for argument in arguments]
        return CliRunner().invoke(main, [*words, "--registry", str(self.place)], input=stdin)

    def ok(self, *arguments: object, stdin: str | None = None) -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.ok(*arguments, "--json"))


@pytest.fixture
def shell(reg_sqlite: registry.Registry, make_adapter: Callable[..., Path]) -> Shell:
    first = reg_sqlite.publish(make_adapter(seed=1), NAME, principal=OPERATOR)
    manifest = manifest_document(parent=first.digest, metrics={"adapter": {"exact_match": 0.95}})
    reg_sqlite.publish(make_adapter(seed=2, manifest=manifest), NAME, principal=OPERATOR)
    reg_sqlite.promote(f"{NAME}@1", "prod", principal=OPERATOR)
    assert reg_sqlite.folder is not None
    return Shell(reg_sqlite.folder)


def test_a_policy_from_a_file_to_a_promotion(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "prod.toml"
    file.write_text('approvals = 1\n[[metrics]]\nmetric = "exact_match"\nbetter = "higher"\nmargin = 0.01\n')
    shown = shell.ok("policy", "set", NAME, file, "--alias", "prod")
    assert "metric exact_match: better than the incumbent by 0.01" in shown
    assert shell.json("policy", "show", NAME)[0]["policy"]["approvals"] == 1
    checked = shell.run("policy", "check", f"{NAME}@2", "--alias", "prod")
    assert checked.exit_code == 1
    assert "Version 2 does not pass the policy of prod" in checked.stdout
    assert "loraplex approve acme/sql@2 --alias prod" in checked.stdout
    refused = shell.run("promote", f"{NAME}@2", "--alias", "prod")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: Version 2 of 'acme/sql' does not pass the policy of alias 'prod'")
    assert shell.ok("approve", f"{NAME}@2", "--alias", "prod") == "acme/sql@2: approval for prod, passed\n"
    move = shell.json("promote", f"{NAME}@2", "--alias", "prod")
    assert [check["passed"] for check in move["gate"]["checks"]] == [True, True]
    shell.ok("policy", "rm", NAME, "--alias", "prod")
    assert "No policies yet" in shell.ok("policy", "show", NAME)
    assert "has no policy" in shell.ok("policy", "check", f"{NAME}@1", "--alias", "prod")


@pytest.mark.parametrize(
    ("text", "fault"), [("{", "it is not JSON"), ('{"approvals": 99}', "<= 16"), ('{"x": 1}', "unknown field")]
)
def test_a_policy_on_stdin_is_strict(shell: Shell, text: str, fault: str) -> None:
    result = shell.run("policy", "set", NAME, "-", "--alias", "prod", stdin=text)
    assert result.exit_code == 1
    assert fault in result.stderr
    assert shell.ok("policy", "set", NAME, "-", "--alias", "prod", stdin='{"signed": true}').endswith("trusted key\n")


def test_attestations(shell: Shell) -> None:
    evaluation = ("attest", "evaluation", f"{NAME}@2", "--name", "golden", "--metric", "accuracy=0.93", "--metric")
    assert shell.ok(*evaluation, "a=b=1e-3") == "acme/sql@2: evaluation golden, a=b 0.001, accuracy 0.93\n"
    shell.ok("attest", "probes", f"{NAME}@2", "--failed", "--note", "two of three")
    shell.ok("attest", "scan", f"{NAME}@2", "--name", "first", "--passed")
    listed = shell.ok("attest", "ls", f"{NAME}@2")
    assert "two of three" in listed
    assert [row["kind"] for row in shell.json("attest", "ls", NAME)] == ["evaluation", "probe", "scan"]
    assert "Nothing is attested" in shell.ok("attest", "ls", f"{NAME}@1")
    wrong = shell.run(*evaluation, "accuracy")
    assert wrong.exit_code == 2
    assert "is not NAME=VALUE" in wrong.stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rollback acme/sql --alias ", ["prod"]),
        ("canary start acme/sql@2 --alias p", ["prod"]),
        ("delete acme/sql@", ["acme/sql@prod", "acme/sql@2", "acme/sql@1"]),
        ("diff acme/sql@1 acme/", ["acme/sql"]),
        ("rollback --alias ", []),
    ],
)
def test_what_a_shell_completes(shell: Shell, line: str, expected: list[str]) -> None:
    words = f"loraplex {line}"
    known = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_LORAPLEX_COMPLETE": "bash_complete"}
    env = known | {"LORAPLEX_REGISTRY": str(shell.place)}
    said = CliRunner().invoke(main, [], env=env, prog_name="loraplex").stdout
    assert [entry.removeprefix("plain,") for entry in said.split()] == expected


def test_a_canary(shell: Shell) -> None:
    started = shell.ok("canary", "start", f"{NAME}@2", "--alias", "prod", "--percent", "2.5")
    assert started.startswith("acme/sql@prod gives 2.5% of its requests to version 2\n")
    for command in ("show", "ls"):
        assert "2.5% of prod" in shell.ok(command, NAME)
    assert shell.json("show", NAME)["canaries"][0]["permille"] == 25
    assert shell.json("canary", "weight", NAME, "--alias", "prod", "--percent", 50)["permille"] == 500
    assert "50%" in shell.ok("canary", "show", NAME)
    for percent in ("0", "100.1", "0.05", "2.55"):
        result = shell.run("canary", "weight", NAME, "--alias", "prod", "--percent", percent)
        assert result.exit_code == 2, percent
    assert "acme/sql@prod now points at version 2" in shell.ok("canary", "promote", NAME, "--alias", "prod")
    assert "No canary runs" in shell.ok("canary", "show", NAME)
    shell.ok("canary", "start", f"{NAME}@1", "--alias", "prod", "--percent", "100")
    assert "(it was version 1)" in shell.ok("canary", "stop", NAME, "--alias", "prod")
    assert shell.run("canary", "stop", NAME, "--alias", "prod").exit_code == 1


def test_lineage(shell: Shell) -> None:
    tree = shell.ok("lineage", NAME).splitlines()
    assert tree[0].startswith("acme/sql@1  sha256:")
    assert tree[1].startswith("  acme/sql@2 *  sha256:")
    assert any(line.startswith("base ") and line.endswith("embedded") for line in tree)
    assert len(shell.json("lineage", "--base", FINGERPRINT)["nodes"]) == 4
    assert shell.run("lineage").exit_code == 2
    assert shell.run("lineage", NAME, "--base", FINGERPRINT).exit_code == 2


def test_card_and_diff(shell: Shell) -> None:
    assert shell.ok("card", NAME).startswith("---\nbase_model:")
    assert shell.json("card", NAME)["markdown"] == shell.ok("card", f"{NAME}@2")
    shown = shell.ok("diff", f"{NAME}@1", f"{NAME}@2")
    assert "acme/sql@1 → acme/sql@2, for the same base" in shown
    assert "model.layers.0.self_attn.q_proj" in shown
    assert shell.json("diff", f"{NAME}@1", f"{NAME}@2", "--no-weights")["modules"] is None


def test_show_says_who_can_serve_it(shell: Shell) -> None:
    shown = shell.ok("show", f"{NAME}@2")
    assert "vllm      yes (max_lora_rank 8)" in shown
    assert "peft      yes (min_version 0.14.0)" in shown
    assert shell.json("show", f"{NAME}@2")["version"]["serving"]["vllm"]["needs"] == {"max_lora_rank": 8}
