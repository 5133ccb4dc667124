"""All benchmarks on the embedded base, one after another: `make bench`, or `python -m benchmarks [--quick]`.

With `--json results.json` each of them writes a file of its own: `results-serve_mixed.json` and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cold_adapter, many_adapters, mixture_decode, serve_mixed, speculation, step_floor


def main() -> None:
    """Run every benchmark with the arguments given here."""
    for benchmark in (serve_mixed, step_floor, mixture_decode, many_adapters, cold_adapter, speculation):
        benchmark.main(own_arguments(sys.argv[1:], benchmark.__name__.rpartition(".")[2]))


def own_arguments(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments with the JSON file of the benchmark of this name in the place of the one that was given."""
    own: list[str] = []
    for argument in arguments:
        option, equals, file = argument.rpartition("=")
        if own and own[-1] == "--json":
            own.append(_beside(argument, name))
        else:
            own.append(f"{option}{equals}{_beside(file, name)}" if option == "--json" else argument)
    return own


def _beside(file: str, name: str) -> str:
    path = Path(file)
    return str(path.with_name(f"{path.stem}-{name}{path.suffix}"))


if __name__ == "__main__":
    main()
