"""Runs every client through every feature, two clients at a time, and keeps what each one found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import registry
from registry.hub.xet_session import XetSessions
from tests.hub_clients import hf_command
from tests.hub_clients.clients import CLIENTS, HubClient, client_environment
from tests.hub_clients.registry_server import RunningRegistry

DRIVER = Path(__file__).parent / "drive.py"
PHASE_SECONDS = 240
TRANSFER = "large files travel by Xet where hf_xet is there, by LFS where it is not"
CLIENTS_AT_ONCE = 2
WRITE, READ, PROMOTION = "write", "read", "promotion"
OTHER_FAILURES = frozenset({WRITE, READ, PROMOTION})
NOT_RUN = "it was not run"
WITH_COMMAND = [client for client in CLIENTS if client.xet is not None and client.xet != "1.1.3"]
"""`hf` does what the library does: one environment of each release is enough."""

Outcomes = dict[tuple[str, str], str | None]
"""Failures by client and feature; None where all was well."""


class Matrix:
    """Every client with a tenant of its own; the tests of a client wait for that one only."""

    def __init__(self, server: RunningRegistry, adapter: Path, work: Path, clients: Sequence[HubClient]) -> None:
        self._pool = ThreadPoolExecutor(CLIENTS_AT_ONCE)
        self._runs = {
            client.name: self._pool.submit(run_client, server, client, adapter, work / client.name)
            for client in clients
        }

    def failure(self, client: HubClient, feature: str) -> str | None:
        """What went wrong; None where all was well."""
        outcomes = self._runs[client.name].result()
        failure = outcomes.get((client.name, feature), NOT_RUN)
        if failure is None:
            return None
        others = [why for (_, name), why in outcomes.items() if name in OTHER_FAILURES and why]
        return "\n".join([f"{client.name}: {feature}", failure, *others])

    def close(self) -> None:
        """Run no more clients."""
        self._pool.shutdown(cancel_futures=True)


def run_client(server: RunningRegistry, client: HubClient, adapter: Path, work: Path) -> Outcomes:
    """One client, in a tenant of its own: it writes, the first version is promoted, and it reads."""
    work.mkdir(parents=True)
    tenant = tenant_of(client)
    tokens = server.new_tenant(tenant)
    plan = {
        "tenant": tenant,
        "repo": f"{tenant}/sql",
        "foreign": "umbrella/secret",
        "adapter": str(adapter),
        "admin_token": tokens["admin"],
    }
    (work / "plan.json").write_text(json.dumps(plan))
    environment = client_environment(work, server.url, tokens["publisher"])
    outcomes = _run_phase(client, WRITE, work, environment)
    outcomes[client.name, TRANSFER] = _check_transfer(server, client, tenant)
    try:
        server.registry.promote(f"{tenant}/sql@1", "prod", principal=registry.Principal.operator())
    except registry.RegistryError as error:
        outcomes[client.name, PROMOTION] = str(error)
    outcomes |= _run_phase(client, READ, work, environment)
    if client in WITH_COMMAND:
        outcomes[client.name, hf_command.FEATURE] = _use_command(shell_of(server, client, adapter, work, tokens))
    return outcomes


def shell_of(
    server: RunningRegistry, client: HubClient, adapter: Path, work: Path, tokens: Mapping[str, str]
) -> hf_command.Shell:
    """Somebody at a shell with the command of this client."""
    environments = {role: client_environment(work, server.url, token) for role, token in tokens.items()}
    return hf_command.Shell(client, tenant_of(client), environments, adapter, work)


def tenant_of(client: HubClient) -> str:
    """Each client has a tenant of its own."""
    return client.name.replace(".", "-")


def _check_transfer(server: RunningRegistry, client: HubClient, tenant: str) -> str | None:
    """Xet uploads leave their sessions behind for a while; other uploads do not."""
    sessions = XetSessions(server.registry.blobs, server.registry.quotas)
    found = sessions.count(tenant)
    if (found > 0) == (client.xet is not None):
        return None
    return f"hf_xet is {client.xet}, and there were {found} Xet sessions"


def _use_command(shell: hf_command.Shell) -> str | None:
    try:
        hf_command.use_command(shell)
    except AssertionError as error:
        return str(error)
    return None


def _run_phase(client: HubClient, phase: str, work: Path, environment: dict[str, str]) -> Outcomes:
    command = [str(client.python), str(DRIVER), phase, str(work)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PHASE_SECONDS, check=False)
    (work / f"{phase}.log").write_text(run.stdout + run.stderr)
    outcomes: Outcomes = {}
    for line in run.stdout.splitlines():
        if line.startswith('{"feature"'):
            found = json.loads(line)
            outcomes[client.name, found["feature"]] = found["failure"]
    if run.returncode != 0:
        outcomes[client.name, phase] = run.stderr
    return outcomes
