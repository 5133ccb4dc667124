"""Policies, attestations and gates of a registry in process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from registry.alias_policies import AliasPolicies
from registry.aliases import Aliases
from registry.attestation import Attestation
from registry.attestations import Attestations
from registry.database import Database
from registry.names import AdapterName, AdapterRef
from registry.policies import AliasPolicy, GateVerdict, PolicyRecord
from registry.principal import OPERATOR, Principal
from registry.promote import check_gate
from registry.tenant_policies import TenantPolicies
from registry.tenant_policy import TenantPolicy


class LocalTrust:
    """A part of `Registry`: what versions must show, and what is attested of them."""

    def __init__(self, database: Database, aliases: Aliases, tenant_policies: TenantPolicies) -> None:
        self._aliases = aliases
        self._tenant_policies = tenant_policies
        self._alias_policies = AliasPolicies(database)
        self._attestations = Attestations(database)

    def tenant_policy(self, tenant: str, *, principal: Principal = OPERATOR) -> TenantPolicy:
        """What a tenant demands of adapters that enter."""
        return self._tenant_policies.read(tenant, principal)

    def set_tenant_policy(
        self, tenant: str, changes: Mapping[str, Any], *, principal: Principal = OPERATOR
    ) -> TenantPolicy:
        """Change some fields of a tenant's policy."""
        return self._tenant_policies.set(tenant, changes, principal=principal)

    def set_policy(self, name: str, alias: str, policy: AliasPolicy, *, principal: Principal) -> PolicyRecord:
        """Set what a version must show before the alias may point at it."""
        return self._alias_policies.set(AdapterName.parse(name), alias, policy, principal)

    def remove_policy(self, name: str, alias: str, *, principal: Principal) -> None:
        """Take an alias's policy away."""
        self._alias_policies.remove(AdapterName.parse(name), alias, principal)

    def policies(self, name: str, principal: Principal) -> list[PolicyRecord]:
        """The policies of an adapter's aliases."""
        return self._alias_policies.all(AdapterName.parse(name), principal)

    def policy(self, name: str, alias: str, principal: Principal) -> PolicyRecord:
        """The policy of an alias."""
        return self._alias_policies.find(AdapterName.parse(name), alias, principal)

    def check_gate(self, ref: str, alias: str, principal: Principal) -> GateVerdict | None:
        """How the alias's policy would judge a version now; None where it has none."""
        return check_gate(self._aliases, AdapterRef.parse(ref), alias, principal)

    def attestations(self, ref: str, principal: Principal) -> list[Attestation]:
        """What is attested of a version, oldest first."""
        return self._attestations.of(AdapterRef.parse(ref), principal)

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
        parsed = AdapterRef.parse(ref)
        return self._attestations.evaluation(parsed, name, metrics, passed=passed, note=note, principal=principal)

    def attest_probes(
        self, ref: str, *, passed: bool, principal: Principal, name: str = "probes", note: str = ""
    ) -> Attestation:
        """Record that the manifest's probes were run."""
        parsed = AdapterRef.parse(ref)
        return self._attestations.probes(parsed, name, passed=passed, note=note, principal=principal)

    def attest_scan(self, ref: str, scanner: str, *, passed: bool, principal: Principal, note: str = "") -> Attestation:
        """Record what a scanner found."""
        parsed = AdapterRef.parse(ref)
        return self._attestations.scan(parsed, scanner, passed=passed, note=note, principal=principal)

    def approve(self, ref: str, alias: str, *, principal: Principal, note: str = "") -> Attestation:
        """Approve a version for an alias."""
        return self._attestations.approve(AdapterRef.parse(ref), alias, note=note, principal=principal)
