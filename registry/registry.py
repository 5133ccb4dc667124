"""The registry as its users see it: one object over a catalog and its blobs (`opening.py` opens them).

FOLDER/catalog.sqlite    tenants, tokens, bases, adapters, versions, aliases, audit log
FOLDER/blobs/            the files of the versions, by digest

Its methods are those of its parts in `local/`, one file a subject, where their contracts stand; `client.py` has the
same ones over HTTP.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from registry.aliases import Aliases
from registry.bases import Bases
from registry.blobs import BlobStore
from registry.canaries import Canaries
from registry.caretaker import Caretaker, CaretakerSettings, OnRun
from registry.catalog import Catalog
from registry.commits import Commits
from registry.courier import Courier, CourierSettings
from registry.database import Database
from registry.gc import GarbageCollection
from registry.local.adapters import LocalAdapters
from registry.local.aliases import LocalAliases
from registry.local.events import LocalEvents
from registry.local.insight import LocalInsight
from registry.local.lifetime import LocalLifetime
from registry.local.mirrors import LocalMirrors
from registry.local.publishing import LocalPublishing
from registry.local.safekeeping import LocalSafekeeping
from registry.local.tenants import LocalTenants
from registry.local.trust import LocalTrust
from registry.mirror_schedule import MirrorSchedule
from registry.mirrors import Mirrors
from registry.outbox import Outbox
from registry.publish import Publisher
from registry.quotas import Quotas
from registry.refs import Refs
from registry.repositories import Repositories
from registry.signatures import verified_keys
from registry.signing_secret import SigningSecret
from registry.snapshots import Snapshots
from registry.subject import Subject
from registry.tally import Tally
from registry.tenant_policies import TenantPolicies
from registry.upkeep import Upkeep
from registry.webhooks import Webhooks

BLOBS_FOLDER = "blobs"


class Registry:
    """An open registry. Threads may share it, and processes may open the same place.

    `folder` is where it is, if it is a folder.

    Methods without a principal are the operator's: they are for code that runs on the registry's own machine.
    Every method raises errors of `registry.errors` only.
    """

    _adapters = Subject[LocalAdapters]()
    register_base = _adapters.method(LocalAdapters.register_base)
    bases = _adapters.method(LocalAdapters.bases)
    base = _adapters.method(LocalAdapters.base)
    resolve = _adapters.method(LocalAdapters.resolve)
    remembered = _adapters.method(LocalAdapters.remembered)
    pull = _adapters.method(LocalAdapters.pull)
    open_file = _adapters.method(LocalAdapters.open_file)
    adapter = _adapters.method(LocalAdapters.adapter)
    set_visibility = _adapters.method(LocalAdapters.set_visibility)
    list_adapters = _adapters.method(LocalAdapters.list_adapters)
    page_adapters = _adapters.method(LocalAdapters.page_adapters)
    list_versions = _adapters.method(LocalAdapters.list_versions)
    page_versions = _adapters.method(LocalAdapters.page_versions)

    _publishing = Subject[LocalPublishing]()
    publish = _publishing.method(LocalPublishing.publish)
    publish_outcome = _publishing.method(LocalPublishing.publish_outcome)
    publish_staged = _publishing.method(LocalPublishing.publish_staged)
    receiving = _publishing.method(LocalPublishing.receiving)

    _aliases = Subject[LocalAliases]()
    aliases = _aliases.method(LocalAliases.aliases)
    alias_history = _aliases.method(LocalAliases.alias_history)
    promote = _aliases.method(LocalAliases.promote)
    rollback = _aliases.method(LocalAliases.rollback)
    delete_alias = _aliases.method(LocalAliases.delete_alias)
    canaries = _aliases.method(LocalAliases.canaries)
    start_canary = _aliases.method(LocalAliases.start_canary)
    change_canary = _aliases.method(LocalAliases.change_canary)
    stop_canary = _aliases.method(LocalAliases.stop_canary)
    promote_canary = _aliases.method(LocalAliases.promote_canary)
    resolve_split = _aliases.method(LocalAliases.resolve_split)

    _trust = Subject[LocalTrust]()
    tenant_policy = _trust.method(LocalTrust.tenant_policy)
    set_tenant_policy = _trust.method(LocalTrust.set_tenant_policy)
    set_policy = _trust.method(LocalTrust.set_policy)
    remove_policy = _trust.method(LocalTrust.remove_policy)
    policies = _trust.method(LocalTrust.policies)
    policy = _trust.method(LocalTrust.policy)
    check_gate = _trust.method(LocalTrust.check_gate)
    attestations = _trust.method(LocalTrust.attestations)
    attest_evaluation = _trust.method(LocalTrust.attest_evaluation)
    attest_probes = _trust.method(LocalTrust.attest_probes)
    attest_scan = _trust.method(LocalTrust.attest_scan)
    approve = _trust.method(LocalTrust.approve)

    _insight = Subject[LocalInsight]()
    card = _insight.method(LocalInsight.card)
    lineage = _insight.method(LocalInsight.lineage)
    base_lineage = _insight.method(LocalInsight.base_lineage)
    diff = _insight.method(LocalInsight.diff)

    _tenants = Subject[LocalTenants]()
    create_tenant = _tenants.method(LocalTenants.create_tenant)
    list_tenants = _tenants.method(LocalTenants.list_tenants)
    create_token = _tenants.method(LocalTenants.create_token)
    rotate_token = _tenants.method(LocalTenants.rotate_token)
    revoke_token = _tenants.method(LocalTenants.revoke_token)
    list_tokens = _tenants.method(LocalTenants.list_tokens)
    has_tokens = _tenants.method(LocalTenants.has_tokens)
    authenticate = _tenants.method(LocalTenants.authenticate)

    _safekeeping = Subject[LocalSafekeeping]()
    set_quota = _safekeeping.method(LocalSafekeeping.set_quota)
    usage = _safekeeping.method(LocalSafekeeping.usage)
    audit_entries = _safekeeping.method(LocalSafekeeping.audit_entries)
    verify_audit = _safekeeping.method(LocalSafekeeping.verify_audit)
    add_key = _safekeeping.method(LocalSafekeeping.add_key)
    list_keys = _safekeeping.method(LocalSafekeeping.list_keys)
    revoke_key = _safekeeping.method(LocalSafekeeping.revoke_key)
    attach_signature = _safekeeping.method(LocalSafekeeping.attach_signature)
    signatures = _safekeeping.method(LocalSafekeeping.signatures)
    backup = _safekeeping.method(LocalSafekeeping.backup)
    restore = _safekeeping.method(LocalSafekeeping.restore)
    fsck = _safekeeping.method(LocalSafekeeping.fsck)
    check_integrity = _safekeeping.method(LocalSafekeeping.check_integrity)

    _lifetime = Subject[LocalLifetime]()
    delete_version = _lifetime.method(LocalLifetime.delete_version)
    delete_adapter = _lifetime.method(LocalLifetime.delete_adapter)
    move_adapter = _lifetime.method(LocalLifetime.move_adapter)
    moved_to = _lifetime.method(LocalLifetime.moved_to)
    lease = _lifetime.method(LocalLifetime.lease)
    release_leases = _lifetime.method(LocalLifetime.release_leases)
    leases = _lifetime.method(LocalLifetime.leases)
    pin = _lifetime.method(LocalLifetime.pin)
    unpin = _lifetime.method(LocalLifetime.unpin)
    pins = _lifetime.method(LocalLifetime.pins)
    retention = _lifetime.method(LocalLifetime.retention)
    set_retention = _lifetime.method(LocalLifetime.set_retention)
    collect_garbage = _lifetime.method(LocalLifetime.collect_garbage)

    _events = Subject[LocalEvents]()
    events = _events.method(LocalEvents.events)
    newest_event = _events.method(LocalEvents.newest_event)
    create_webhook = _events.method(LocalEvents.create_webhook)
    list_webhooks = _events.method(LocalEvents.list_webhooks)
    delete_webhook = _events.method(LocalEvents.delete_webhook)
    webhook_deliveries = _events.method(LocalEvents.webhook_deliveries)
    replay_webhook = _events.method(LocalEvents.replay_webhook)
    test_webhook = _events.method(LocalEvents.test_webhook)
    webhook_policy = _events.method(LocalEvents.webhook_policy)
    set_webhook_policy = _events.method(LocalEvents.set_webhook_policy)

    _mirrors = Subject[LocalMirrors]()
    add_mirror = _mirrors.method(LocalMirrors.add_mirror)
    sync_mirror = _mirrors.method(LocalMirrors.sync_mirror)
    follow_mirror = _mirrors.method(LocalMirrors.follow_mirror)
    list_mirrors = _mirrors.method(LocalMirrors.list_mirrors)
    remove_mirror = _mirrors.method(LocalMirrors.remove_mirror)

    def __init__(self, database: Database, blobs: BlobStore, *, folder: Path | None = None) -> None:
        self.folder = folder
        self._database = database
        self.tally = Tally()
        # What the Hub face reads, streams to, counts and signs with, itself.
        self.blobs = blobs
        self.quotas = Quotas(database)
        self.repositories = Repositories(database)
        self.refs = Refs(database)
        self.signing_secret = SigningSecret(database)
        catalog, bases, policies = Catalog(database), Bases(database), TenantPolicies(database)
        self.commits = Commits(database, bases, blobs, policies, self.tally)

        publisher = Publisher(catalog, bases, blobs, self.quotas, policies)
        self._publishing = LocalPublishing(publisher, blobs, self.tally)
        mirrors = Mirrors(database, policies, self._publishing.publish_outcome)
        self.snapshots = Snapshots(database, mirrors)
        schedule, gc = MirrorSchedule(database, mirrors), GarbageCollection(database, blobs)
        self.upkeep = Upkeep(database, gc, schedule)

        aliases = Aliases(database, verified_keys)
        self._adapters = LocalAdapters(database, catalog, bases, blobs, mirrors, self.repositories)
        self._aliases = LocalAliases(aliases, Canaries(database, aliases), mirrors, self.tally)
        self._trust = LocalTrust(database, aliases, policies)
        self._insight = LocalInsight(database, blobs, self._adapters, self._aliases, self._trust)
        self._tenants = LocalTenants(database)
        self._safekeeping = LocalSafekeeping(database, blobs, self.quotas)
        self._lifetime = LocalLifetime(database, gc)
        self._webhooks = Webhooks(database)
        self._events = LocalEvents(database, self._webhooks)
        self._mirrors = LocalMirrors(mirrors, schedule)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database. Using the registry afterwards opens it again."""
        self._database.close()
        self.blobs.close()

    def courier(self, settings: CourierSettings | None = None) -> Courier:
        """A worker that delivers to webhooks once it is started; any number of processes may run one."""
        return Courier(Outbox(self._database), self._webhooks.policy, settings or CourierSettings())

    def caretaker(self, on_run: OnRun = lambda run: None, settings: CaretakerSettings | None = None) -> Caretaker:
        """A worker that does the upkeep once it is started; any number of processes may run one."""
        return Caretaker(self.upkeep, on_run, settings or CaretakerSettings())
