"""Reads a JSON object from a file of somebody else: bounded in bytes and depth, with no key twice and no NaN.

It does not know what the object means; see `adapter_config.py`, `manifest.py` and `tensor_file.py`.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from registry.errors import RejectedAdapterError
from registry.reasons import RejectReason

DEPTH_LIMIT = 32


def parse_json_object(raw: bytes, *, file: str, reason: RejectReason = RejectReason.BAD_JSON) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top is an object. Raises RejectedAdapterError with the given reason."""

    def refuse(detail: str) -> NoReturn:
        raise RejectedAdapterError(reason, detail, file=file)

    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object_without_duplicates, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        refuse("it is not UTF-8 text")
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError as error:
        refuse(f"it is not JSON ({error})")
    if not isinstance(document, dict):
        refuse("it is not a JSON object")
    if _depth_exceeds(document, DEPTH_LIMIT):
        refuse(f"it is nested deeper than {DEPTH_LIMIT} levels")
    return document


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:120]!r} appears twice")
            seen.add(key)
    return document


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _depth_exceeds(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    if levels == 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return any(_depth_exceeds(child, levels - 1) for child in children)
