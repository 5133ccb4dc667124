"""32 publishers in 8 processes on one alias, which they also delete: nothing is lost, and all is linearizable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry
from tests.registry.adapter_folders import write_adapter
from tests.registry.backends import RegistryPlace
from tests.registry.campaigns.fork_server import ForkServer
from tests.registry.campaigns.linearizability import Operation, is_linearizable
from tests.registry.campaigns.operations import BUSY, STORM_NAME
from tests.registry.campaigns.state import OPERATOR, check_sound

PROCESSES = 8
THREADS = 4
FEW_PROCESSES = 4
FEW_THREADS = 2
"""The normal suite has this many; the long one has 32 publishers."""


@pytest.fixture(scope="module")
def workers() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


def rage(
    workers: ForkServer,
    place: RegistryPlace,
    reg: registry.Registry,
    folder: Path,
    *,
    processes: int,
    threads: int,
    turns: int,
) -> list[Operation]:
    """Let them publish and promote `turns` times each; the history of all."""
    seed = 0
    inputs: list[list[list[str]]] = []
    for _ in range(processes):
        inputs.append([])
        for _ in range(threads):
            inputs[-1].append(
                [str(write_adapter(folder / f"s-{seed + turn}", seed=seed + turn)) for turn in range(turns)]
            )
            seed += turns
    out = folder / "histories"
    out.mkdir()
    location = place.arguments()
    outcome = workers.run(location, "storm", inputs=inputs, out=str(out))
    assert outcome.acknowledged == processes, outcome.error
    rows = [row for part in out.iterdir() for row in json.loads(part.read_text())]
    history = [Operation(**row) for row in rows if row["kind"] != BUSY]
    print(f"{len(rows) - len(history)} operations were told to try again")
    check_history(reg, history, published=seed)
    return history


def check_history(reg: registry.Registry, history: list[Operation], *, published: int) -> None:
    assert is_linearizable(history)
    changes = [operation for operation in history if operation.has_set]
    promotions = [operation for operation in changes if operation.new is not None]
    assert len(promotions) == published, "everybody got through in the end, once for each version"
    moves = list(reversed(reg.alias_history(STORM_NAME, "prod", OPERATOR)))
    assert [move.sequence for move in moves] == list(range(1, len(changes) + 1)), "no change was lost"
    assert [move.from_number for move in moves] == [None, *[move.to_number for move in moves[:-1]]]
    assert {(move.from_number, move.to_number) for move in moves} == {(o.expected, o.new) for o in changes}
    numbers = [version.number for version in reg.list_versions(STORM_NAME, OPERATOR)]
    assert numbers == list(range(published, 0, -1))
    assert reg.aliases(STORM_NAME, OPERATOR).get("prod") == moves[-1].to_number
    check_sound(reg)


def test_a_storm_on_one_alias(
    workers: ForkServer, place: RegistryPlace, reg: registry.Registry, tmp_path: Path
) -> None:
    history = rage(workers, place, reg, tmp_path, processes=FEW_PROCESSES, threads=FEW_THREADS, turns=2)
    first = next(operation for operation in history if operation.has_set)
    assert not is_linearizable([*history, Operation("read", first.returned or 0, 1 << 62, found=-1)]), "it can fail"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_long_storm_on_one_alias(
    workers: ForkServer, place: RegistryPlace, reg: registry.Registry, tmp_path: Path
) -> None:
    history = rage(workers, place, reg, tmp_path, processes=PROCESSES, threads=THREADS, turns=8)
    refused = sum(operation.kind == "cas" and not operation.has_set for operation in history)
    print(f"{len(history)} operations, {refused} of them refused promotions")
