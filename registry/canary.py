"""Which requests of an alias its canary gets: a pure function of the request's key, the same on every server.

A key keeps its side for as long as the canary runs with this weight, and keeps the canary when the weight grows.
Another candidate deals the keys anew, so that no user is always the first to meet what is new.
"""

from __future__ import annotations

import hashlib

PERMILLE = 1000
_DRAW_BYTES = 8


def gets_canary(*, alias: str, digest: str, key: str, permille: int) -> bool:
    """Whether the request with this key goes to the candidate. `alias` is the full one, such as `acme/sql@prod`."""
    return place_of(alias=alias, digest=digest, key=key) < permille


def place_of(*, alias: str, digest: str, key: str) -> int:
    """The key's place among 0 to 999: SHA-256 over alias, candidate and key, modulo 1000."""
    text = "\0".join((alias, digest, key)).encode("utf-8", "surrogatepass")
    drawn = int.from_bytes(hashlib.sha256(text).digest()[:_DRAW_BYTES], "big")
    return drawn % PERMILLE
