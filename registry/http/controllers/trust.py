"""Policies of aliases, gates, attestations and canaries; the policies of tenants."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, delete, get, patch, post, put
from litestar.params import JSONBody, QueryParameter

from registry.attestation import Attestation
from registry.attestations import METRICS_LIMIT, NOTE_CHARACTERS
from registry.canary import PERMILLE
from registry.errors import NotFoundError
from registry.http.controllers.aliases import MOVED, Evidence, Number, Selector
from registry.http.controllers.versions import RefQuery
from registry.http.parameters import AliasPart, IfMatch, NamePart, TenantPart, etag_of, expected_of
from registry.http.service import caller_of, registry_of
from registry.names import ALIAS_CHARACTERS, REFERENCE_CHARACTERS
from registry.policies import FIGURE_LIMIT, AliasPolicy, GateVerdict, PolicyRecord, parse_policy
from registry.tenant_policy import UPSTREAM_CHARACTERS, TenantPolicy
from registry.version import AliasMove, Canary, Split

AliasQuery = Annotated[str, QueryParameter(name="alias", max_length=ALIAS_CHARACTERS, description="Such as `prod`.")]
Reference = Annotated[
    str, msgspec.Meta(min_length=1, max_length=REFERENCE_CHARACTERS, description="Such as `acme/sql@3`.")
]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Note = Annotated[str, msgspec.Meta(max_length=NOTE_CHARACTERS)]
Figure = Annotated[float, msgspec.Meta(ge=-FIGURE_LIMIT, le=FIGURE_LIMIT)]
Permille = Annotated[int, msgspec.Meta(ge=1, le=PERMILLE, description="Thousandths of the alias's requests.")]


class GateAnswer(msgspec.Struct, frozen=True):
    """How a policy judges a version now; null where the alias has no policy."""

    verdict: GateVerdict | None


class NewEvaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Figures that somebody measured of a version."""

    ref: Reference
    name: Name
    metrics: Annotated[dict[Name, Figure], msgspec.Meta(min_length=1, max_length=METRICS_LIMIT)]
    passed: bool | None = None
    note: Note = ""


class NewRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody ran on a version, and whether it passed."""

    ref: Reference
    name: Name
    passed: bool
    note: Note = ""


class NewApproval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That the version may become what the alias points at."""

    ref: Reference
    alias: Annotated[str, msgspec.Meta(min_length=1, max_length=ALIAS_CHARACTERS)]
    note: Note = ""


class NewCanary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The candidate (null: the newest version) and its weight."""

    permille: Permille
    version: Selector | None = None


class Weight(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another weight."""

    permille: Permille


class CanaryPromotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why, and which version the alias must point at before."""

    evidence: Evidence = ""
    expected_version: Number | None = None


class TenantPolicyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Fields to change; what is left out stays. `upstream` is the operator's to change; an empty one is none."""

    unverified_base: Literal["allow", "refuse"] | None = None
    require_signature: bool | None = None
    upstream: Annotated[str, msgspec.Meta(max_length=UPSTREAM_CHARACTERS)] | None = None


