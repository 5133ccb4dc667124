"""The `hf` command of a release, as a process, with nothing set but HF_ENDPOINT and HF_TOKEN."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.hub_clients.clients import HubClient

FEATURE = "`hf auth whoami`, `hf repos create`, `hf upload`, `hf download`, with their exit statuses"
THOROUGH = "`hf repos tag`, `branch`, `delete-files`, `delete`, `hf models info`"
SECONDS = 120


class Command:
    """`hf` of one client. Each call is a process."""

    def __init__(self, client: HubClient, environment: dict[str, str]) -> None:
        self._client = client
        self._environment = environment

    def ok(self, *args: str | Path) -> str:
        """Run it; it must succeed. Its output."""
        run = self._run(*args)
        assert run.returncode == 0, f"hf {args}\n{run.stdout}\n{run.stderr}"
        return run.stdout

    def fails(self, *args: str | Path) -> None:
        """Run it; it must say that it failed."""
        run = self._run(*args)
        assert run.returncode != 0, f"hf {args} went well\n{run.stdout}\n{run.stderr}"

    def _run(self, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(self._client.hf), *map(str, args)]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )


@dataclass(frozen=True)
class Shell:
    """Somebody at a shell: a publisher and an admin of a tenant, and the adapter that they have there."""

    client: HubClient
    tenant: str
    environments: Mapping[str, dict[str, str]]
    adapter: Path
    work: Path

    def command(self, role: str = "publisher") -> Command:
        """`hf` with the token of this role."""
        return Command(self.client, self.environments[role])

    @property
    def repos(self) -> str:
        """What the group of commands about repositories is called."""
        return "repo" if self.client.hub.startswith("0.") else "repos"


def use_command(shell: Shell) -> None:
    """What most people do. Raises AssertionError with the command that went wrong."""
    hf, name = shell.command(), f"{shell.tenant}/command"
    assert shell.tenant in hf.ok("auth", "whoami")
    hf.ok(shell.repos, "create", name, "--private")
    hf.ok("upload", name, shell.adapter)
    hf.ok("download", name, "--revision", "v1", "--local-dir", shell.work / "found")
    for path in shell.adapter.iterdir():
        assert (shell.work / "found" / path.name).read_bytes() == path.read_bytes(), path.name
    hf.fails("download", name, "--revision", "nowhere")


def use_command_thoroughly(shell: Shell) -> None:
    """What else there is. Raises AssertionError with the command that went wrong."""
    hf, name = shell.command(), f"{shell.tenant}/thorough"
    hf.ok(shell.repos, "create", name, "--private")
    hf.fails(shell.repos, "create", name)
    hf.ok("upload", name, shell.adapter)
    hf.ok("upload", name, shell.adapter / "adapter_config.json", "copies/config.json")
    hf.ok(shell.repos, "tag", "create", name, "released")
    hf.ok("download", name, "copies/config.json", "--revision", "released", "--local-dir", shell.work / "one")
    assert json.loads((shell.work / "one/copies/config.json").read_text())["peft_type"] == "LORA"
    hf.fails("download", "umbrella/secret")
    if shell.repos == "repo":
        hf.ok("repo-files", "delete", name, "copies/config.json")
        return
    hf.ok("repos", "delete-files", name, "copies/config.json")
    hf.ok("repos", "branch", "create", name, "side")
    hf.ok("models", "info", name)
    hf.fails("repos", "delete", name, "--yes")
    shell.command("admin").ok("repos", "delete", name, "--yes")
    hf.fails("download", name, "--local-dir", shell.work / "gone")
