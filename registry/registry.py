"""The registry as its users see it: one object over a catalog and its blobs (`opening.py` opens them).

FOLDER/catalog.sqlite    tenants, tokens, bases, adapters, versions, aliases, audit log
FOLDER/blobs/            the files of the versions, by digest
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from registry.alias_policies import AliasPolicies
from registry.aliases import ANY, Aliases, Expected
from registry.attestations import Attestation, Attestations
from registry.audit_log import AuditEntry, AuditLog, AuditVerification
from registry.backup import Backups
from registry.backup_folder import BackupManifest
from registry.base import BaseRecord
from registry.bases import Bases
from registry.blobs import BlobReader, BlobStore, Staging
from registry.canaries import Canaries
from registry.cards import render_card
from registry.caretaker import Caretaker, CaretakerSettings, OnRun
from registry.catalog import Catalog
from registry.commits import Commits
from registry.courier import Courier, CourierSettings
from registry.database import Database
from registry.deletion import Deletion
from registry.diff import VersionDiff, diff_versions
from registry.errors import InvalidValueError
from registry.events import PAGE_EVENTS, EventPage, Feed
from registry.fresh_cache import FreshCache
from registry.fsck import Fsck, FsckReport, OnBlob
from registry.gc import GRACE, GarbageCollection, GcReport
from registry.leases import Lease, Leases, Pin
from registry.lineage import DEPTH_LIMIT, Lineage, LineageGraph
from registry.listing import Listing
from registry.mirror import DEFAULT_REVISION, Mirror, Mirrors, MirrorSync
from registry.mirror_schedule import MirrorSchedule
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.outbound import OutboundPolicy
from registry.outbox import Outbox
from registry.page import PAGE_DEFAULT, Page
from registry.policies import AliasPolicy, GateVerdict, PolicyRecord
from registry.principal import OPERATOR, Principal, Role
from registry.promote import check_gate, promote, promote_canary, roll_back
from registry.publish import Publication, publish, publish_staged
from registry.pull import find_file, pull
from registry.quotas import Quotas, Usage
from registry.receiving import private_folder
from registry.refs import Refs
from registry.repositories import Repositories
from registry.resolution import ANSWERS_LIMIT, Resolution
from registry.retention import Retention, RetentionRule
from registry.scope import Scope
from registry.signatures import Signatures, SigningKey, VersionSignature, verified_keys
from registry.signing_secret import SigningSecret
from registry.snapshots import Snapshots
from registry.tally import Tally
from registry.tenant_policy import TenantPolicies, TenantPolicy
from registry.tenants import IssuedToken, Tenant, Tenants, Token
from registry.upkeep import Upkeep
from registry.version import AdapterSummary, AliasMove, Canary, Split, Version, Visibility
from registry.webhooks import Delivery, IssuedWebhook, Webhook, Webhooks

BLOBS_FOLDER = "blobs"


class Registry:
    """An open registry. Threads may share it, and processes may open the same place.

    `folder` is where it is, if it is a folder.

    Methods without a principal are the operator's: they are for code that runs on the registry's own machine.
    Every method raises errors of `registry.errors` only.
    """

    def __init__(self, database: Database, blobs: BlobStore, *, folder: Path | None = None) -> None:
        self.folder = folder
        self._blobs = blobs
        self._database = database
        self.tally = Tally()
        self._bases = Bases(self._database)
        self._catalog = Catalog(self._database)
        self.repositories, self.refs = Repositories(self._database), Refs(self._database)
        self._resolution = Resolution(self._database, self._catalog)
        self._splits: FreshCache[tuple[Principal, str], Split] = FreshCache(self._database, ANSWERS_LIMIT)
        self._listing = Listing(self._database)
        self._aliases = Aliases(self._database, verified_keys)
        self._signatures = Signatures(self._database)
        self._alias_policies = AliasPolicies(self._database)
        self._attestations = Attestations(self._database)
        self._canaries = Canaries(self._database, self._aliases)
        self._lineage = LineageGraph(self._database)
        self._tenants = Tenants(self._database)
        self._feed = Feed(self._database)
        self._webhooks = Webhooks(self._database)
        self._quotas = Quotas(self._database)
        self._audit_log = AuditLog(self._database)
        self._deletion = Deletion(self._database)
        self._leases = Leases(self._database)
        self._retention = Retention(self._database)
        self._gc = GarbageCollection(self._database, self._blobs)
        self._backups = Backups(self._database, self._blobs)
        self._fsck = Fsck(self._database, self._blobs)
        self._tenant_policies = TenantPolicies(self._database)
        self._mirrors = Mirrors(self._database, self._tenant_policies, self.publish_outcome)
        self._mirror_schedule = MirrorSchedule(self._database, self._mirrors)
        self.upkeep = Upkeep(self._database, self._gc, self._mirror_schedule)
        self.snapshots = Snapshots(self._database, self._mirrors)
        self.commits = Commits(self._database, self._bases, self._blobs, self._tenant_policies, self.tally)
        # What the Hub face streams to, counts and signs with, itself.
        self.blobs, self.quotas = self._blobs, self._quotas
        self.signing_secret = SigningSecret(self._database)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Using the registry afterwards opens it again."""
        self._database.close()
        self._blobs.close()

    def create_tenant(self, name: str, *, principal: Principal = OPERATOR) -> Tenant:
        """Make a tenant."""
        return self._tenants.create(name, principal=principal)

    def list_tenants(self, *, principal: Principal = OPERATOR) -> list[Tenant]:
        """Every tenant, by name; a token's holder sees its own."""
        return self._tenants.all(principal=principal)

    def set_quota(
        self, tenant: str, *, quota_bytes: int | None, quota_versions: int | None, principal: Principal = OPERATOR
    ) -> Usage:
        """Bound what a tenant may have; None is no limit."""
        return self._quotas.set_quota(
            tenant, quota_bytes=quota_bytes, quota_versions=quota_versions, principal=principal
        )

    def tenant_policy(self, tenant: str, *, principal: Principal = OPERATOR) -> TenantPolicy:
        """What a tenant demands of adapters that enter."""
        return self._tenant_policies.read(tenant, principal)

    def set_tenant_policy(
        self, tenant: str, changes: Mapping[str, Any], *, principal: Principal = OPERATOR
    ) -> TenantPolicy:
        """Change some fields of a tenant's policy."""
        return self._tenant_policies.set(tenant, changes, principal=principal)

    def usage(self, tenant: str, *, principal: Principal = OPERATOR) -> Usage:
        """What a tenant has and may have."""
        return self._quotas.usage(tenant, principal=principal)

    def audit_entries(
        self,
        *,
        tenant: str | None = None,
        before: int | None = None,
        limit: int = 100,
        principal: Principal = OPERATOR,
    ) -> list[AuditEntry]:
        """The newest entries of the audit log, of one tenant or (the operator's) of all, with ids below `before`."""
        return self._audit_log.entries(tenant=tenant, before=before, limit=limit, principal=principal)

    def verify_audit(self, *, expect: str | None = None, principal: Principal = OPERATOR) -> AuditVerification:
        """Check the audit log's chain of hashes, and that a hash that was kept elsewhere is in it."""
        return self._audit_log.verify(expect=expect, principal=principal)

    def create_token(
        self,
        tenant: str,
        role: Role | str,
        *,
        label: str = "",
        expires_at: datetime | None = None,
        scope: Sequence[str] | None = None,
        principal: Principal = OPERATOR,
    ) -> IssuedToken:
        """Make a token; its secret is in the result and nowhere else.

        `scope` are the adapters that it is for, named without the tenant (`sql-*` is all that begin so); None is all.
        """
        try:
            parsed = Role(role)
        except ValueError as error:
            raise InvalidValueError("role", f"it is one of {', '.join(Role)}") from error
        chosen = None if scope is None else Scope.parse(scope)
        return self._tenants.create_token(
            tenant, parsed, label=label, expires_at=expires_at, scope=chosen, principal=principal
        )

    def rotate_token(
        self, token_id: str, *, overlap: timedelta = timedelta(0), principal: Principal = OPERATOR
    ) -> IssuedToken:
        """Make a token that takes this one's place; the old one ends after the overlap."""
        return self._tenants.rotate_token(token_id, overlap=overlap, principal=principal)

    def revoke_token(self, token_id: str, *, principal: Principal = OPERATOR) -> Token:
        """End a token's life."""
        return self._tenants.revoke_token(token_id, principal=principal)

    def list_tokens(self, tenant: str, *, principal: Principal = OPERATOR) -> list[Token]:
        """A tenant's tokens, without their secrets."""
        return self._tenants.tokens(tenant, principal=principal)

    def has_tokens(self) -> bool:
        """Whether a token was ever made here; while none was, a server may listen on loopback only."""
        return self._tenants.has_tokens()

    def authenticate(self, secret: str) -> Principal:
        """The principal whose secret this is. Raises AuthenticationError."""
        return self._tenants.authenticate(secret)

    def register_base(self, base_json: Mapping[str, Any], *, principal: Principal = OPERATOR) -> BaseRecord:
        """Keep a base so that adapters can be judged against it; doing it again changes nothing."""
        return self._bases.register(BaseRecord.from_json(base_json), principal=principal)

    def bases(self) -> list[BaseRecord]:
        """Every registered base, oldest first."""
        return self._bases.all()

    def base(self, fingerprint: str) -> BaseRecord:
        """The base with this fingerprint, or the only one that begins so. Raises NotFoundError."""
        return self._bases.find(fingerprint)

    def publish(
        self,
        folder: Path,
        name: str,
        *,
        principal: Principal,
        base_fingerprint: str | None = None,
        visibility: str | None = None,
        message: str = "",
    ) -> Version:
        """Make the folder the adapter's next version; the same files again give the version that has them.

        `base_fingerprint` names the base of a folder without a manifest (the version is then not `base_verified`).
        `visibility` None keeps the adapter's, which begins private.
        """
        return self.publish_outcome(
            folder,
            name,
            principal=principal,
            base_fingerprint=base_fingerprint,
            visibility=visibility,
            message=message,
        ).version

    def publish_outcome(
        self,
        folder: Path,
        name: str,
        *,
        principal: Principal,
        base_fingerprint: str | None = None,
        visibility: str | None = None,
        message: str = "",
    ) -> Publication:
        """As `publish`, and says whether the version is new."""
        parsed = AdapterName.parse(name)
        return self.tally.publication(
            lambda: publish(
                self._catalog,
                self._bases,
                self._blobs,
                self._quotas,
                folder,
                parsed,
                principal=principal,
                policy=self._tenant_policies.of(parsed.tenant),
                base_fingerprint=base_fingerprint,
                visibility=_parse_visibility(visibility),
                message=message,
            )
        )

    def publish_staged(
        self,
        staging: Staging,
        name: str,
        *,
        principal: Principal,
        base_fingerprint: str | None = None,
        visibility: str | None = None,
        message: str = "",
    ) -> Publication:
        """As `publish_outcome`, of files that were received into a folder of `receiving`; they are not copied again."""
        parsed = AdapterName.parse(name)
        return self.tally.publication(
            lambda: publish_staged(
                self._catalog,
                self._bases,
                self._blobs,
                self._quotas,
                staging,
                parsed,
                principal=principal,
                policy=self._tenant_policies.of(parsed.tenant),
                base_fingerprint=base_fingerprint,
                visibility=_parse_visibility(visibility),
                message=message,
            )
        )

    def resolve(self, ref: str, *, principal: Principal) -> Version:
        """The version that the reference means now; a bare name is the newest."""
        return self._mirrors.pulling_through(lambda: self._resolution.resolve(ref, principal=principal), ref, principal)

    def remembered(self, ref: str, *, principal: Principal) -> Version | None:
        """What `resolve` would answer, if that takes microseconds; else None. For event loops."""
        return self._resolution.remembered(ref, principal=principal)

    def pull(self, version: Version, destination: Path, *, principal: Principal = OPERATOR) -> Path:
        """Put the version's files into a folder, verified, all at once. Right to read it: having resolved it.

        Over HTTP the files are asked for on behalf of the principal.
        """
        return pull(self._blobs, version, destination)

    def receiving(self) -> AbstractContextManager[Path]:
        """A private folder of the registry's own disk for an adapter that arrives, removed at the end of the block."""
        return private_folder(self._blobs.scratch)

    def open_file(self, version: Version, path: str, *, start: int = 0, end: int | None = None) -> BlobReader:
        """The verified bytes of one of the version's files, or of a range. Right to read it: having resolved it."""
        return self._blobs.open(find_file(version, path), start=start, end=end)

    def adapter(self, name: str, principal: Principal) -> AdapterSummary:
        """One adapter that has a version."""
        return self._listing.adapter(AdapterName.parse(name), principal)

    def list_adapters(self, principal: Principal) -> list[AdapterSummary]:
        """The adapters that the caller may read, by name."""
        return self._listing.all_adapters(principal)

    def page_adapters(
        self,
        principal: Principal,
        *,
        limit: int = PAGE_DEFAULT,
        cursor: str | None = None,
        tenant: str | None = None,
        search: str | None = None,
    ) -> Page[AdapterSummary]:
        """Some of the adapters that the caller may read, by name; the page's cursor asks for the next ones."""
        return self._listing.adapters(principal, limit=limit, cursor=cursor, tenant=tenant, search=search)

    def list_versions(self, name: str, principal: Principal) -> list[Version]:
        """An adapter's versions, newest first."""
        return self._catalog.versions(AdapterName.parse(name), principal)

    def page_versions(
        self, name: str, principal: Principal, *, limit: int = PAGE_DEFAULT, cursor: str | None = None
    ) -> Page[Version]:
        """Some of an adapter's versions, newest first; the page's cursor asks for the next ones."""
        return self._listing.versions(AdapterName.parse(name), principal, limit=limit, cursor=cursor)

    def aliases(self, name: str, principal: Principal) -> dict[str, int]:
        """Version numbers by alias."""
        return self._aliases.current(AdapterName.parse(name), principal)

    def alias_history(self, name: str, alias: str, principal: Principal) -> list[AliasMove]:
        """Every move of an alias, newest first."""
        return self._aliases.history(AdapterName.parse(name), parse_alias(alias), principal)

    def promote(
        self, ref: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Point an alias at a version; `expected` is the number that it must point at before (None: must be new)."""
        parsed = AdapterRef.parse(ref)
        return self.tally.move(
            "promote",
            lambda: promote(self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence),
        )

    def rollback(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Undo an alias's last promotion."""
        parsed = AdapterName.parse(name)
        return self.tally.move(
            "rollback",
            lambda: roll_back(self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence),
        )

    def card(self, ref: str, principal: Principal) -> str:
        """A version's model card, made from what the registry knows of it: Markdown with YAML front matter."""
        version = self.resolve(ref, principal=principal)
        return render_card(
            version,
            self.base(version.base_fingerprint),
            aliases=self.aliases(version.adapter, principal),
            attestations=self.attestations(f"{version.adapter}@{version.number}", principal),
        )

    def lineage(self, ref: str, principal: Principal, *, depth: int = DEPTH_LIMIT) -> Lineage:
        """What a version was made of, and what was made of it."""
        return self._lineage.of(AdapterRef.parse(ref), principal, depth=depth)

    def base_lineage(self, fingerprint: str, principal: Principal) -> Lineage:
        """The versions that stand on a base."""
        return self._lineage.of_base(fingerprint, principal)

    def diff(self, before: str, after: str, principal: Principal, *, with_weights: bool = True) -> VersionDiff:
        """How two versions differ: files, config, metrics, shapes and weights."""
        versions = (self.resolve(before, principal=principal), self.resolve(after, principal=principal))
        return diff_versions(self._blobs, *versions, with_weights=with_weights)

    def promote_canary(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Point an alias at its canary's candidate, through the alias's gate."""
        parsed = AdapterName.parse(name)
        return self.tally.move(
            "promote",
            lambda: promote_canary(
                self._aliases, self._canaries, parsed, alias, principal=principal, expected=expected, evidence=evidence
            ),
        )

    def start_canary(self, ref: str, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give so many thousandths of the alias's requests to this version."""
        return self._canaries.start(AdapterRef.parse(ref), alias, permille=permille, principal=principal)

    def change_canary(self, name: str, alias: str, *, permille: int, principal: Principal) -> Canary:
        """Give the alias's canary another weight."""
        return self._canaries.change(AdapterName.parse(name), alias, permille=permille, principal=principal)

    def stop_canary(self, name: str, alias: str, *, principal: Principal) -> Canary:
        """Give every request of the alias to the version that it points at."""
        return self._canaries.stop(AdapterName.parse(name), alias, principal=principal)

    def canaries(self, name: str, principal: Principal) -> list[Canary]:
        """The canaries that run on an adapter's aliases."""
        return self._canaries.all(AdapterName.parse(name), principal)

    def resolve_split(self, ref: str, *, principal: Principal) -> Split:
        """What the reference means now, with the canary that runs on it."""
        return self._mirrors.pulling_through(lambda: self._split(ref, principal), ref, principal)

    def _split(self, ref: str, principal: Principal) -> Split:
        return self._splits.get((principal, ref), lambda: self._canaries.resolve_split(ref, principal))

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

    def events(
        self,
        principal: Principal,
        *,
        after: int | None = None,
        limit: int = PAGE_EVENTS,
        kinds: Collection[str] | None = None,
        seconds: float = 0.0,
    ) -> EventPage:
        """What happened after the cursor, waiting up to `seconds` for something; `after` None begins now."""
        return self._feed.read(principal, after=after, limit=limit, kinds=kinds, seconds=seconds)

    def create_webhook(
        self, tenant: str, url: str, *, principal: Principal, kinds: Sequence[str] | None = None
    ) -> IssuedWebhook:
        """Tell this address of the tenant's events; the secret that signs them is in the result and not shown again."""
        return self._webhooks.create(tenant, url, kinds=kinds, principal=principal)

    def list_webhooks(self, tenant: str, principal: Principal) -> list[Webhook]:
        """A tenant's webhooks, without their secrets."""
        return self._webhooks.all(tenant, principal)

    def delete_webhook(self, webhook_id: str, principal: Principal) -> Webhook:
        """Remove a webhook with its deliveries."""
        return self._webhooks.delete(webhook_id, principal)

    def webhook_deliveries(self, webhook_id: str, principal: Principal) -> list[Delivery]:
        """The newest deliveries of a webhook, and what became of them."""
        return self._webhooks.deliveries(webhook_id, principal)

    def replay_webhook(self, webhook_id: str, *, principal: Principal, after: int | None = None) -> int:
        """Deliver again what was given up, or every event after this number; enables the webhook."""
        return self._webhooks.replay(webhook_id, after=after, principal=principal)

    def test_webhook(self, webhook_id: str, principal: Principal) -> Delivery:
        """Send an event of kind `webhook.test` to this webhook alone."""
        return self._webhooks.test(webhook_id, principal)

    def newest_event(self) -> int:
        """The number of the newest event of anybody."""
        return self._feed.newest()

    def webhook_policy(self, *, principal: Principal = OPERATOR) -> OutboundPolicy:
        """What webhooks may reach beyond public addresses over https."""
        return self._webhooks.shown_policy(principal)

    def set_webhook_policy(self, policy: OutboundPolicy, principal: Principal) -> OutboundPolicy:
        """Allow webhooks to reach more. Only the operator may."""
        return self._webhooks.set_policy(policy, principal)

    def add_mirror(
        self,
        name: str,
        source: str,
        *,
        principal: Principal,
        revision: str = DEFAULT_REVISION,
        token: str | None = None,
        base_fingerprint: str | None = None,
    ) -> MirrorSync:
        """Pull an adapter in from another Hub, and remember where it came from; `token` is for that Hub."""
        return self._mirrors.add(
            AdapterName.parse(name),
            source,
            revision=revision,
            token=token,
            base_fingerprint=base_fingerprint,
            principal=principal,
        )

    def sync_mirror(self, name: str, *, principal: Principal, token: str | None = None) -> MirrorSync:
        """Pull the upstream's newer commit in, if there is one."""
        return self._mirrors.sync(AdapterName.parse(name), token=token, principal=principal)

    def follow_mirror(self, name: str, every: timedelta | None, *, principal: Principal) -> Mirror:
        """Look at the mirror's upstream so often, by itself; None is never."""
        return self._mirror_schedule.follow(AdapterName.parse(name), every, principal)

    def list_mirrors(self, principal: Principal) -> list[Mirror]:
        """Where mirrored adapters come from, as far as the caller may read them."""
        return self._mirrors.all(principal)

    def remove_mirror(self, name: str, principal: Principal) -> Mirror:
        """Forget where an adapter came from; its versions stay."""
        return self._mirrors.remove(AdapterName.parse(name), principal)

    def courier(self, settings: CourierSettings | None = None) -> Courier:
        """A worker that delivers to webhooks once it is started; any number of processes may run one."""
        return Courier(Outbox(self._database), self._webhooks.policy, settings or CourierSettings())

    def caretaker(self, on_run: OnRun = lambda run: None, settings: CaretakerSettings | None = None) -> Caretaker:
        """A worker that does the upkeep once it is started; any number of processes may run one."""
        return Caretaker(self.upkeep, on_run, settings or CaretakerSettings())

    def delete_version(self, ref: str, principal: Principal, *, force: bool = False) -> None:
        """Delete a version that nothing needs; `force` overrules a server that has it loaded, and a rollback's need."""
        self._deletion.delete_version(AdapterRef.parse(ref), principal, force=force)

    def delete_adapter(self, name: str, principal: Principal) -> None:
        """Delete an adapter with all its versions and aliases. Its name rests for a year."""
        self._deletion.delete_adapter(AdapterName.parse(name), principal)

    def move_adapter(self, old: str, new: str, principal: Principal) -> None:
        """Rename an adapter within its tenant. Its old name rests for a year."""
        self._deletion.move_adapter(AdapterName.parse(old), AdapterName.parse(new), principal)

    def moved_to(self, name: str, principal: Principal) -> str | None:
        """Where the adapter of this name went, if it was renamed and the caller may read it there."""
        found = self._deletion.moved_to(AdapterName.parse(name), principal)
        return None if found is None else str(found)

    def lease(
        self, refs: Sequence[str], *, holder: str, duration: timedelta, principal: Principal = OPERATOR
    ) -> list[str]:
        """Say that a server uses these versions (`TENANT/NAME@NUMBER`) from now on; returns those it may keep."""
        parsed = [AdapterRef.parse(ref) for ref in refs]
        return [str(ref) for ref in self._leases.lease(parsed, holder=holder, duration=duration, principal=principal)]

    def release_leases(self, holder: str, *, principal: Principal = OPERATOR) -> int:
        """Say that a server uses nothing any more."""
        return self._leases.release(holder, principal)

    def leases(self, name: str, principal: Principal) -> list[Lease]:
        """Which servers use which versions of an adapter now."""
        return self._leases.leases(AdapterName.parse(name), principal)

    def pin(self, ref: str, *, reason: str, principal: Principal) -> Pin:
        """Keep a version until it is unpinned."""
        return self._leases.pin(AdapterRef.parse(ref), reason=reason, principal=principal)

    def unpin(self, ref: str, *, principal: Principal) -> Pin:
        """Keep a version no longer; returns the pin that was there."""
        return self._leases.unpin(AdapterRef.parse(ref), principal=principal)

    def pins(self, name: str, principal: Principal) -> list[Pin]:
        """The pins of an adapter's versions."""
        return self._leases.pins(AdapterName.parse(name), principal)

    def retention(self, name: str, principal: Principal) -> RetentionRule | None:
        """How long an adapter's versions are kept; None is for ever."""
        return self._retention.rule(AdapterName.parse(name), principal)

    def set_retention(self, name: str, rule: RetentionRule | None, principal: Principal) -> RetentionRule | None:
        """Set how long an adapter's versions are kept; None is for ever."""
        return self._retention.set_rule(AdapterName.parse(name), rule, principal)

    def collect_garbage(
        self,
        *,
        grace: timedelta = GRACE,
        dry_run: bool = False,
        now: datetime | None = None,
        principal: Principal = OPERATOR,
    ) -> GcReport:
        """Take away what nothing needs any more and free its bytes; a dry run says what that would be."""
        return self._gc.run(principal=principal, grace=grace, dry_run=dry_run, now=now)

    def fsck(
        self, *, repair: bool = False, on_blob: OnBlob | None = None, principal: Principal = OPERATOR
    ) -> FsckReport:
        """Read and check everything; with `repair`, mend what can be mended without losing anything."""
        return self._fsck.run(principal=principal, repair=repair, on_blob=on_blob)

    def add_key(self, tenant: str, public_pem: str, *, label: str, principal: Principal = OPERATOR) -> SigningKey:
        """Trust a public key: what it signs counts as signed."""
        return self._signatures.add_key(tenant, public_pem, label=label, principal=principal)

    def list_keys(self, tenant: str, *, principal: Principal = OPERATOR) -> list[SigningKey]:
        """A tenant's public keys, revoked ones too."""
        return self._signatures.keys(tenant, principal)

    def revoke_key(self, tenant: str, key: str, *, principal: Principal = OPERATOR) -> SigningKey:
        """Trust a key no longer: its signatures count for nothing, old ones too."""
        return self._signatures.revoke_key(tenant, key, principal)

    def attach_signature(self, ref: str, bundle: str, *, principal: Principal) -> VersionSignature:
        """Keep a signature that somebody made of a version (`registry.model_signature`)."""
        return self._signatures.attach(AdapterRef.parse(ref), bundle, principal)

    def signatures(self, ref: str, principal: Principal) -> list[VersionSignature]:
        """The signatures of a version, each verified now."""
        return self._signatures.of(AdapterRef.parse(ref), principal)

    def backup(
        self, destination: Path, *, on_blob: OnBlob | None = None, principal: Principal = OPERATOR
    ) -> BackupManifest:
        """Write everything into a new folder, verified, while the registry is in use."""
        return self._backups.write(destination, principal=principal, on_blob=on_blob)

    def restore(
        self, source: Path, *, on_blob: OnBlob | None = None, principal: Principal = OPERATOR
    ) -> BackupManifest:
        """Fill this registry, which must be empty, from a backup; all of it is verified first."""
        return self._backups.restore(source, principal=principal, on_blob=on_blob)

    def check_integrity(self) -> None:
        """As `fsck`, but raises the first fault that it finds: IntegrityError, StorageError."""
        self._fsck.check_integrity()


def _parse_visibility(text: str | None) -> Visibility | None:
    try:
        return None if text is None else Visibility(text)
    except ValueError as error:
        raise InvalidValueError("visibility", f"it is one of {', '.join(Visibility)}") from error
