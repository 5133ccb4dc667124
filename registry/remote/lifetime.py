"""What is kept and what goes, of a registry over HTTP: deletion, pins, leases and retention."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from registry.errors import InvalidNameError
from registry.lease import Lease, Pin
from registry.names import AdapterName
from registry.principal import OPERATOR, Principal
from registry.remote.paths import adapter_path, reference_of, version_path
from registry.remote.transport import Transport
from registry.retention_rule import RetentionRule


class RemoteLifetime:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def delete_version(self, ref: str, principal: Principal, *, force: bool = False) -> None:
        """Delete a version that nothing needs; `force` overrules a server that has it loaded, and a rollback's need."""
        if reference_of(ref).is_bare:
            raise InvalidNameError("a version to delete", ref, "name the adapter and the version: acme/text2sql@3")
        params = {"force": "true"} if force else None
        self._http.ask("DELETE", version_path(ref), dict[str, str], principal=principal, params=params)

    def delete_adapter(self, name: str, principal: Principal) -> None:
        """Delete an adapter with all its versions and aliases. Its name rests for a year."""
        self._http.ask("DELETE", adapter_path(name), dict[str, str], principal=principal)

    def move_adapter(self, old: str, new: str, principal: Principal) -> None:
        """Rename an adapter within its tenant. Its old name rests for a year."""
        body = {"to": str(AdapterName.parse(new))}
        self._http.ask("POST", f"{adapter_path(old)}/move", dict[str, str], principal=principal, body=body)

    def moved_to(self, name: str, principal: Principal) -> str | None:
        """Where the adapter of this name went, if it was renamed and the caller may read it there."""
        path = f"{adapter_path(name)}/moved-to"
        return self._http.get(path, dict[str, str | None], principal=principal)["moved_to"]

    def lease(
        self, refs: Sequence[str], *, holder: str, duration: timedelta, principal: Principal = OPERATOR
    ) -> list[str]:
        """Say that a server uses these versions (`TENANT/NAME@NUMBER`) from now on; returns those it may keep."""
        body = {"versions": list(refs), "holder": holder, "seconds": duration.total_seconds()}
        return self._http.ask("POST", "/leases", list[str], principal=principal, body=body)

    def release_leases(self, holder: str, *, principal: Principal = OPERATOR) -> int:
        """Say that a server uses nothing any more."""
        params = {"holder": holder}
        return self._http.ask("DELETE", "/leases", dict[str, int], principal=principal, params=params)["released"]

    def leases(self, name: str, principal: Principal) -> list[Lease]:
        """Which servers use which versions of an adapter now."""
        return self._http.get(f"{adapter_path(name)}/leases", list[Lease], principal=principal)

    def pin(self, ref: str, *, reason: str, principal: Principal) -> Pin:
        """Keep a version until it is unpinned."""
        path = f"{version_path(ref)}/pin"
        return self._http.ask("PUT", path, Pin, principal=principal, body={"reason": reason})

    def unpin(self, ref: str, *, principal: Principal) -> Pin:
        """Keep a version no longer; returns the pin that was there."""
        return self._http.ask("DELETE", f"{version_path(ref)}/pin", Pin, principal=principal)

    def pins(self, name: str, principal: Principal) -> list[Pin]:
        """The pins of an adapter's versions."""
        return self._http.get(f"{adapter_path(name)}/pins", list[Pin], principal=principal)

    def retention(self, name: str, principal: Principal) -> RetentionRule | None:
        """How long an adapter's versions are kept; None is for ever."""
        path = f"{adapter_path(name)}/retention"
        return self._http.get(path, dict[str, RetentionRule | None], principal=principal)["rule"]

    def set_retention(self, name: str, rule: RetentionRule | None, principal: Principal) -> RetentionRule | None:
        """Set how long an adapter's versions are kept; None is for ever."""
        path = f"{adapter_path(name)}/retention"
        method = "DELETE" if rule is None else "PUT"
        body = None if rule is None else {"keep_last": rule.keep_last, "keep_days": rule.keep_days}
        kind = dict[str, RetentionRule | None]
        return self._http.ask(method, path, kind, principal=principal, body=body)["rule"]
