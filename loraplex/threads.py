"""How the threads of torch's CPU kernels wait for each other.

It does: choose OpenMP's passive waiting, before torch is loaded (it reads the variable once).
It does not: choose how many threads there are (`--threads`, OMP_NUM_THREADS).

By default a thread that waits for the others spins and keeps its core. On two cores with one busy neighbour a training
step of the embedded base took 1.47 s so, and 0.22 s with threads that sleep (docs/log.md); a server always has such a
neighbour in its own API process.
"""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def let_waiting_threads_sleep() -> None:
    """Set the policy, unless the user's environment has one already."""
    os.environ.setdefault(WAIT_POLICY, "PASSIVE")
