"""Promotion, rollback and deletion: an alias moves by compare-and-set; its history keeps who, when, and why."""

from __future__ import annotations

from registry.aliases import Aliases
from registry.bounded_text import check_text
from registry.canaries import Canaries
from registry.errors import InvalidNameError, InvalidValueError
from registry.expected import Expected
from registry.failpoints import reach
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.policies import GateVerdict
from registry.principal import Principal, Role
from registry.version import AliasMove

EVIDENCE_CHARACTERS = 10_000
REASON_CHARACTERS = 1_000
"""Of a deletion's evidence: over HTTP it stands in the address."""


def promote(
    aliases: Aliases, ref: AdapterRef, alias: str, *, principal: Principal, expected: Expected, evidence: str
) -> AliasMove:
    """Point the alias at a version of its own adapter, through the alias's gate.

    Raises NotFoundError, PermissionDeniedError, AliasMovedError, GateError.
    """
    if ref.adapter is None:
        raise InvalidNameError("a version to promote", str(ref), "name the adapter too, such as acme/text2sql@3")
    parse_alias(alias)
    _check(aliases, ref.adapter, principal, evidence)
    move = aliases.promote(ref, alias, expected=expected, evidence=evidence, principal=principal)
    reach("promote.after_commit")
    return move


def promote_canary(
    aliases: Aliases,
    canaries: Canaries,
    name: AdapterName,
    alias: str,
    *,
    principal: Principal,
    expected: Expected,
    evidence: str,
) -> AliasMove:
    """Point the alias at its canary's candidate. Raises as `promote` does, and NotFoundError where no canary runs."""
    parse_alias(alias)
    _check(aliases, name, principal, evidence)
    return canaries.promote(name, alias, expected=expected, evidence=evidence, principal=principal)


def check_gate(aliases: Aliases, ref: AdapterRef, alias: str, principal: Principal) -> GateVerdict | None:
    """How the alias's policy would judge this version now. Raises NotFoundError."""
    if ref.adapter is None:
        raise InvalidNameError("a version to judge", str(ref), "name the adapter too, such as acme/text2sql@3")
    return aliases.check_gate(ref, parse_alias(alias), principal)


def roll_back(
    aliases: Aliases, name: AdapterName, alias: str, *, principal: Principal, expected: Expected, evidence: str
) -> AliasMove:
    """Undo the alias's last promotion. Raises NotFoundError, PermissionDeniedError, ConflictError, AliasMovedError."""
    parse_alias(alias)
    _check(aliases, name, principal, evidence)
    return aliases.roll_back(name, alias, expected=expected, evidence=evidence, principal=principal)


def delete_alias(
    aliases: Aliases, name: AdapterName, alias: str, *, principal: Principal, expected: Expected, evidence: str
) -> AliasMove:
    """Take an alias away; its history stays. Raises NotFoundError, PermissionDeniedError, AliasMovedError."""
    check_text("evidence", evidence, limit_characters=REASON_CHARACTERS)
    if expected is None:
        raise InvalidValueError("expected", "what must not exist cannot be deleted; leave it out, or name a number")
    parse_alias(alias)
    _check(aliases, name, principal, evidence, action="delete an alias of")
    move = aliases.delete(name, alias, expected=expected, evidence=evidence, principal=principal)
    reach("promote.after_commit")
    return move


def _check(
    aliases: Aliases, name: AdapterName, principal: Principal, evidence: str, *, action: str = "move an alias of"
) -> None:
    """What the caller may not read is missing; only what it may read can be forbidden."""
    check_text("evidence", evidence, limit_characters=EVIDENCE_CHARACTERS)
    aliases.current(name, principal)
    principal.require(Role.PROMOTER, name, action=action)
