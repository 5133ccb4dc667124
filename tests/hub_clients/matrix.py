"""Runs every client through every feature, two clients at a time, and keeps what each one found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
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
NOT_RUN = "it was not run"
WITH_COMMAND = [client for client in CLIENTS if client.xet is not None and client.xet != "1.1.3"]
"""`hf` does what the library does: one environment of each release is enough."""

Outcomes = dict[tuple[str, str], str | None]
"""Failures by client and feature; None where all was well."""


def run_matrix(server: RunningRegistry, adapter: Path, work: Path) -> Outcomes:
    """Every client with a repository of its own."""
    outcomes: Outcomes = {}
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda client: run_client(server, client, adapter, work / client.name), CLIENTS):
            outcomes |= found
    return outcomes


def run_client(server: RunningRegistry, client: HubClient, adapter: Path, work: Path) -> Outcomes:
    """One client, in a tenant of its own: it writes, the first version is promoted, and it reads."""
    work.mkdir(parents=True)
    tenant = client.name.replace(".", "-")
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
    outcomes = _run_phase(client, "write", work, environment)
    outcomes[client.name, TRANSFER] = _check_transfer(server, client, tenant)
    try:
        server.registry.promote(f"{tenant}/sql@1", "prod", principal=registry.Principal.operator())
    except registry.RegistryError as error:
        outcomes[client.name, "promotion"] = str(error)
    outcomes |= _run_phase(client, "read", work, environment)
    if client in WITH_COMMAND:
        outcomes[client.name, hf_command.FEATURE] = _use_command(server, client, adapter, work, tenant, tokens)
    return outcomes


def _check_transfer(server: RunningRegistry, client: HubClient, tenant: str) -> str | None:
    """Xet uploads leave their sessions behind for a while; other uploads do not."""
    sessions = XetSessions(server.registry.blobs, server.registry.quotas)
    found = sessions.count(tenant)
    if (found > 0) == (client.xet is not None):
        return None
    return f"hf_xet is {client.xet}, and there were {found} Xet sessions"


def _use_command(
    server: RunningRegistry, client: HubClient, adapter: Path, work: Path, tenant: str, tokens: Mapping[str, str]
) -> str | None:
    environments = {role: client_environment(work, server.url, token) for role, token in tokens.items()}
    try:
        hf_command.use_command(client, tenant, environments, adapter, work)
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
