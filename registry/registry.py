"""The registry as its users see it: one object over one folder.

FOLDER/catalog.sqlite    tenants, tokens, bases, adapters, versions, aliases, audit log
FOLDER/blobs/            the files of the versions, by digest
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from registry.aliases import ANY, Aliases, Expected
from registry.audit_log import AuditEntry, AuditLog, AuditVerification
from registry.base import BaseRecord
from registry.bases import Bases
from registry.blobs import BlobStore, LocalBlobs
from registry.catalog import Catalog
from registry.courier import Courier, CourierSettings
from registry.database import DATABASE_FILE, Database
from registry.errors import InvalidValueError, NotFoundError, StorageError
from registry.events import PAGE_EVENTS, EventPage, Feed
from registry.listing import Listing
from registry.names import AdapterName, AdapterRef, parse_alias
from registry.outbound import OutboundPolicy
from registry.outbox import Outbox
from registry.page import PAGE_DEFAULT, Page
from registry.principal import OPERATOR, OPERATOR_ACTOR, Principal, Role
from registry.promote import promote, roll_back
from registry.publish import Publication, publish
from registry.pull import pull
from registry.quotas import Quotas, Usage
from registry.repositories import Repositories
from registry.resolution import Resolution
from registry.scope import Scope
from registry.signing_secret import SigningSecret
from registry.tenant_policy import TenantPolicies, TenantPolicy
from registry.tenants import IssuedToken, Tenant, Tenants, Token
from registry.version import AdapterSummary, AliasMove, Version, Visibility
from registry.webhooks import Delivery, IssuedWebhook, Webhook, Webhooks

BLOBS_FOLDER = "blobs"


class Registry:
    """An open registry. Threads may share it, and processes may open the same folder.

    Methods without a principal are the operator's: they are for code that runs on the registry's own machine.
    Every method raises errors of `registry.errors` only.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs: BlobStore = LocalBlobs(folder / BLOBS_FOLDER)
        self._database = Database(folder)
        self._bases = Bases(self._database)
        self._catalog = Catalog(self._database)
        self.repositories = Repositories(self._database)
        self._resolution = Resolution(self._database, self._catalog)
        self._listing = Listing(self._database)
        self._aliases = Aliases(self._database)
        self._tenants = Tenants(self._database)
        self._feed = Feed(self._database)
        self._webhooks = Webhooks(self._database)
        self._quotas = Quotas(self._database)
        self._audit_log = AuditLog(self._database)
        self._tenant_policies = TenantPolicies(self._database)
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

    def tenant_policy(self, tenant: str) -> TenantPolicy:
        """What a tenant demands of adapters that enter."""
        return self._tenant_policies.of(tenant)

    def set_tenant_policy(self, tenant: str, changes: dict[str, Any]) -> TenantPolicy:
        """Change some fields of a tenant's policy."""
        return self._tenant_policies.set(tenant, changes, actor=OPERATOR_ACTOR)

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
        return publish(
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

    def resolve(self, ref: str, *, principal: Principal) -> Version:
        """The version that the reference means now; a bare name is the newest."""
        return self._resolution.resolve(ref, principal=principal)

    def pull(self, version: Version, destination: Path) -> Path:
        """Put the version's files into a folder, verified, all at once. Right to read it: having resolved it."""
        return pull(self._blobs, version, destination)

    def list_adapters(self, principal: Principal) -> list[AdapterSummary]:
        """The adapters that the caller may read, by name."""
        return self._listing.all_adapters(principal)

    def page_adapters(
        self, principal: Principal, *, limit: int = PAGE_DEFAULT, cursor: str | None = None, tenant: str | None = None
    ) -> Page[AdapterSummary]:
        """Some of the adapters that the caller may read, by name; the page's cursor asks for the next ones."""
        return self._listing.adapters(principal, limit=limit, cursor=cursor, tenant=tenant)

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
        return promote(self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence)

    def rollback(
        self, name: str, alias: str, *, principal: Principal, expected: Expected = ANY, evidence: str = ""
    ) -> AliasMove:
        """Undo an alias's last promotion."""
        parsed = AdapterName.parse(name)
        return roll_back(self._aliases, parsed, alias, principal=principal, expected=expected, evidence=evidence)

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

    def webhook_policy(self) -> OutboundPolicy:
        """What webhooks may reach beyond public addresses over https."""
        return self._webhooks.policy()

    def set_webhook_policy(self, policy: OutboundPolicy, principal: Principal) -> OutboundPolicy:
        """Allow webhooks to reach more. Only the operator may."""
        return self._webhooks.set_policy(policy, principal)

    def courier(self, settings: CourierSettings | None = None) -> Courier:
        """A worker that delivers to webhooks once it is started; any number of processes may run one."""
        return Courier(Outbox(self._database), self._webhooks.policy, settings or CourierSettings())

    def check_integrity(self) -> None:
        """Check that numbers have no gap, and read every blob of every version. Raises StorageError."""
        operator = Principal.operator()
        for summary in self.list_adapters(operator):
            versions = self.list_versions(summary.adapter, operator)
            numbers = [version.number for version in versions]
            if numbers != list(range(summary.newest_number, 0, -1)):
                raise StorageError(f"{summary.adapter} has the versions {numbers}. Restore the catalog from a backup.")
            for file in {file for version in versions for file in version.files}:
                self._blobs.verify(file)


def open_registry(location: Path | str, *, create: bool = True) -> Registry:
    """Open the registry in this folder, making it where there is none (unless `create` is False).

    Raises NotFoundError, StorageError.
    """
    if "://" in str(location):
        raise InvalidValueError(
            "registry", f"{location} is an address; this release opens registries in a local folder"
        )
    folder = Path(location)
    if not create and not (folder / DATABASE_FILE).is_file():
        raise NotFoundError("registry", str(folder), "Publish an adapter to make one, or name another with --registry.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{folder} cannot be made ({error.strerror}). Name another folder with --registry."
        raise StorageError(message, path=folder) from error
    return Registry(folder)


def _parse_visibility(text: str | None) -> Visibility | None:
    try:
        return None if text is None else Visibility(text)
    except ValueError as error:
        raise InvalidValueError("visibility", f"it is one of {', '.join(Visibility)}") from error
