"""Unmodified Hub clients against a real server: every feature, in every release, with and without hf_xet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_clients import hf_command
from tests.hub_clients.clients import CLIENTS, HubClient
from tests.hub_clients.drive import FEATURES
from tests.hub_clients.matrix import NOT_RUN, TRANSFER, WITH_COMMAND, Outcomes, run_matrix
from tests.hub_clients.registry_server import RunningRegistry


@pytest.fixture(scope="module")
def outcomes(hub_server: RunningRegistry, adapter_12_mb: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    return run_matrix(hub_server, adapter_12_mb, tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("feature", [*(feature.name for feature in FEATURES), TRANSFER])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_feature(outcomes: Outcomes, client: HubClient, feature: str) -> None:
    check(outcomes, client, feature)


@pytest.mark.parametrize("client", WITH_COMMAND, ids=lambda client: client.name)
def test_hf_command(outcomes: Outcomes, client: HubClient) -> None:
    check(outcomes, client, hf_command.FEATURE)


def check(outcomes: Outcomes, client: HubClient, feature: str) -> None:
    failure = outcomes.get((client.name, feature), NOT_RUN)
    if failure is not None:
        others = {name: why for (of, name), why in outcomes.items() if of == client.name and name in {"write", "read"}}
        pytest.fail(f"{client.name}: {feature}\n{failure}\n{others or ''}", pytrace=False)
