"""Reads a JSON object from a file of somebody else: bounded in depth, with no key twice, no NaN and no broken text.

It does not know what the object means; see `adapter_config.py`, `manifest.py` and `tensor_file.py`.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from registry.bounded_text import is_unicode
from registry.errors import RejectedAdapterError
from registry.reasons import RejectReason

DEPTH_LIMIT = 32


def parse_json_object(raw: bytes, *, file: str, reason: RejectReason = RejectReason.BAD_JSON) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top is an object. Raises RejectedAdapterError with the given reason."""

    def refuse(detail: str) -> NoReturn:
        raise RejectedAdapterError(reason, detail, file=file)

    try:
        document = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
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
    if not is_unicode(json.dumps(document, ensure_ascii=False)):
        refuse("it holds half of a surrogate pair")
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


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _depth_exceeds(value: Any, levels: int) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    if levels == 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return any(_depth_exceeds(child, levels - 1) for child in children)