class PolicyController(Controller):
    """What a version must show before an alias may point at it."""

    path = "/adapters/{tenant:str}/{name:str}"
    tags = ("policies",)

    @get("/policies", sync_to_thread=True)
    def list_policies(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> list[PolicyRecord]:
        """The policies of an adapter's aliases."""
        return registry_of(request).policies(f"{tenant}/{name}", caller_of(request))

    @get("/aliases/{alias:str}/policy", sync_to_thread=True)
    def show_policy(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, alias: AliasPart
    ) -> PolicyRecord:
        """The alias's policy."""
        return registry_of(request).policy(f"{tenant}/{name}", alias, caller_of(request))

    @put("/aliases/{alias:str}/policy", sync_to_thread=True)
    def set_policy(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[AliasPolicy],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
    ) -> PolicyRecord:
        """Set the alias's policy, in the place of the one before. Needs the role admin."""
        policy = parse_policy(msgspec.to_builtins(data))
        return registry_of(request).set_policy(f"{tenant}/{name}", alias, policy, principal=caller_of(request))

    @delete("/aliases/{alias:str}/policy", status_code=200, sync_to_thread=True)
    def remove_policy(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, alias: AliasPart
    ) -> PolicyRecord:
        """Take the alias's policy away; the answer is what it was. Needs the role admin."""
        reg, caller = registry_of(request), caller_of(request)
        record = reg.policy(f"{tenant}/{name}", alias, caller)
        reg.remove_policy(f"{tenant}/{name}", alias, principal=caller)
        return record


class GateController(Controller):
    """Versions before the policies of aliases, without moving anything."""

    path = "/gate"
    tags = ("policies",)

    @get(sync_to_thread=True)
    def check(self, request: Request[Any, Any, Any], ref: RefQuery, alias: AliasQuery) -> GateAnswer:
        """How the alias's policy would judge the version now, check by check."""
        return GateAnswer(registry_of(request).check_gate(ref, alias, caller_of(request)))


class AttestationController(Controller):
    """What is said of versions: evaluations, probe runs, scans and approvals. None is ever changed."""

    path = "/attestations"
    tags = ("attestations",)

    @get(sync_to_thread=True)
    def list_attestations(self, request: Request[Any, Any, Any], ref: RefQuery) -> list[Attestation]:
        """What is attested of a version, oldest first."""
        return registry_of(request).attestations(ref, caller_of(request))

    @post("/evaluations", sync_to_thread=True)
    def attest_evaluation(self, request: Request[Any, Any, Any], data: JSONBody[NewEvaluation]) -> Attestation:
        """Record figures that were measured. Needs the role publisher."""
        reg, caller = registry_of(request), caller_of(request)
        return reg.attest_evaluation(
            data.ref, data.name, data.metrics, principal=caller, passed=data.passed, note=data.note
        )

    @post("/probes", sync_to_thread=True)
    def attest_probes(self, request: Request[Any, Any, Any], data: JSONBody[NewRun]) -> Attestation:
        """Record that the manifest's probes were run. Needs the role publisher."""
        reg, caller = registry_of(request), caller_of(request)
        return reg.attest_probes(data.ref, name=data.name, passed=data.passed, principal=caller, note=data.note)

    @post("/scans", sync_to_thread=True)
    def attest_scan(self, request: Request[Any, Any, Any], data: JSONBody[NewRun]) -> Attestation:
        """Record what a scanner found. Needs the role publisher."""
        reg, caller = registry_of(request), caller_of(request)
        return reg.attest_scan(data.ref, data.name, passed=data.passed, principal=caller, note=data.note)

    @post("/approvals", sync_to_thread=True)
    def approve(self, request: Request[Any, Any, Any], data: JSONBody[NewApproval]) -> Attestation:
        """Approve a version for an alias. Needs the role promoter."""
        return registry_of(request).approve(data.ref, data.alias, principal=caller_of(request), note=data.note)


class CanaryController(Controller):
    """A second version for a part of an alias's requests."""

    path = "/adapters/{tenant:str}/{name:str}"
    tags = ("canaries",)

    @get("/canaries", sync_to_thread=True)
    def list_canaries(self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart) -> list[Canary]:
        """The canaries that run on the adapter's aliases."""
        return registry_of(request).canaries(f"{tenant}/{name}", caller_of(request))

    @get("/aliases/{alias:str}/canary", sync_to_thread=True)
    def show_canary(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, alias: AliasPart
    ) -> Canary:
        """The alias's canary."""
        for canary in registry_of(request).canaries(f"{tenant}/{name}", caller_of(request)):
            if canary.alias == alias:
                return canary
        raise NotFoundError("canary", f"{tenant}/{name}@{alias}", "Start one with PUT on this path.")

    @put("/aliases/{alias:str}/canary", sync_to_thread=True)
    def start_canary(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[NewCanary],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
    ) -> Canary:
        """Start a canary, in the place of one that runs. Needs the role promoter."""
        ref = f"{tenant}/{name}" if data.version is None else f"{tenant}/{name}@{data.version}"
        return registry_of(request).start_canary(ref, alias, permille=data.permille, principal=caller_of(request))

    @patch("/aliases/{alias:str}/canary", sync_to_thread=True)
    def change_canary(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[Weight],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
    ) -> Canary:
        """Give the canary another weight."""
        return registry_of(request).change_canary(
            f"{tenant}/{name}", alias, permille=data.permille, principal=caller_of(request)
        )

    @delete("/aliases/{alias:str}/canary", status_code=200, sync_to_thread=True)
    def stop_canary(
        self, request: Request[Any, Any, Any], tenant: TenantPart, name: NamePart, alias: AliasPart
    ) -> Canary:
        """Give every request to the version that the alias points at; the answer is what ran."""
        return registry_of(request).stop_canary(f"{tenant}/{name}", alias, principal=caller_of(request))

    @post("/aliases/{alias:str}/canary/promotion", status_code=200, sync_to_thread=True, responses=MOVED)
    def promote_canary(
        self,
        request: Request[Any, Any, Any],
        data: JSONBody[CanaryPromotion],
        tenant: TenantPart,
        name: NamePart,
        alias: AliasPart,
        if_match: IfMatch = None,
    ) -> Response[AliasMove]:
        """Point the alias at the candidate, through the alias's gate; that ends the canary."""
        move = registry_of(request).promote_canary(
            f"{tenant}/{name}",
            alias,
            principal=caller_of(request),
            expected=expected_of(if_match, None, data.expected_version),
            evidence=data.evidence,
        )
        return Response(move, headers={"etag": etag_of(move)})


class SplitController(Controller):
    """What references mean while canaries run."""

    path = "/split"
    tags = ("canaries",)

    @get(sync_to_thread=True)
    def resolve_split(self, request: Request[Any, Any, Any], ref: RefQuery) -> Split:
        """The version that a reference means now, and the canary that shares its requests."""
        return registry_of(request).resolve_split(ref, principal=caller_of(request))


class TenantPolicyController(Controller):
    """What tenants demand of adapters that enter."""

    path = "/tenants/{tenant:str}/policy"
    tags = ("tenants",)

    @get(sync_to_thread=True)
    def show_tenant_policy(self, request: Request[Any, Any, Any], tenant: TenantPart) -> TenantPolicy:
        """The tenant's policy."""
        return registry_of(request).tenant_policy(tenant, principal=caller_of(request))

    @patch(sync_to_thread=True)
    def set_tenant_policy(
        self, request: Request[Any, Any, Any], data: JSONBody[TenantPolicyChange], tenant: TenantPart
    ) -> TenantPolicy:
        """Change some fields. Needs the role admin."""
        changes = {name: value for name, value in msgspec.to_builtins(data).items() if value is not None}
        return registry_of(request).set_tenant_policy(tenant, changes, principal=caller_of(request))
