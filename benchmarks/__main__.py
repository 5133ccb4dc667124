"""All benchmarks on the embedded base, one after another: `make bench`, or `python -m benchmarks [--quick]`."""

from __future__ import annotations

import sys

from benchmarks import cold_adapter, many_adapters, mixture_decode, serve_mixed, speculation, step_floor


def main() -> None:
    """Run every benchmark with the arguments given here."""
    for benchmark in (serve_mixed, step_floor, mixture_decode, many_adapters, cold_adapter, speculation):
        benchmark.main(sys.argv[1:])


if __name__ == "__main__":
    main()
