"""Failing operations on files, injected below Python and SQLite (`faults.c`), for worker processes of a campaign.

`library` compiles it; a `ForkServer(preload=...)` loads it into its workers, which alone may call `arm`.
"""

from __future__ import annotations

import ctypes
import errno
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
KINDS = {"reads": 1, "writes": 2}


@dataclass(frozen=True)
class Fault:
    """The nth operation of this kind below the prefix fails; with `is_lasting` every later one too."""

    prefix: str
    kind: str
    nth: int
    error: str
    is_lasting: bool

    def arm(self) -> None:
        """From now on count the operations of this process."""
        number = getattr(errno, self.error)
        _loaded().faults_arm(self.prefix.encode(), KINDS[self.kind], ctypes.c_long(self.nth), number, self.is_lasting)


def disarm() -> None:
    """Let every operation through again."""
    _loaded().faults_disarm()


def operations_seen() -> int:
    """How many operations were counted since the fault was armed."""
    return int(_loaded().faults_seen())


def has_compiler() -> bool:
    """Whether the library can be made here."""
    return shutil.which("cc") is not None


def library(folder: Path) -> Path:
    """Compile the library into the folder."""
    path = folder / "faults.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(path), str(SOURCE), "-ldl"], check=True)
    return path


def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(None)
