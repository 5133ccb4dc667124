"""All benchmarks on the embedded base, one after another: `make bench`, or `python -m benchmarks [--quick]`."""

from __future__ import annotations

import sys

from benchmarks import mixture_decode, serve_mixed, step_floor


def main() -> None:
    """Run every benchmark with the arguments given here."""
    serve_mixed.main(sys.argv[1:])
    step_floor.main(sys.argv[1:])
    mixture_decode.main(sys.argv[1:])


if __name__ == "__main__":
    main()
