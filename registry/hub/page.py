"""Pages of HTML: the templates in `templates/`, one style sheet, and headers by which a browser runs and loads nothing.

Every value that a template shows is escaped; a name that a template uses and nobody gave is an error.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from registry.hub.response import Response
from registry.printable import printable
from registry.version import Version

UNITS = ("B", "kB", "MB", "GB", "TB")
TEXT_CHARACTERS = 500
DIGITS_SHOWN = 12


@dataclass(frozen=True)
class Page:
    """A template, the status of its answer, and what it shows."""

    template: str
    status: int
    values: Mapping[str, Any]


def html_response(page: Page, headers: Mapping[str, str] | None = None) -> Response:
    """The page as an answer."""
    text = _environment().get_template(page.template).render(page.values)
    return Response(page.status, _headers() | dict(headers or {}), text.encode("utf-8", "replace"))


@cache
def _headers() -> dict[str, str]:
    """Nothing is loaded, run, framed or sent; the one style sheet is known by its hash."""
    style = _environment().get_template("style.css").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "content-type": "text/html; charset=utf-8",
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cache-control": "private, no-cache",
        "vary": "accept, authorization",
    }


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("registry.hub", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {
        "size": _size,
        "time": _time,
        "short": _short,
        "figure": _figure,
        "side": _side,
        "segment": lambda text: quote(text, safe=""),
        "path": quote,
    }
    return environment


def _shown(value: Any) -> Any:
    """Text of others: bounded, and without control characters. What a macro of ours made is none."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        clipped = value if len(value) <= TEXT_CHARACTERS else value[:TEXT_CHARACTERS] + "..."
        return printable(clipped)
    return value


def _size(size_bytes: int) -> str:
    amount, unit = float(size_bytes), 0
    while amount >= 1000 and unit < len(UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return f"{size_bytes} B" if unit == 0 else f"{amount:.1f} {UNITS[unit]}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:DIGITS_SHOWN]


def _side(version: Version, side: str) -> dict[str, float | None]:
    """What the trainer measured, of the `base` or of the `adapter`."""
    return ((version.manifest or {}).get("metrics") or {}).get(side) or {}


def _figure(value: float | None, name: str = "") -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.1%}" if name == "exact_match" else f"{value:.4g}"
