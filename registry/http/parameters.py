"""The parameters that several routes share, each with its bound: parts of names, cursors, limits.

What they mean is checked by the registry's own grammar (`registry/names.py`); here only length and kind are.
"""

from __future__ import annotations

from typing import Annotated

from litestar.params import HeaderParameter, PathParameter, QueryParameter

from registry.errors import InvalidValueError
from registry.expected import ANY, AtSequence, Expected
from registry.names import ADAPTER_CHARACTERS, ALIAS_CHARACTERS, REFERENCE_CHARACTERS, TENANT_CHARACTERS
from registry.page import PAGE_LIMIT
from registry.version import AliasMove

ETAG_DIGITS = 9

TenantPart = Annotated[str, PathParameter(max_length=TENANT_CHARACTERS, description="The tenant, such as `acme`.")]
NamePart = Annotated[str, PathParameter(max_length=ADAPTER_CHARACTERS, description="The adapter's name in its tenant.")]
AliasPart = Annotated[str, PathParameter(max_length=ALIAS_CHARACTERS, description="An alias, such as `prod`.")]
VersionPart = Annotated[
    str,
    PathParameter(
        max_length=REFERENCE_CHARACTERS, description="A version's number, an alias, or `sha256:` and its digest."
    ),
]
CursorQuery = Annotated[
    str | None, QueryParameter(name="cursor", max_length=512, description="`next_cursor` of the page before.")
]
LimitQuery = Annotated[int, QueryParameter(name="limit", ge=1, le=PAGE_LIMIT, description="Items of a page.")]
IfMatch = Annotated[
    str | None,
    HeaderParameter(name="if-match", max_length=100, description="The ETag that the alias must still have, or `*`."),
]
IfNoneMatch = Annotated[
    str | None, HeaderParameter(name="if-none-match", max_length=100, description="`*`: the alias must not exist yet.")
]


def etag_of(move: AliasMove) -> str:
    """An alias's ETag: the number of its last move, which never comes again."""
    return f'"{move.sequence}"'


def expected_of(if_match: str | None, if_none_match: str | None, number: int | None) -> Expected:
    """What the conditional headers, or the body, expect of an alias. Raises InvalidValueError."""
    if number is not None:
        if if_match is not None or if_none_match is not None:
            raise InvalidValueError("expected_version", "it is not possible together with If-Match or If-None-Match")
        return number
    if if_none_match is not None:
        if if_none_match.strip() != "*" or if_match is not None:
            raise InvalidValueError("if-none-match", "only `*` is known, and not together with If-Match")
        return None
    if if_match is None or if_match.strip() == "*":
        return ANY
    digits = if_match.strip().removeprefix('"').removesuffix('"')
    if not (digits.isascii() and digits.isdigit() and len(digits) <= ETAG_DIGITS):
        raise InvalidValueError("if-match", "it is not an ETag that the alias had")
    return AtSequence(int(digits))
