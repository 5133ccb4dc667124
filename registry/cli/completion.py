"""What a shell completes in the registry's commands: adapters, aliases, versions and tenants that the caller may read.

It asks the registry that the command line names so far, with its token; where that fails or takes long, it completes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from registry.cli.place import open_briefly
from registry.errors import RegistryError
from registry.principal import OPERATOR

if TYPE_CHECKING:
    from registry.registry import Registry

SHOWN_LIMIT = 50


def complete_adapter(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of adapters."""
    return _asked(ctx, lambda reg: _adapters(reg, incomplete))


def complete_reference(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of adapters; after an `@`, the adapter's aliases and newest versions."""
    return _asked(ctx, lambda reg: _selectors(reg, incomplete) if "@" in incomplete else _adapters(reg, incomplete))


def complete_alias(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the aliases of the adapter that stands on the command line already.

    An option that has no value yet keeps click from reading what stands before it: that is in `args` then.
    """
    given = ctx.params.get("adapter") or ctx.params.get("ref") or next(iter(ctx.args), "")
    adapter = str(given).partition("@")[0]
    return _asked(ctx, lambda reg: _aliases(reg, adapter, incomplete)) if adapter else []


def complete_tenant(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of tenants."""
    return _asked(ctx, lambda reg: _tenants(reg, incomplete))


def _adapters(reg: Registry, incomplete: str) -> Iterator[CompletionItem]:
    tenant = incomplete.partition("/")[0] if "/" in incomplete else None
    page = reg.page_adapters(OPERATOR, limit=SHOWN_LIMIT, tenant=tenant, search=incomplete or None)
    for summary in page.items:
        if summary.adapter.startswith(incomplete):
            yield CompletionItem(summary.adapter, help=f"newest is {summary.newest_number}")


def _selectors(reg: Registry, incomplete: str) -> Iterator[CompletionItem]:
    adapter, _, selector = incomplete.partition("@")
    known = {alias: f"points at version {number}" for alias, number in reg.aliases(adapter, OPERATOR).items()}
    for version in reg.page_versions(adapter, OPERATOR, limit=SHOWN_LIMIT).items:
        known[str(version.number)] = f"published {version.created_at:%Y-%m-%d}"
    for name, text in known.items():
        if name.startswith(selector):
            yield CompletionItem(f"{adapter}@{name}", help=text)


def _aliases(reg: Registry, adapter: str, incomplete: str) -> Iterator[CompletionItem]:
    for alias, number in reg.aliases(adapter, OPERATOR).items():
        if alias.startswith(incomplete):
            yield CompletionItem(alias, help=f"points at version {number}")


def _tenants(reg: Registry, incomplete: str) -> Iterator[CompletionItem]:
    return (CompletionItem(tenant.name) for tenant in reg.list_tenants() if tenant.name.startswith(incomplete))


def _asked(ctx: click.Context, find: Callable[[Registry], Iterator[CompletionItem]]) -> list[CompletionItem]:
    home, place = ctx.params.get("home"), ctx.params.get("registry")
    if home is None:
        return []
    try:
        with open_briefly(ctx, home, place) as reg:
            return list(find(reg))
    except RegistryError:
        return []
