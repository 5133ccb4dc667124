"""The model card's metadata: the YAML between the first two `---` lines of README.md.

YAML of strangers is read as plain data within limits of size, depth and number of values, and without anchors, by which
a small text can mean a huge one. It is read by libyaml where PyYAML has it: many times faster.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from functools import lru_cache
from typing import Any

import yaml

CARD_FILE = "README.md"
CARD_BYTES_LIMIT = 64_000
DEPTH_LIMIT = 16
EVENTS_LIMIT = 10_000
"""Values, and beginnings and ends of lists and mappings: reading a card costs a tenth of a second at most."""
CARDS_KEPT = 256

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_FRONT_MATTER = re.compile(rb"\A(?:\xef\xbb\xbf)?\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)


class CardError(ValueError):
    """Metadata that cannot be read. The text is for the card's author."""


@lru_cache(maxsize=CARDS_KEPT)
def read_card(content: bytes) -> dict[str, Any] | None:
    """The metadata of a card; None where it has none. Raises CardError. The result is shared: do not change it."""
    found = _FRONT_MATTER.match(content[: CARD_BYTES_LIMIT + 1])
    if found is None:
        return None
    raw = found.group(1)
    try:
        text = raw.decode("utf-8")
        _check_events(text)
        document = yaml.load(text, Loader=_LOADER)  # type: ignore[no-untyped-call]  # noqa: S506 (a safe one)
    except UnicodeDecodeError as error:
        raise CardError("the metadata is not UTF-8 text") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CardError(f"the metadata is not YAML: {_short(error)}") from error
    if document is None:
        return None
    if not isinstance(document, dict):
        raise CardError("the metadata is not a mapping of names to values")
    return {str(key): _plain(value) for key, value in document.items()}


def _check_events(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):  # type: ignore[no-untyped-call]
        if count >= EVENTS_LIMIT:
            raise CardError(f"the metadata has more than {EVENTS_LIMIT:,} values")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise CardError("the metadata has anchors, which are not read")
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            depth -= 1
        if depth > DEPTH_LIMIT:
            raise CardError(f"the metadata is nested deeper than {DEPTH_LIMIT} levels")


def _plain(value: Any) -> Any:
    """As JSON can say it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in value]
    if isinstance(value, (date, datetime)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
