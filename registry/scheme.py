"""Whether a place is a folder or an address, by the scheme of the address: `http`, `postgresql`, `s3`, ..."""

from __future__ import annotations

from pathlib import Path

HTTP_SCHEMES = ("http", "https")


def scheme_of(where: Path | str) -> str | None:
    """The scheme of an address; None for a folder."""
    scheme, mark, _ = str(where).partition("://")
    return scheme if mark and isinstance(where, str) else None
