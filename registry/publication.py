"""What publishing a folder came to. What publishes is in `publish.py`."""

from __future__ import annotations

from dataclasses import dataclass

from registry.version import Version


@dataclass(frozen=True)
class Publication:
    """The outcome of a publish. `is_new` is False where the same files were a version already."""

    version: Version
    is_new: bool
