"""Aliases and their canaries of a registry in process."""

from __future__ import annotations

from registry.aliases import Aliases
from registry.canaries import Canaries
from registry.expected import ANY, Expected
from registry.mirrors import Mirrors
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.principal import Principal
from registry.promote import delete_alias, promote, promote_canary, roll_back
from registry.tally import Tally
from registry.version import AliasMove, Canary, Split


class LocalAliases:
    """A part of `Registry`: where aliases point, and how that changes."""

    def __init__(self, aliases: Aliases, canaries: Canaries, mirrors: Mirrors, tally: Tally) -> None:
        self._aliases = aliases
        self._canaries = canaries
        self._mirrors = mirrors
        self._tally = tally

    def aliases(self, name: str, principal: Principal) -> dict[str, int]:
        """Version numbers by alias."""
        return self._aliases.current(AdapterName.parse(name), principal)

    def alias_history(self, name: str, alias: str, principal: Principal) -> list[AliasMove]:
        """Every move of an alias, newest first; also of one that was deleted."""
        return self._aliases.history(AdapterName.parse(name), parse_alias(alias), principal)

    def promote(
        self, ref: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Point an alias at a version; `expected` is the number that it must point at before (None: must be new)."""
        parsed = AdapterRef.parse(ref)
        return self._tally.move(
            "promote",
            lambda: promote(self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence),
        )

    def rollback(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Undo an alias's last promotion."""
        parsed = AdapterName.parse(name)
        return self._tally.move(
            "rollback",
            lambda: roll_back(self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence),
        )

    def delete_alias(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Take an alias away, and its canary with it. Its history and its policy stay; nothing is kept for its sake."""
        parsed = AdapterName.parse(name)
        return self._tally.move(
            "delete",
            lambda: delete_alias(
                self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence
            ),
        )

    def canaries(self, name: str, principal: Principal) -> list[Canary]:
        """The canaries that run on an adapter's aliases."""
        return self._canaries.all(AdapterName.parse(name), principal)

    def start_canary(self, ref: str, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give so many thousandths of the alias's requests to this version."""
        return self._canaries.start(AdapterRef.parse(ref), alias, permille=permille, principal=principal)

    def change_canary(self, name: str, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give the alias's canary another weight."""
        return self._canaries.change(AdapterName.parse(name), alias, permille=permille, principal=principal)

    def stop_canary(self, name: str, alias: str, *, principal: Principal) -> Canary:
        """Give every request of the alias to the version that it points at."""
        return self._canaries.stop(AdapterName.parse(name), alias, principal=principal)

    def promote_canary(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Point an alias at its canary's candidate, through the alias's gate."""
        parsed = AdapterName.parse(name)
        return self._tally.move(
            "promote",
            lambda: promote_canary(
                self._aliases, self._canaries, parsed, alias, principal=principal, expected=expected, evidence=evidence
            ),
        )

    def resolve_split(self, ref: str, *, principal: Principal) -> Split:
        """What the reference means now, with the canary that runs on it."""
        return self._mirrors.pulling_through(lambda: self._canaries.resolve_split(ref, principal), ref, principal)
