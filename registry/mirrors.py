"""Mirrors: adapters that are pulled in from another Hub, each version pinned to the upstream commit that it came from.

What comes in is a publish like any other: judged, counted, audited, told of. Its message names the upstream and the
commit. The mirror's row says where to look for newer commits; reading a mirrored adapter never asks the upstream, so an
upstream that is down, moved or deleted changes nothing here.

A tenant whose policy names an `upstream` has its unknown adapters pulled in when one of its own tokens first reads
them; this is off by default.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from registry import audit
from registry.database import Database
from registry.errors import NotFoundError, RegistryError
from registry.lookup import find_adapter, is_readable
from registry.mirror import DEFAULT_REVISION, Mirror, MirrorSync
from registry.models import AdapterRow, MirrorRow, TenantRow
from registry.names import AdapterName, AdapterRef
from registry.principal import Principal, Role
from registry.publication import Publication
from registry.tenant_policies import TenantPolicies
from registry.upstream import Upstream

T = TypeVar("T")

MIRROR_ACTOR = "mirror"
MISS_SECONDS = 60.0
MISSES_KEPT = 4096


class Publish(Protocol):
    """How a folder becomes a version."""

    def __call__(
        self, folder: Path, name: str, *, principal: Principal, base_fingerprint: str | None, message: str
    ) -> Publication:
        """Judge and publish it."""
        ...


class Mirrors:
    """Mirrors in the database, and their fetching. `_misses` (when a name was last not found upstream) has its lock."""

    def __init__(self, database: Database, policies: TenantPolicies, publish: Publish) -> None:
        self._database = database
        self._policies = policies
        self._publish = publish
        self._lock = threading.Lock()
        self._misses: OrderedDict[str, float] = OrderedDict()

    def add(
        self,
        name: AdapterName,
        source: str,
        *,
        revision: str = DEFAULT_REVISION,
        token: str | None = None,
        base_fingerprint: str | None = None,
        principal: Principal,
    ) -> MirrorSync:
        """Pull the upstream's commit in, and remember where it came from. Only the operator may.

        `token` is for the upstream and is not kept. Raises UpstreamError, NotFoundError, RejectedAdapterError.
        """
        principal.require_operator(action="mirror into", subject=str(name))
        upstream = Upstream.parse(source, token=token)
        return self._pull(name, upstream, revision, base_fingerprint, principal)

    def sync(self, name: AdapterName, *, token: str | None = None, principal: Principal) -> MirrorSync:
        """Pull the upstream's newer commit in, if there is one. Raises NotFoundError, UpstreamError."""
        mirror = self.find(name, principal)
        principal.require(Role.PUBLISHER, name, action="publish to")
        upstream = Upstream.parse(mirror.upstream, token=token)
        commit = upstream.commit_of(mirror.revision)
        if commit == mirror.commit:
            return MirrorSync(mirror, None)
        return self._pull(name, upstream, mirror.revision, None, principal, commit=commit)

    def find(self, name: AdapterName, principal: Principal) -> Mirror:
        """Where the adapter is pulled from. Raises NotFoundError."""
        with self._database.reading() as session:
            return to_mirror(str(name), mirror_row(session, name, principal))

    def all(self, principal: Principal) -> list[Mirror]:
        """Every mirror whose adapter the caller may read, by name."""
        with self._database.reading() as session:
            query = (
                select(MirrorRow, AdapterRow.name, TenantRow.name)
                .join(AdapterRow, AdapterRow.id == MirrorRow.adapter_id)
                .join(TenantRow, TenantRow.id == AdapterRow.tenant_id)
                .where(is_readable(principal))
                .order_by(TenantRow.name, AdapterRow.name)
            )
            return [to_mirror(f"{tenant}/{name}", row) for row, name, tenant in session.execute(query)]

    def remove(self, name: AdapterName, principal: Principal) -> Mirror:
        """Forget where the adapter came from; its versions stay. Raises NotFoundError, PermissionDeniedError."""
        with self._database.writing() as session:
            row = mirror_row(session, name, principal, lock=True)
            principal.require(Role.ADMIN, name, action="remove the mirror of")
            mirror = to_mirror(str(name), row)
            session.delete(row)
            _audit(session, principal, "remove_mirror", mirror)
            return mirror

    def pulling_through(self, read: Callable[[], T], ref: str, principal: Principal) -> T:
        """What `read` gives; where its adapter is unknown and its tenant's policy names an upstream, after a pull."""
        try:
            return read()
        except NotFoundError as error:
            if error.kind != "adapter" or not self._pull_through(ref, principal):
                raise
        return read()

    def _pull_through(self, ref: str, principal: Principal) -> bool:
        """Pull an unknown adapter in, for a token of its own tenant; False where there is nothing to pull."""
        name = AdapterRef.parse(ref).adapter
        if name is None or principal.is_operator or not principal.covers(name):
            return False
        source = self._policies.of(name.tenant).upstream
        if source is None or self._is_missed(str(name)):
            return False
        actor = Principal(tenant=name.tenant, role=Role.PUBLISHER, token_id=MIRROR_ACTOR)
        try:
            self._pull(name, Upstream.parse(f"{source.rstrip('/')}/{name.name}"), DEFAULT_REVISION, None, actor)
        except RegistryError:
            with self._lock:
                self._misses[str(name)] = time.monotonic()
                while len(self._misses) > MISSES_KEPT:
                    self._misses.popitem(last=False)
            return False
        return True

    def _is_missed(self, name: str) -> bool:
        """Whether the upstream did not have it a moment ago: clients who ask again and again do not reach it."""
        with self._lock:
            missed_at = self._misses.get(name)
        return missed_at is not None and time.monotonic() - missed_at < MISS_SECONDS

    def _pull(
        self,
        name: AdapterName,
        upstream: Upstream,
        revision: str,
        base_fingerprint: str | None,
        principal: Principal,
        *,
        commit: str | None = None,
    ) -> MirrorSync:
        commit = commit or upstream.commit_of(revision)
        with tempfile.TemporaryDirectory(prefix="loraplex-mirror-") as scratch:
            upstream.fetch(commit, Path(scratch))
            message = f"mirrored from {upstream.url} at commit {commit}"
            publication = self._publish(
                Path(scratch), str(name), principal=principal, base_fingerprint=base_fingerprint, message=message
            )
        return MirrorSync(self._remember(name, upstream, revision, commit, principal), publication)

    def _remember(
        self, name: AdapterName, upstream: Upstream, revision: str, commit: str, principal: Principal
    ) -> Mirror:
        now = datetime.now(UTC)
        with self._database.writing() as session:
            adapter = find_adapter(session, name, principal, lock=True)
            row = session.get(MirrorRow, adapter.id) or MirrorRow(adapter_id=adapter.id, failures=0)
            row.endpoint, row.repository, row.revision = upstream.endpoint, upstream.repository, revision
            row.commit, row.fetched_at = commit, now
            session.add(row)
            mirror = to_mirror(str(name), row)
            _audit(session, principal, "mirror", mirror)
            return mirror


def mirror_row(session: Session, name: AdapterName, principal: Principal, *, lock: bool = False) -> MirrorRow:
    """The adapter's row, in somebody's transaction. Raises NotFoundError."""
    adapter = find_adapter(session, name, principal, lock=lock)
    row = session.get(MirrorRow, adapter.id)
    if row is None:
        raise NotFoundError("mirror", str(name), "List them with `loraplex mirror ls`.")
    return row


def to_mirror(name: str, row: MirrorRow) -> Mirror:
    """The row as its users see it."""
    return Mirror(
        adapter=name,
        upstream=f"{row.endpoint}/{row.repository}",
        revision=row.revision,
        commit=row.commit,
        fetched_at=row.fetched_at,
        every_seconds=row.every_seconds,
        checked_at=row.checked_at,
        next_sync_at=row.next_sync_at,
        failures=row.failures,
        failure=row.failure,
    )


def _audit(session: Session, principal: Principal, action: str, mirror: Mirror) -> None:
    audit.record(
        session,
        at=datetime.now(UTC),
        actor=principal.actor,
        action=action,
        subject=mirror.adapter,
        upstream=mirror.upstream,
        revision=mirror.revision,
        commit=mirror.commit,
    )
