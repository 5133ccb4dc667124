"""A registry on another machine, with the methods of `registry.registry.Registry`.

    with registry.open("https://registry.example", token="lpx_...") as reg:
        version = reg.resolve("acme/text2sql@prod", principal=registry.Principal.operator())

Whose rights a call has: `Principal.operator()` (and methods without a principal) mean the token that this client was
opened with, whatever it may do there; a principal that `authenticate` returned carries its own token and is asked with
that one, so a server that serves many tenants never lends them its own rights. Other principals are refused: there
would be nothing to ask with.

Only what needs the registry's own disk is not here (`LOCAL_ONLY`; tests/registry/test_same_interface.py compares).
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from registry.remote.adapters import RemoteAdapters
from registry.remote.aliases import RemoteAliases
from registry.remote.events import RemoteEvents
from registry.remote.insight import RemoteInsight
from registry.remote.lifetime import RemoteLifetime
from registry.remote.mirrors import RemoteMirrors
from registry.remote.publishing import RemotePublishing
from registry.remote.safekeeping import RemoteSafekeeping
from registry.remote.tenants import RemoteTenants
from registry.remote.transfer import Progress
from registry.remote.transport import Transport
from registry.remote.trust import RemoteTrust
from registry.subject import Subject

LOCAL_ONLY = frozenset(
    {
        "backup",
        "caretaker",
        "check_integrity",
        "collect_garbage",
        "courier",
        "folder",
        "fsck",
        "newest_event",
        "open_file",
        "publish_staged",
        "receiving",
        "remembered",
        "restore",
        "upkeep",
    }
)
"""What `Registry` has and this class does not."""


class RemoteRegistry:
    """A registry over HTTP. Threads may share it. Every method raises errors of `registry.errors` only.

    `progress` is told of the files that pass in uploads and downloads. One that is not patient asks once, and waits for
    a few seconds.
    """

    _adapters = Subject[RemoteAdapters]()
    register_base = _adapters.method(RemoteAdapters.register_base)
    resolve = _adapters.method(RemoteAdapters.resolve)
    pull = _adapters.method(RemoteAdapters.pull)
    adapter = _adapters.method(RemoteAdapters.adapter)
    set_visibility = _adapters.method(RemoteAdapters.set_visibility)
    list_adapters = _adapters.method(RemoteAdapters.list_adapters)
    page_adapters = _adapters.method(RemoteAdapters.page_adapters)
    list_versions = _adapters.method(RemoteAdapters.list_versions)
    page_versions = _adapters.method(RemoteAdapters.page_versions)
    bases = _adapters.method(RemoteAdapters.bases)
    base = _adapters.method(RemoteAdapters.base)

    _publishing = Subject[RemotePublishing]()
    publish = _publishing.method(RemotePublishing.publish)
    publish_outcome = _publishing.method(RemotePublishing.publish_outcome)

    _aliases = Subject[RemoteAliases]()
    aliases = _aliases.method(RemoteAliases.aliases)
    alias_history = _aliases.method(RemoteAliases.alias_history)
    promote = _aliases.method(RemoteAliases.promote)
    rollback = _aliases.method(RemoteAliases.rollback)
    delete_alias = _aliases.method(RemoteAliases.delete_alias)
    canaries = _aliases.method(RemoteAliases.canaries)
    start_canary = _aliases.method(RemoteAliases.start_canary)
    change_canary = _aliases.method(RemoteAliases.change_canary)
    stop_canary = _aliases.method(RemoteAliases.stop_canary)
    promote_canary = _aliases.method(RemoteAliases.promote_canary)
    resolve_split = _aliases.method(RemoteAliases.resolve_split)

    _trust = Subject[RemoteTrust]()
    tenant_policy = _trust.method(RemoteTrust.tenant_policy)
    set_tenant_policy = _trust.method(RemoteTrust.set_tenant_policy)
    set_policy = _trust.method(RemoteTrust.set_policy)
    remove_policy = _trust.method(RemoteTrust.remove_policy)
    policies = _trust.method(RemoteTrust.policies)
    policy = _trust.method(RemoteTrust.policy)
    check_gate = _trust.method(RemoteTrust.check_gate)
    attestations = _trust.method(RemoteTrust.attestations)
    attest_evaluation = _trust.method(RemoteTrust.attest_evaluation)
    attest_probes = _trust.method(RemoteTrust.attest_probes)
    attest_scan = _trust.method(RemoteTrust.attest_scan)
    approve = _trust.method(RemoteTrust.approve)

    _insight = Subject[RemoteInsight]()
    card = _insight.method(RemoteInsight.card)
    lineage = _insight.method(RemoteInsight.lineage)
    base_lineage = _insight.method(RemoteInsight.base_lineage)
    diff = _insight.method(RemoteInsight.diff)

    _tenants = Subject[RemoteTenants]()
    create_tenant = _tenants.method(RemoteTenants.create_tenant)
    list_tenants = _tenants.method(RemoteTenants.list_tenants)
    create_token = _tenants.method(RemoteTenants.create_token)
    rotate_token = _tenants.method(RemoteTenants.rotate_token)
    revoke_token = _tenants.method(RemoteTenants.revoke_token)
    list_tokens = _tenants.method(RemoteTenants.list_tokens)
    has_tokens = _tenants.method(RemoteTenants.has_tokens)
    authenticate = _tenants.method(RemoteTenants.authenticate)

    _safekeeping = Subject[RemoteSafekeeping]()
    set_quota = _safekeeping.method(RemoteSafekeeping.set_quota)
    usage = _safekeeping.method(RemoteSafekeeping.usage)
    audit_entries = _safekeeping.method(RemoteSafekeeping.audit_entries)
    verify_audit = _safekeeping.method(RemoteSafekeeping.verify_audit)
    add_key = _safekeeping.method(RemoteSafekeeping.add_key)
    list_keys = _safekeeping.method(RemoteSafekeeping.list_keys)
    revoke_key = _safekeeping.method(RemoteSafekeeping.revoke_key)
    attach_signature = _safekeeping.method(RemoteSafekeeping.attach_signature)
    signatures = _safekeeping.method(RemoteSafekeeping.signatures)

    _lifetime = Subject[RemoteLifetime]()
    delete_version = _lifetime.method(RemoteLifetime.delete_version)
    delete_adapter = _lifetime.method(RemoteLifetime.delete_adapter)
    move_adapter = _lifetime.method(RemoteLifetime.move_adapter)
    moved_to = _lifetime.method(RemoteLifetime.moved_to)
    lease = _lifetime.method(RemoteLifetime.lease)
    release_leases = _lifetime.method(RemoteLifetime.release_leases)
    leases = _lifetime.method(RemoteLifetime.leases)
    pin = _lifetime.method(RemoteLifetime.pin)
    unpin = _lifetime.method(RemoteLifetime.unpin)
    pins = _lifetime.method(RemoteLifetime.pins)
    retention = _lifetime.method(RemoteLifetime.retention)
    set_retention = _lifetime.method(RemoteLifetime.set_retention)

    _events = Subject[RemoteEvents]()
    events = _events.method(RemoteEvents.events)
    create_webhook = _events.method(RemoteEvents.create_webhook)
    list_webhooks = _events.method(RemoteEvents.list_webhooks)
    delete_webhook = _events.method(RemoteEvents.delete_webhook)
    webhook_deliveries = _events.method(RemoteEvents.webhook_deliveries)
    replay_webhook = _events.method(RemoteEvents.replay_webhook)
    test_webhook = _events.method(RemoteEvents.test_webhook)
    webhook_policy = _events.method(RemoteEvents.webhook_policy)
    set_webhook_policy = _events.method(RemoteEvents.set_webhook_policy)

    _mirrors = Subject[RemoteMirrors]()
    add_mirror = _mirrors.method(RemoteMirrors.add_mirror)
    sync_mirror = _mirrors.method(RemoteMirrors.sync_mirror)
    follow_mirror = _mirrors.method(RemoteMirrors.follow_mirror)
    list_mirrors = _mirrors.method(RemoteMirrors.list_mirrors)
    remove_mirror = _mirrors.method(RemoteMirrors.remove_mirror)

    def __init__(
        self, url: str, *, token: str | None = None, progress: Progress | None = None, is_patient: bool = True
    ) -> None:
        self._http = Transport(url, token, is_patient=is_patient)
        self._adapters = RemoteAdapters(self._http, progress)
        self._publishing = RemotePublishing(self._http, progress)
        self._aliases = RemoteAliases(self._http)
        self._trust = RemoteTrust(self._http)
        self._insight = RemoteInsight(self._http)
        self._tenants = RemoteTenants(self._http)
        self._safekeeping = RemoteSafekeeping(self._http)
        self._lifetime = RemoteLifetime(self._http)
        self._events = RemoteEvents(self._http)
        self._mirrors = RemoteMirrors(self._http)

    @property
    def url(self) -> str:
        """Where the registry is."""
        return self._http.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Using the registry afterwards opens them again."""
        self._http.close()
