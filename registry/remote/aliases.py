"""Aliases of a registry over HTTP."""

from __future__ import annotations

from typing import Any

from registry.aliases import ANY, AtSequence, Expectation, Expected
from registry.errors import InvalidNameError
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.principal import Principal
from registry.remote.transport import Transport, part
from registry.version import AliasMove


class RemoteAliases:
    """A part of `RemoteRegistry`; the contracts are those of `registry.registry.Registry`."""

    _http: Transport

    def aliases(self, name: str, principal: Principal) -> dict[str, int]:
        """Version numbers by alias."""
        return self._http.get(_path_of(AdapterName.parse(name)), dict[str, int], principal=principal)

    def alias_history(self, name: str, alias: str, principal: Principal) -> list[AliasMove]:
        """Every move of an alias, newest first."""
        path = f"{_path_of(AdapterName.parse(name))}/{part(parse_alias(alias))}/history"
        return self._http.get(path, list[AliasMove], principal=principal)

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
        path = f"{_path_of(parsed.adapter)}/{part(parse_alias(alias))}"
        return self._move("PUT", path, principal, body, expected)

    def rollback(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Undo an alias's last promotion."""
        path = f"{_path_of(AdapterName.parse(name))}/{part(parse_alias(alias))}/rollback"
        return self._move("POST", path, principal, {"evidence": evidence}, expected)

    def _move(
        self, method: str, path: str, principal: Principal, body: dict[str, Any], expected: Expected
    ) -> AliasMove:
        headers = conditions_of(expected, body)
        return self._http.ask(method, path, AliasMove, principal=principal, body=body, headers=headers)


def conditions_of(expected: Expected, body: dict[str, Any]) -> dict[str, str]:
    """The headers of an expectation; what no header can say is added to the body."""
    if expected is None:
        return {"if-none-match": "*"}
    if isinstance(expected, AtSequence):
        return {"if-match": f'"{expected.sequence}"'}
    if not isinstance(expected, Expectation):
        body["expected_version"] = expected
    return {}


def _path_of(name: AdapterName) -> str:
    return f"/adapters/{part(name.tenant)}/{part(name.name)}/aliases"
