"""Registers the quantized bases that lie in the home beside the registry, so that publishing needs no preparation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from registry.errors import ConflictError, InvalidBaseError, PermissionDeniedError

if TYPE_CHECKING:
    from registry.registry import Registry

BASE_FILES = "bases/*/base.json"
BASE_BYTES_LIMIT = 64_000_000


def register_all(registry: Registry, home: Path, *, warn: Callable[[str], None]) -> None:
    """Register every base of the home that is not registered yet; `warn` is told of the ones that cannot be read."""
    known = {base.fingerprint for base in registry.bases()}
    for path in sorted(home.glob(BASE_FILES)):
        try:
            document = _read(path)
            if document.get("fingerprint") not in known:
                registry.register_base(document)
        except (OSError, ValueError, InvalidBaseError, ConflictError, PermissionDeniedError) as error:
            warn(f"{path} is left out: {error}")


def _read(path: Path) -> dict[str, object]:
    if path.stat().st_size > BASE_BYTES_LIMIT:
        raise ValueError(f"it has more than {BASE_BYTES_LIMIT:,} bytes")
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document
