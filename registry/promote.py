"""Promotion and rollback: an alias moves by compare-and-set, and its history keeps who, when, and why."""

from __future__ import annotations

from registry.aliases import Aliases, Expected
from registry.bounded_text import check_text
from registry.errors import InvalidNameError
from registry.failpoints import reach
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.principal import Principal, Role
from registry.version import AliasMove

EVIDENCE_CHARACTERS = 10_000


def promote(
    aliases: Aliases, ref: AdapterRef, alias: str, *, principal: Principal, expected: Expected, evidence: str
) -> AliasMove:
    """Point the alias at a version of its own adapter. Raises NotFoundError, PermissionDeniedError, AliasMovedError."""
    if ref.adapter is None:
        raise InvalidNameError("a version to promote", str(ref), "name the adapter too, such as acme/text2sql@3")
    parse_alias(alias)
    _check(aliases, ref.adapter, principal, evidence)
    move = aliases.promote(ref, alias, expected=expected, evidence=evidence, principal=principal)
    reach("promote.after_commit")
    return move


def roll_back(
    aliases: Aliases, name: AdapterName, alias: str, *, principal: Principal, expected: Expected, evidence: str
) -> AliasMove:
    """Undo the alias's last promotion. Raises NotFoundError, PermissionDeniedError, ConflictError, AliasMovedError."""
    parse_alias(alias)
    _check(aliases, name, principal, evidence)
    return aliases.roll_back(name, alias, expected=expected, evidence=evidence, principal=principal)


def _check(aliases: Aliases, name: AdapterName, principal: Principal, evidence: str) -> None:
    """What the caller may not read is missing; only what it may read can be forbidden."""
    check_text("evidence", evidence, limit_characters=EVIDENCE_CHARACTERS)
    aliases.current(name, principal)
    principal.require(Role.PROMOTER, name, action="move an alias of")
