"""The commands, through click's runner and a real registry folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import registry
from registry.cli import adapters, aliases, insight, tenants, upkeep
from registry.names import AdapterRef
from tests.registry.adapter_folders import (
    FINGERPRINT,
    OTHER_FINGERPRINT,
    base_document,
    manifest_document,
    write_json,
)

MakeAdapter = Callable[..., Path]
COMMANDS = (
    adapters.publish,
    adapters.ls,
    adapters.show,
    adapters.pull,
    adapters.promote,
    adapters.rollback,
    aliases.alias,
    insight.lineage,
    upkeep.gc,
    tenants.tenant,
    tenants.token,
)


class Shell:
    """Runs commands as a user with one home would."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._group = click.Group(commands={str(command.name): command for command in COMMANDS})

    def run(self, *arguments: object) -> Result:
        """Run one command line."""
        environment = {"LORAPLEX_HOME": str(self.home)}
        return CliRunner().invoke(self._group, [str(argument) for argument in arguments], env=environment)

    def ok(self, *arguments: object) -> str:
        """What a command prints that must succeed, with nothing on stderr."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    def json(self, *arguments: object) -> Any:
        """What a command prints with --json."""
        return json.loads(self.ok(*arguments, "--json"))

    def refused(self, *arguments: object) -> str:
        """The one line on stderr of a command that the registry refuses."""
        result = self.run(*arguments)
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)
        assert result.stdout == ""
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("Error: ").strip()


@pytest.fixture
def shell(loraplex_home: Path) -> Shell:
    """A home with the tiny base in its cache, as training leaves it."""
    folder = loraplex_home / "bases" / "embedded-nf4"
    folder.mkdir(parents=True)
    write_json(folder / "base.json", base_document())
    return Shell(loraplex_home)


def test_from_the_first_publish_to_a_rollback(shell: Shell, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    text = shell.ok("publish", make_adapter(seed=1), "acme/text2sql", "-m", "the first")
    assert text.startswith("Published acme/text2sql@1\n")
    assert "rank 4 on q_proj, v_proj" in text
    assert f"fingerprint {FINGERPRINT[:12]} (recorded by the trainer)" in text
    assert text.endswith("Next: loraplex promote acme/text2sql@1 --alias prod\n")

    text = shell.ok("publish", make_adapter(seed=2), "acme/text2sql", "--alias", "prod")
    assert "prod points at version 2" in text
    assert "acme/text2sql@prod" in text

    text = shell.ok("publish", make_adapter(seed=1), "acme/text2sql")
    assert text.startswith("These files are acme/text2sql@1 already; nothing was added\n")

    text = shell.ok("promote", "acme/text2sql@1", "--alias", "prod", "--expect", 2, "--evidence", "ticket 7")
    assert text == (
        "acme/text2sql@prod now points at version 1 (before: version 2)\n"
        "Undo: loraplex rollback acme/text2sql --alias prod\n"
    )

    text = shell.ok("show", "acme/text2sql")
    for expected in (
        "acme/text2sql (private), 2 versions",
        "94.0%",
        "the first",
        "ticket 7",
        "validation_loss",
        f"sha256:{'1' * 64}",
        "900 for training, 100 for validation",
        "adapter_model.safetensors",
    ):
        assert expected in text, expected

    assert "@prod now points at version 2" in shell.ok("rollback", "acme/text2sql", "--alias", "prod")
    assert "prod → 2" in shell.ok("ls")
    assert "sha256:" in shell.ok("ls", "acme/text2sql")

    text = shell.ok("pull", "acme/text2sql@prod", tmp_path / "out")
    assert "3 files, verified" in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "loraplex.json",
    ]


def test_json(shell: Shell, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    folder = make_adapter()
    published = shell.json("publish", folder, "acme/a", "--public", "--alias", "prod")
    version = published["version"]
    assert (published["is_new"], published["alias"]) == (True, "prod")
    assert (version["adapter"], version["number"], version["visibility"]) == ("acme/a", 1, "public")
    assert version["manifest"] == manifest_document()
    assert version["metrics"] == manifest_document()["metrics"]
    assert version["created_at"].endswith("Z")
    assert not shell.json("publish", folder, "acme/a")["is_new"]

    assert [(row["adapter"], row["aliases"]) for row in shell.json("ls")] == [("acme/a", {"prod": 1})]
    listed = {key: value for key, value in version.items() if key != "manifest"}
    assert shell.json("ls", "acme/a") == [listed]
    shown = shell.json("show", "acme/a@prod")
    assert shown["version"] == version
    assert shown["versions"] == [listed]
    assert shown["aliases"] == {"prod": 1}
    assert [move["kind"] for move in shown["alias_history"]["prod"]] == ["promote"]
    assert shell.json("pull", version["digest"], tmp_path / "out") == {
        "folder": str(tmp_path / "out"),
        "version": version,
    }

    shell.ok("publish", make_adapter(seed=5), "acme/a")
    move = shell.json("promote", "acme/a@2", "--alias", "prod", "--expect", "1")
    assert (move["from_number"], move["to_number"], move["actor"]) == (1, 2, "operator")
    assert shell.json("rollback", "acme/a", "--alias", "prod")["kind"] == "rollback"
    assert shell.json("promote", "acme/a@2", "--alias", "new", "--expect", "none")["from_number"] is None


def test_publish_with_an_alias_that_is_refused(shell: Shell, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    assert "is not an alias" in shell.refused("publish", folder, "acme/a", "--alias", "7")
    assert "There is no registry" in shell.refused("ls"), "refused before anything is done"

    shell.ok("publish", folder, "acme/a", "--alias", "prod")
    with registry.open(shell.home / "registry") as reg:
        reg.set_policy("acme/a", "prod", {"approvals": 1}, principal=registry.Principal.operator())
    result = shell.run("publish", make_adapter(seed=2), "acme/a", "--alias", "prod")
    assert result.exit_code == 1
    assert result.stdout.startswith("Published acme/a@2\n")
    assert result.stderr.startswith(
        "Error: acme/a@2 is published, but prod was not moved to it. Version 2 of 'acme/a' does"
    )
    result = shell.run("publish", make_adapter(seed=2), "acme/a", "--alias", "prod", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["alias"], document["version"]["number"]) == (1, None, 2)


def test_aliases(shell: Shell, make_adapter: MakeAdapter) -> None:
    shell.ok("publish", make_adapter(), "acme/a")
    assert shell.ok("alias", "ls", "acme/a").startswith("acme/a has no aliases yet. Make one: loraplex promote acme/a@")
    shell.ok("promote", "acme/a@1", "--alias", "prod")
    assert shell.json("alias", "ls", "acme/a") == {"prod": 1}
    assert "prod" in shell.ok("alias", "ls", "acme/a")
    asked = shell.run("alias", "delete", "acme/a", "--alias", "prod")
    assert (asked.exit_code, "Requests that name it will fail" in asked.output) == (1, True), "nobody said yes"
    deletion = ("alias", "delete", "acme/a", "--alias", "prod", "--yes")
    assert "points at version 1, not at what you expected (version 2)" in shell.refused(*deletion, "--expect", 2)
    assert shell.run(*deletion, "--expect", "none").exit_code == 2
    text = shell.ok(*deletion, "--expect", 1, "--evidence", "[bold]sold out")
    assert text.splitlines() == [
        "acme/a@prod is deleted (it pointed at version 1)",
        "Undo: loraplex promote acme/a@1 --alias prod",
    ]
    assert "There is no alias 'acme/a@prod'" in shell.refused(*deletion)
    assert "[bold]sold out" in shell.ok("alias", "history", "acme/a", "--alias", "prod")
    moves = shell.json("alias", "history", "acme/a", "--alias", "prod")
    assert [(move["kind"], move["to_number"]) for move in moves] == [("delete", None), ("promote", 1)]
    shell.ok("promote", "acme/a@1", "--alias", "prod")
    assert shell.json("alias", "delete", "acme/a", "--alias", "prod")["sequence"] == 4, "programs are not asked"


def test_ls_of_a_tenant(shell: Shell, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("acme/a", "acme/b", "acme-2/a"):
        shell.ok("publish", make_adapter(), name)
    monkeypatch.setattr(adapters, "PAGE_LIMIT", 1)
    for asked in ("acme", "acme/"):
        assert [found["adapter"] for found in shell.json("ls", asked)] == ["acme/a", "acme/b"]
    assert "acme-2" not in shell.ok("ls", "acme")
    assert shell.ok("ls", "globex") == "No adapters of globex that you may read. See all: loraplex ls\n"
    assert shell.json("ls", "globex") == []
    assert "'Acme' is not a tenant name" in shell.refused("ls", "Acme")
    assert "leave out the '@' and what follows it" in shell.refused("ls", "acme/a@1")


def test_lineage_of_a_base(shell: Shell, make_adapter: MakeAdapter) -> None:
    shell.ok("tenant", "create", "acme")
    assert "none is registered here: see `loraplex base register`" in shell.refused("lineage", "--base", "embedded")
    shell.ok("publish", make_adapter(), "acme/a")
    fingerprint = base_document()["fingerprint"]
    for base in ("embedded", fingerprint, fingerprint[:8]):
        assert shell.json("lineage", "--base", base)["root"] == fingerprint
    for wrong in ("embeded", fingerprint[:7], "f" * 64):
        assert f"registered here are {fingerprint[:12]} (embedded)" in shell.refused("lineage", "--base", wrong)
    with registry.open(shell.home / "registry") as reg:
        reg.register_base(base_document("ef" * 32))
    assert "several are called 'embedded': choose one of" in shell.refused("lineage", "--base", "embedded")


def test_what_needs_the_storage_says_where_it_runs(shell: Shell) -> None:
    refusal = shell.refused("gc", "--registry", "https://registry.example")
    assert "gc` works on the registry's own storage, which https://registry.example does not hand out" in refusal
    assert "Run it on the machine of that server" in refusal


def test_tenants_and_tokens(shell: Shell) -> None:
    assert "loraplex token create --tenant acme" in shell.ok("tenant", "create", "acme")
    assert shell.json("tenant", "create", "globex")["name"] == "globex"
    assert [tenant["name"] for tenant in shell.json("tenant", "ls")] == ["acme", "globex"]
    assert "globex" in shell.ok("tenant", "ls")

    assert shell.ok("token", "ls").startswith("No tokens yet")
    issued = shell.json("token", "create", "--tenant", "acme", "--role", "publisher", "--expires-days", 30)
    text = shell.ok("token", "create", "--tenant", "globex", "--label", "laptop")
    secret = next(word for word in text.split() if word.startswith("lpx_"))
    with registry.open(shell.home / "registry") as reg:
        assert reg.authenticate(issued["secret"]).role is registry.Role.PUBLISHER
        assert reg.authenticate(secret).tenant == "globex"

    assert [token["tenant"] for token in shell.json("token", "ls")] == ["acme", "globex"]
    listed = shell.ok("token", "ls", "--tenant", "acme") + json.dumps(shell.json("token", "ls"))
    assert issued["token_id"] in listed
    assert issued["secret"] not in listed
    assert "is revoked" in shell.ok("token", "revoke", issued["token_id"])
    assert shell.json("token", "revoke", issued["token_id"])["revoked_at"] is not None


def test_refusals_are_one_line(shell: Shell, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    for command in (["ls"], ["show", "acme/a"], ["pull", "acme/a"], ["tenant", "ls"], ["token", "ls"]):
        assert "There is no registry" in shell.refused(*command)
    assert not (shell.home / "registry").exists(), "looking makes nothing"

    folder = make_adapter()
    shell.ok("publish", folder, "acme/a")
    assert "There is no adapter 'acme/b'" in shell.refused("show", "acme/b")
    assert "There is no version 'acme/a@2'" in shell.refused("pull", "acme/a@2", tmp_path / "out")
    assert "is not an adapter name" in shell.refused("publish", folder, "nonsense")
    assert "is not an alias" in shell.refused("promote", "acme/a@1", "--alias", "7")
    assert "does not exist, not at" in shell.refused("promote", "acme/a@1", "--alias", "prod", "--expect", "4")
    assert "There is no alias" in shell.refused("rollback", "acme/a", "--alias", "prod")
    assert "other files" in shell.refused("pull", "acme/a", folder.parent)
    assert "There is no tenant 'nobody'" in shell.refused("token", "create", "--tenant", "nobody")
    assert "There is no token" in shell.refused("token", "revoke", "tok_1")
    assert "exists already" in shell.refused("tenant", "create", "acme")
    assert "[not-a-folder]" in shell.refused("publish", tmp_path / "absent", "acme/a")
    (folder / "model.bin").write_bytes(b"\x80")
    assert "[file-not-allowed]: model.bin" in shell.refused("publish", folder, "acme/a")


def test_wrong_usage(shell: Shell) -> None:
    for arguments in (
        ["promote", "acme/a@1"],
        ["promote", "acme/a", "--alias", "prod", "--expect", "x"],
        ["publish", "x"],
    ):
        result = shell.run(*arguments)
        assert result.exit_code == 2
        assert "Usage:" in result.stderr


def test_nothing_published_yet(shell: Shell) -> None:
    shell.ok("tenant", "create", "acme")
    assert shell.ok("ls") == "No adapters yet. Publish one: loraplex publish FOLDER TENANT/NAME\n"
    assert shell.json("ls") == []


def test_bases_of_the_home_are_registered_on_publish(shell: Shell, make_adapter: MakeAdapter) -> None:
    broken = shell.home / "bases" / "broken"
    broken.mkdir()
    (broken / "base.json").write_text("{")
    result = shell.run("publish", make_adapter(), "acme/a")
    assert result.exit_code == 0
    assert result.stderr.startswith(f"Warning: {broken / 'base.json'} is left out")
    error = shell.run("publish", make_adapter(manifest=manifest_document(OTHER_FINGERPRINT)), "acme/a").stderr
    assert OTHER_FINGERPRINT in error
    assert FINGERPRINT in error


def test_a_folder_without_a_manifest(shell: Shell, make_adapter: MakeAdapter) -> None:
    """One base fits it: it is taken for that one. A base that is named is believed as far as the shapes go."""
    text = shell.ok("publish", make_adapter(has_manifest=False), "acme/a")
    assert f"embedded nf4, fingerprint {FINGERPRINT[:12]} (fits by its shapes, not verified)" in text
    assert "acme/a@1" in shell.ok("show", "acme/a")
    named = make_adapter(has_manifest=False, seed=1)
    assert OTHER_FINGERPRINT in shell.refused("publish", named, "acme/a", "--base-fingerprint", OTHER_FINGERPRINT)
    assert "acme/a@2" in shell.ok("publish", named, "acme/a", "--base-fingerprint", FINGERPRINT[:12])


def test_another_registry(shell: Shell, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    shell.ok("publish", make_adapter(), "acme/a", "--registry", tmp_path / "other")
    assert "acme/a" in shell.ok("ls", "--registry", tmp_path / "other")
    assert "There is no registry" in shell.refused("ls")


def test_without_a_destination_the_folder_has_the_adapters_name(
    shell: Shell, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.ok("publish", make_adapter(), "acme/text2sql")
    monkeypatch.chdir(tmp_path)
    assert "is in text2sql:" in shell.ok("pull", "acme/text2sql")
    assert (tmp_path / "text2sql" / "adapter_config.json").is_file()


def test_an_adapters_text_cannot_steer_the_terminal(shell: Shell, make_adapter: MakeAdapter) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07[bold red]x[/]"
    manifest = manifest_document(metrics={"base": {}, "adapter": {evil: 1.0}})
    manifest["training"] |= {"hardware": evil, "method": evil, "steps": [1] * 10_000}
    shell.ok("publish", make_adapter(manifest=manifest), "acme/a", "-m", evil)
    text = shell.ok("show", "acme/a") + shell.ok("ls", "acme/a")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold red]x[/]" in text, "nothing is read as markup"
    assert len(text) < 10_000


def test_every_reference_that_show_takes(shell: Shell, make_adapter: MakeAdapter) -> None:
    digest = shell.json("publish", make_adapter(), "acme/a", "--alias", "prod")["version"]["digest"]
    for ref in ("acme/a", "acme/a@1", "acme/a@prod", f"acme/a@{digest[:19]}", digest):
        assert AdapterRef.parse(ref)
        assert "acme/a@1" in shell.ok("show", ref)
