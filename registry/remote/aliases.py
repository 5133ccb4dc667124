"""Aliases and their canaries of a registry over HTTP."""

from __future__ import annotations

from typing import Any

from registry.errors import InvalidNameError, InvalidValueError
from registry.expected import ANY, AtSequence, Expectation, Expected
from registry.names import AdapterRef
from registry.principal import Principal
from registry.remote.paths import adapter_path, alias_path, reference_of
from registry.remote.transport import Transport
from registry.version import AliasMove, Canary, Split


class RemoteAliases:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def aliases(self, name: str, principal: Principal) -> dict[str, int]:
        """Version numbers by alias."""
        return self._http.get(adapter_path(name) + "/aliases", dict[str, int], principal=principal)

    def alias_history(self, name: str, alias: str, principal: Principal) -> list[AliasMove]:
        """Every move of an alias, newest first; also of one that was deleted."""
        return self._http.get(alias_path(name, alias) + "/history", list[AliasMove], principal=principal)

    def promote(
        self, ref: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Point an alias at a version; `expected` is the number that it must point at before (None: must be new)."""
        parsed = AdapterRef.parse(ref)
        if parsed.adapter is None:
            raise InvalidNameError("a version to promote", ref, "name the adapter too, such as acme/text2sql@3")
        body: dict[str, Any] = {"evidence": evidence}
        if not parsed.is_bare:
            body["version"] = ref.partition("@")[2]
        return self._move("PUT", alias_path(str(parsed.adapter), alias), principal, body, expected)

    def rollback(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Undo an alias's last promotion."""
        return self._move("POST", alias_path(name, alias) + "/rollback", principal, {"evidence": evidence}, expected)

    def delete_alias(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Take an alias away, and its canary with it. Its history and its policy stay; nothing is kept for its sake."""
        if expected is None:
            raise InvalidValueError("expected", "what must not exist cannot be deleted; leave it out, or name a number")
        params: dict[str, Any] = {"evidence": evidence or None}
        headers = _conditions_of(expected, params)
        path = alias_path(name, alias)
        return self._http.ask("DELETE", path, AliasMove, principal=principal, params=params, headers=headers)

    def canaries(self, name: str, principal: Principal) -> list[Canary]:
        """The canaries that run on an adapter's aliases."""
        return self._http.get(adapter_path(name) + "/canaries", list[Canary], principal=principal)

    def start_canary(self, ref: str, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give so many thousandths of the alias's requests to this version."""
        reference = reference_of(ref)
        version = None if reference.is_bare else str(reference).partition("@")[2]
        body = {"version": version, "permille": permille}
        path = alias_path(str(reference.adapter), alias) + "/canary"
        return self._http.ask("PUT", path, Canary, principal=principal, body=body)

    def change_canary(self, name: str, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give the alias's canary another weight."""
        path = alias_path(name, alias) + "/canary"
        return self._http.ask("PATCH", path, Canary, principal=principal, body={"permille": permille})

    def stop_canary(self, name: str, alias: str, *, principal: Principal) -> Canary:
        """Give every request of the alias to the version that it points at."""
        return self._http.ask("DELETE", alias_path(name, alias) + "/canary", Canary, principal=principal)

    def promote_canary(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Point an alias at its canary's candidate, through the alias's gate."""
        path = alias_path(name, alias) + "/canary/promotion"
        return self._move("POST", path, principal, {"evidence": evidence}, expected)

    def resolve_split(self, ref: str, *, principal: Principal) -> Split:
        """What the reference means now, with the canary that runs on it."""
        AdapterRef.parse(ref)
        return self._http.get("/split", Split, principal=principal, params={"ref": ref})

    def _move(
        self, method: str, path: str, principal: Principal, body: dict[str, Any], expected: Expected
    ) -> AliasMove:
        headers = _conditions_of(expected, body)
        return self._http.ask(method, path, AliasMove, principal=principal, body=body, headers=headers)


def _conditions_of(expected: Expected, body: dict[str, Any]) -> dict[str, str]:
    """The headers of an expectation; what no header can say is added to the body."""
    if expected is None:
        return {"if-none-match": "*"}
    if isinstance(expected, AtSequence):
        return {"if-match": f'"{expected.sequence}"'}
    if not isinstance(expected, Expectation):
        body["expected_version"] = expected
    return {}
