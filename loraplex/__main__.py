"""`python -m loraplex` is `loraplex`."""

from __future__ import annotations

from loraplex.cli import main

main(prog_name="loraplex")
