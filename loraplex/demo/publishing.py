"""Step 2 of the demo: two tenants with a token each, and every adapter published by its owner."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import registry
from loraplex.demo.plan import AdapterPlan, DemoPlan
from loraplex.demo.training import TrainedAdapter
from registry.principal import Role
from registry.version import Version

MADE_BY = "loraplex demo"


@dataclass(frozen=True)
class PublishedAdapter:
    """A version in the registry, and the token with which its owner uses it."""

    plan: AdapterPlan
    version: Version
    token: str


def publish_adapters(plan: DemoPlan, trained: Iterable[TrainedAdapter], home: Path) -> list[PublishedAdapter]:
    """Publish each adapter with its tenant's own token, and move the aliases of the plan."""
    published = []
    with registry.open(home / "registry") as opened:
        tokens = {tenant: _token(opened, tenant) for tenant in plan.tenants}
        for adapter in trained:
            opened.register_base(adapter.base.to_json())
            name, alias = adapter.plan.adapter, adapter.plan.alias
            principal = opened.authenticate(tokens[adapter.plan.tenant])
            version = opened.publish(adapter.folder, name, principal=principal, message=MADE_BY)
            if alias:
                opened.promote(f"{name}@{version.number}", alias, principal=principal, evidence=MADE_BY)
            published.append(PublishedAdapter(adapter.plan, version, tokens[adapter.plan.tenant]))
    return published


def _token(opened: registry.Registry, tenant: str) -> str:
    if all(existing.name != tenant for existing in opened.list_tenants()):
        opened.create_tenant(tenant)
    return opened.create_token(tenant, Role.PROMOTER, label=MADE_BY).secret
