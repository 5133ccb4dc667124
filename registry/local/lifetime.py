"""What is kept and what goes, of a registry in process: deletion, pins, leases, retention, garbage collection."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from registry.database import Database
from registry.deletion import Deletion
from registry.gc import GarbageCollection
from registry.gc_report import GRACE, GcReport
from registry.lease import Lease, Pin
from registry.leases import Leases
from registry.names import AdapterName, AdapterRef
from registry.principal import OPERATOR, Principal
from registry.retention import Retention
from registry.retention_rule import RetentionRule


class LocalLifetime:
    """A part of `Registry`: how long versions live."""

    def __init__(self, database: Database, gc: GarbageCollection) -> None:
        self._deletion = Deletion(database)
        self._leases = Leases(database)
        self._retention = Retention(database)
        self._gc = gc

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
