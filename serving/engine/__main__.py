"""Runs the engine process: `python -m serving.engine --settings JSON`."""

from __future__ import annotations

import sys

from serving.engine.process import main

if __name__ == "__main__":
    sys.exit(main())
