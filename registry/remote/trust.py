"""Policies, attestations and gates of a registry over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from registry.attestation import Attestation
from registry.names import AdapterRef, parse_alias, parse_tenant
from registry.policies import AliasPolicy, GateVerdict, PolicyRecord
from registry.principal import OPERATOR, Principal
from registry.remote.paths import adapter_path, alias_path, reference_of
from registry.remote.transport import Transport, part
from registry.tenant_policy import TenantPolicy


class _Judged(msgspec.Struct):
    verdict: GateVerdict | None


class RemoteTrust:
    """A part of `RemoteRegistry`; the contracts are those of `registry.local`."""

    def __init__(self, http: Transport) -> None:
        self._http = http

    def tenant_policy(self, tenant: str, *, principal: Principal = OPERATOR) -> TenantPolicy:
        """What a tenant demands of adapters that enter."""
        return self._http.get(f"/tenants/{part(parse_tenant(tenant))}/policy", TenantPolicy, principal=principal)

    def set_tenant_policy(
        self, tenant: str, changes: Mapping[str, Any], *, principal: Principal = OPERATOR
    ) -> TenantPolicy:
        """Change some fields of a tenant's policy."""
        path = f"/tenants/{part(parse_tenant(tenant))}/policy"
        return self._http.ask("PATCH", path, TenantPolicy, principal=principal, body=changes)

    def set_policy(self, name: str, alias: str, policy: AliasPolicy, *, principal: Principal) -> PolicyRecord:
        """Set what a version must show before the alias may point at it."""
        body: dict[str, Any] = msgspec.to_builtins(policy)
        path = alias_path(name, alias) + "/policy"
        return self._http.ask("PUT", path, PolicyRecord, principal=principal, body=body)

    def remove_policy(self, name: str, alias: str, *, principal: Principal) -> None:
        """Take an alias's policy away."""
        self._http.ask("DELETE", alias_path(name, alias) + "/policy", PolicyRecord, principal=principal)

    def policies(self, name: str, principal: Principal) -> list[PolicyRecord]:
        """The policies of an adapter's aliases."""
        return self._http.get(adapter_path(name) + "/policies", list[PolicyRecord], principal=principal)

    def policy(self, name: str, alias: str, principal: Principal) -> PolicyRecord:
        """The policy of an alias."""
        return self._http.get(alias_path(name, alias) + "/policy", PolicyRecord, principal=principal)

    def check_gate(self, ref: str, alias: str, principal: Principal) -> GateVerdict | None:
        """How the alias's policy would judge a version now; None where it has none."""
        params = {"ref": str(reference_of(ref)), "alias": parse_alias(alias)}
        return self._http.get("/gate", _Judged, principal=principal, params=params).verdict

    def attestations(self, ref: str, principal: Principal) -> list[Attestation]:
        """What is attested of a version, oldest first."""
        params = {"ref": str(AdapterRef.parse(ref))}
        return self._http.get("/attestations", list[Attestation], principal=principal, params=params)

    def attest_evaluation(
        self,
        ref: str,
        name: str,
        metrics: Mapping[str, float],
        *,
        principal: Principal,
        passed: bool | None = None,
        note: str = "",
    ) -> Attestation:
        """Record figures that somebody measured of a version."""
        body = {"name": name, "metrics": dict(metrics), "passed": passed, "note": note}
        return self._attest(ref, "evaluations", body, principal)

    def attest_probes(
        self, ref: str, *, passed: bool, principal: Principal, name: str = "probes", note: str = ""
    ) -> Attestation:
        """Record that the manifest's probes were run."""
        return self._attest(ref, "probes", {"name": name, "passed": passed, "note": note}, principal)

    def attest_scan(self, ref: str, scanner: str, *, passed: bool, principal: Principal, note: str = "") -> Attestation:
        """Record what a scanner found."""
        return self._attest(ref, "scans", {"name": scanner, "passed": passed, "note": note}, principal)

    def approve(self, ref: str, alias: str, *, principal: Principal, note: str = "") -> Attestation:
        """Approve a version for an alias."""
        return self._attest(ref, "approvals", {"alias": alias, "note": note}, principal)

    def _attest(self, ref: str, kind: str, body: dict[str, Any], principal: Principal) -> Attestation:
        body = {"ref": str(AdapterRef.parse(ref))} | body
        return self._http.ask("POST", f"/attestations/{kind}", Attestation, principal=principal, body=body)
