"""Names, references and digests: each is parsed once, by a strict grammar, into a type that cannot hold anything else.

    tenant      acme                    a-z 0-9 and single '-', at most 40 characters
    adapter     acme/text2sql           tenant, then a-z 0-9 . _ -, at most 96 characters
    alias       prod                    begins with a letter, so that it is never taken for a version number
    digest      sha256:<64 hex>
    reference   acme/text2sql           the newest version
                acme/text2sql@3         a version
                acme/text2sql@prod      where an alias points
                acme/text2sql@sha256:<12 to 64 hex>
                sha256:<64 hex>         a version of whichever adapter holds it

Paths are never made from what a caller wrote; only from parsed digests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import InvalidNameError

TENANT_CHARACTERS = 40
ADAPTER_CHARACTERS = 96
ALIAS_CHARACTERS = 40
DIGEST_PREFIX_MIN_DIGITS = 12
SHA256_DIGITS = 64
VERSION_NUMBER_DIGITS = 9
REFERENCE_CHARACTERS = 256

RESERVED_TENANTS = frozenset(
    "admin api datasets docs health kernels livez login loraplex metrics models oauth operator readyz registry "
    "schema settings spaces startupz static v1 v2 v3".split()
)
"""Words that a route of the server or the Hub protocol needs at the root."""

_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?!-)){0,39}", re.ASCII)
_ADAPTER = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}", re.ASCII)
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,39}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_NUMBER = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


def parse_tenant(text: str) -> str:
    """Return the tenant's name. Raises InvalidNameError with the rule that it breaks."""
    kind = "a tenant name"
    if not _TENANT.fullmatch(text) or text.endswith("-"):
        raise InvalidNameError(
            kind,
            text,
            f"it has 1 to {TENANT_CHARACTERS} characters of a-z, 0-9 and single '-', and begins and ends with a letter "
            "or digit",
        )
    if text in RESERVED_TENANTS:
        raise InvalidNameError(kind, text, "this word is reserved; choose another")
    return text


def parse_alias(text: str) -> str:
    """Return the alias. Raises InvalidNameError with the rule that it breaks."""
    if not _ALIAS.fullmatch(text) or text[-1] in "._-" or ".." in text:
        raise InvalidNameError(
            "an alias",
            text,
            f"it begins with a letter, has at most {ALIAS_CHARACTERS} characters of a-z, 0-9 and . _ -, and ends with "
            "a letter or digit",
        )
    return text


def parse_fingerprint(text: str) -> str:
    """Return the fingerprint of a base: 64 hexadecimal digits. Raises InvalidNameError."""
    if len(text) != SHA256_DIGITS or not _HEX.fullmatch(text):
        raise InvalidNameError("a base fingerprint", text, f"it has exactly {SHA256_DIGITS} digits of 0-9 and a-f")
    return text


@dataclass(frozen=True, order=True)
class AdapterName:
    """The full name of an adapter: whose it is, and which."""

    tenant: str
    name: str

    @classmethod
    def parse(cls, text: str) -> AdapterName:
        """Parse `tenant/name`. Raises InvalidNameError with the rule that it breaks."""
        kind = "an adapter name"
        if "@" in text:
            raise InvalidNameError(kind, text, "a whole adapter is meant here; leave out the '@' and what follows it")
        if len(text) > REFERENCE_CHARACTERS or text.count("/") != 1:
            raise InvalidNameError(kind, text, "it is written TENANT/NAME, such as acme/text2sql")
        tenant, name = text.split("/")
        parse_tenant(tenant)
        if not _ADAPTER.fullmatch(name) or name[-1] in "._-":
            raise InvalidNameError(
                kind,
                text,
                f"after the '/' come 1 to {ADAPTER_CHARACTERS} characters of a-z, 0-9 and . _ -, which begin and end "
                "with a letter or digit",
            )
        for forbidden in ("..", "--", ".at."):
            if forbidden in name:
                raise InvalidNameError(kind, text, f"it must not contain {forbidden!r}")
        if name.endswith(".git"):
            raise InvalidNameError(kind, text, "it must not end with '.git'")
        return cls(tenant, name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"


@dataclass(frozen=True, order=True)
class Digest:
    """A full SHA-256 digest; `hex` has 64 digits."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:<64 hex>`. Raises InvalidNameError."""
        prefix, digits = text[:7], text[7:]
        if prefix != "sha256:" or len(digits) != SHA256_DIGITS or not _HEX.fullmatch(digits):
            raise InvalidNameError("a digest", text, f"it is 'sha256:' and {SHA256_DIGITS} digits of 0-9 and a-f")
        return cls(digits)

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


@dataclass(frozen=True)
class AdapterRef:
    """What a caller asks for. At most one of `number`, `alias` and `digest_hex` is set; none means the newest version.

    `adapter` is None only for a full digest on its own; `digest_hex` may be a prefix where there is an adapter.
    """

    adapter: AdapterName | None
    number: int | None = None
    alias: str | None = None
    digest_hex: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """Parse a reference. Raises InvalidNameError with the rule that it breaks."""
        if len(text) > REFERENCE_CHARACTERS:
            raise InvalidNameError("a reference", text, f"it has more than {REFERENCE_CHARACTERS} characters")
        if text.startswith("sha256:"):
            return cls(None, digest_hex=Digest.parse(text).hex)
        name, at, selector = text.partition("@")
        adapter = AdapterName.parse(name)
        if not at:
            return cls(adapter)
        if selector.startswith("sha256:"):
            return cls(adapter, digest_hex=_parse_digest_prefix(selector))
        if selector[:1].isdigit():
            return cls(adapter, number=_parse_number(selector))
        return cls(adapter, alias=parse_alias(selector))

    @property
    def is_bare(self) -> bool:
        """Whether this is an adapter's name alone, which means its newest version."""
        return self.number is None and self.alias is None and self.digest_hex is None

    def __str__(self) -> str:
        if self.adapter is None:
            return f"sha256:{self.digest_hex}"
        if self.digest_hex is not None:
            return f"{self.adapter}@sha256:{self.digest_hex}"
        selector = self.alias if self.number is None else str(self.number)
        return str(self.adapter) if selector is None else f"{self.adapter}@{selector}"


def _parse_digest_prefix(text: str) -> str:
    digits = text.removeprefix("sha256:")
    if not DIGEST_PREFIX_MIN_DIGITS <= len(digits) <= SHA256_DIGITS or not _HEX.fullmatch(digits):
        raise InvalidNameError(
            "a digest",
            text,
            f"after '@sha256:' come {DIGEST_PREFIX_MIN_DIGITS} to {SHA256_DIGITS} digits of 0-9 and a-f",
        )
    return digits


def _parse_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidNameError(
            "a version number", text, f"versions are 1, 2, 3 ... with at most {VERSION_NUMBER_DIGITS} digits"
        )
    return int(text)
