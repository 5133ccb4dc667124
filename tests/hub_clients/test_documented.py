"""docs/hub.md names the clients and features that the matrix runs, and the environments are what they say."""

from __future__ import annotations

import subprocess

import pytest

from tests.hub_clients.clients import CLIENTS, HubClient
from tests.hub_clients.documented import PAGE, render


def test_the_page_names_what_is_tested() -> None:
    page = PAGE.read_text()
    assert render(page) == page, "run `python -m tests.hub_clients.documented`"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_an_environment_holds_its_releases_and_nothing_of_ours(client: HubClient) -> None:
    script = (
        "import importlib.metadata as m, importlib.util as u\n"
        "found = {d.name.lower().replace('-', '_'): d.version for d in m.distributions()}\n"
        "print(found['huggingface_hub'], found.get('hf_xet'), u.find_spec('loraplex'), u.find_spec('registry'))"
    )
    run = subprocess.run([client.python, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [client.hub, str(client.xet), "None", "None"]


def test_the_clients_are_the_three_releases_with_and_without_xet() -> None:
    assert {client.hub.rpartition(".")[0] for client in CLIENTS} == {"0.36", "1.20", "2.4"}
    for hub in {client.hub for client in CLIENTS}:
        assert {client.xet is None for client in CLIENTS if client.hub == hub} == {True, False}
