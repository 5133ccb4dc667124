"""Several real processes on one registry: versions, aliases, a first opening, and a publisher that is killed."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import registry
from tests.registry.adapter_folders import base_document, write_adapter
from tests.registry.backends import RegistryPlace

PROCESSES = 3
VERSIONS = 5
PREAMBLE = """
import json, sys
from pathlib import Path
import registry
from registry.errors import AliasMovedError
place, part, inputs = json.loads(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
operator = registry.Principal.operator()
"""


def run_processes(script: str, place: RegistryPlace, inputs: list[list[str]]) -> list[list[object]]:
    """Run the script once per list of inputs, all at once; what each prints as JSON comes back."""
    running = [start(script, place, part, given) for part, given in enumerate(inputs)]
    outputs = []
    for process in running:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        outputs.append(json.loads(output))
    return outputs


def start(script: str, place: RegistryPlace, part: int, given: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREAMBLE + script, json.dumps(place.arguments()), str(part), json.dumps(given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def versions_of(reg: registry.Registry) -> list[registry.Version]:
    """The versions of acme/a; none where the adapter is not there yet."""
    operator = registry.Principal.operator()
    return reg.list_versions("acme/a", operator) if reg.list_adapters(operator) else []


def test_publishers_get_consecutive_numbers_and_promotions_lose_no_update(
    fresh_place: RegistryPlace, tmp_path: Path
) -> None:
    """The processes also open the registry for the first time at once, and promote by compare-and-set in a loop."""
    folders = [
        [str(write_adapter(tmp_path / f"a-{p}-{i}", seed=100 * p + i)) for i in range(VERSIONS)]
        for p in range(PROCESSES)
    ]
    script = f"""
with registry.open(**place) as reg:
    reg.register_base({base_document()!r})
    results = []
    for path in inputs:
        number = reg.publish(Path(path), "acme/a", principal=operator).number
        while True:
            expected = reg.aliases("acme/a", operator).get("prod")
            try:
                move = reg.promote(f"acme/a@{{number}}", "prod", principal=operator, expected=expected)
                break
            except AliasMovedError:
                continue
        results.append([number, move.sequence, move.from_number, move.to_number])
    print(json.dumps(results))
"""
    results = [row for part in run_processes(script, fresh_place, folders) for row in part]
    count = PROCESSES * VERSIONS
    assert sorted(number for number, *_ in results) == list(range(1, count + 1))
    assert sorted(sequence for _, sequence, *_ in results) == list(range(1, count + 1)), "no promotion was lost"
    moves = sorted((row[1:] for row in results), key=lambda row: row[0])
    assert [origin for _, origin, _ in moves] == [None, *[target for *_, target in moves[:-1]]]
    with fresh_place.open() as reg:
        operator = registry.Principal.operator()
        history = reg.alias_history("acme/a", "prod", operator)
        assert [move.to_number for move in reversed(history)] == [target for *_, target in moves]
        assert reg.aliases("acme/a", operator) == {"prod": moves[-1][2]}
        assert [tenant.name for tenant in reg.list_tenants()] == ["acme"]
        reg.check_integrity()


def test_a_killed_publisher_leaves_the_old_state_or_the_new_one(fresh_place: RegistryPlace, tmp_path: Path) -> None:
    """kill -9 at any moment, again and again: every acknowledged version is there and whole, and nothing else."""
    with fresh_place.open() as reg:
        reg.register_base(base_document())
    script = """
with registry.open(**place) as reg:
    print("ready", flush=True)
    for path in inputs:
        print(reg.publish(Path(path), "acme/a", principal=operator).digest, flush=True)
"""
    seconds = random.Random(7)
    acknowledged: list[str] = []
    operator = registry.Principal.operator()
    for turn in range(3):
        folders = [str(write_adapter(tmp_path / f"a-{turn}-{i}", seed=100 * turn + i)) for i in range(12)]
        process = start(script, fresh_place, 0, folders)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
        acknowledged += [line for line in output.splitlines() if len(line) == len("sha256:") + 64]
        with fresh_place.open() as reg:
            reg.check_integrity()
            digests = [version.digest for version in versions_of(reg)]
            assert set(acknowledged) <= set(digests), "an acknowledged version is lost"
            assert len(digests) - len(acknowledged) <= turn + 1, "at most the one under way each time"
    with fresh_place.open() as reg:
        version = reg.publish(write_adapter(tmp_path / "last", seed=9999), "acme/a", principal=operator)
        assert version.number == len(digests) + 1
        reg.pull(version, tmp_path / "out")
