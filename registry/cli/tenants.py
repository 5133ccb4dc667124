"""The commands about tenants and their tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from registry.cli import report, report_tenants, report_upkeep
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_tenant
from registry.cli.options import RegistryCommand, RegistryGroup
from registry.cli.quantities import Count, Duration, Size, limit_of
from registry.principal import Role

DAYS_LIMIT = 3650


@click.group(cls=RegistryGroup)
def tenant() -> None:
    """Create and list tenants, and set their quotas."""


@tenant.command("create", cls=RegistryCommand)
@click.argument("name")
@registry_call
def create_tenant(call: RegistryCall, name: str) -> None:
    """Make the tenant NAME: a namespace with its own adapters and tokens."""
    with call.open(create=True) as reg:
        made = reg.create_tenant(name)
    call.show(made, report_tenants.print_tenant)


@tenant.command("ls", cls=RegistryCommand)
@registry_call
def list_tenants(call: RegistryCall) -> None:
    """List the tenants."""
    with call.open() as reg:
        tenants = reg.list_tenants()
    call.show(tenants, report_tenants.print_tenants)


@tenant.command("show", cls=RegistryCommand)
@click.argument("name", shell_complete=complete_tenant)
@registry_call
def show_tenant(call: RegistryCall, name: str) -> None:
    """Show what the tenant NAME has, and what it may have."""
    with call.open() as reg:
        usage = reg.usage(name)
    call.show(usage, report_upkeep.print_usage)


@tenant.command("quota", cls=RegistryCommand)
@click.argument("name", shell_complete=complete_tenant)
@click.option("--bytes", "quota_bytes", type=Size(), default=None, help="Bytes, such as 10GB.  [default: as it is]")
@click.option("--versions", "quota_versions", type=Count(), default=None, help="Versions.  [default: as it is]")
@registry_call
def set_quota(
    call: RegistryCall, name: str, *, quota_bytes: int | str | None, quota_versions: int | str | None
) -> None:
    """Bound what the tenant NAME may have; `none` is no limit. What is there already stays."""
    with call.open() as reg:
        before = reg.usage(name)
        usage = reg.set_quota(
            name,
            quota_bytes=limit_of(quota_bytes, before.quota_bytes),
            quota_versions=limit_of(quota_versions, before.quota_versions),
        )
    call.show(usage, report_upkeep.print_usage)


@tenant.command("policy", cls=RegistryCommand)
@click.argument("name", shell_complete=complete_tenant)
@click.option(
    "--require-signature/--no-require-signature",
    "require_signature",
    default=None,
    help="Whether aliases move only to versions that a trusted key has signed.",
)
@click.option(
    "--unverified-base",
    type=click.Choice(["allow", "refuse"]),
    default=None,
    help="Whether adapters enter whose base nobody recorded.",
)
@registry_call
def tenant_policy(
    call: RegistryCall, name: str, *, require_signature: bool | None, unverified_base: str | None
) -> None:
    """Show or change what the tenant NAME demands of adapters."""
    given = {"require_signature": require_signature, "unverified_base": unverified_base}
    changes = {field: value for field, value in given.items() if value is not None}
    with call.open() as reg:
        policy = reg.set_tenant_policy(name, changes) if changes else reg.tenant_policy(name)
    if call.as_json:
        report.print_json(policy)
    else:
        report_upkeep.print_tenant_policy(name, policy)


@click.group(cls=RegistryGroup)
def token() -> None:
    """Create, list, rotate and revoke access tokens."""


@token.command("create", cls=RegistryCommand)
@click.option("--tenant", required=True, shell_complete=complete_tenant, help="The tenant that the token belongs to.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default="reader",
    show_default=True,
    help="What the token allows; each role may do what the ones before it may.",
)
@click.option("--label", default="", help="What the token is for.")
@click.option(
    "--scope", multiple=True, metavar="NAME", help="Only for these adapters, such as sql-*; may be given several times."
)
@click.option("--expires-days", type=click.IntRange(1, DAYS_LIMIT), default=None, help="Days that it is valid.")
@registry_call
def create_token(
    call: RegistryCall, *, tenant: str, role: str, label: str, scope: tuple[str, ...], expires_days: int | None
) -> None:
    """Make a token. Its secret is printed now and never again: only its hash is kept."""
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with call.open(create=True) as reg:
        issued = reg.create_token(tenant, role, label=label, expires_at=expires_at, scope=scope or None)
    call.show(issued, report_tenants.print_issued_token)


@token.command("ls", cls=RegistryCommand)
@click.option("--tenant", default=None, shell_complete=complete_tenant, help="Only this tenant's.")
@registry_call
def list_tokens(call: RegistryCall, *, tenant: str | None) -> None:
    """List tokens, without their secrets."""
    with call.open() as reg:
        names = [tenant] if tenant is not None else [listed.name for listed in reg.list_tenants()]
        tokens = [listed for name in names for listed in reg.list_tokens(name)]
    call.show(tokens, report_tenants.print_tokens)


@token.command("rotate", cls=RegistryCommand)
@click.argument("token_id")
@click.option("--overlap", type=Duration(), default="0s", show_default=True, help="How long the old one stays valid.")
@registry_call
def rotate_token(call: RegistryCall, token_id: str, *, overlap: timedelta) -> None:
    """Make a token that takes TOKEN_ID's place, with the same rights; the old one ends after the overlap."""
    with call.open() as reg:
        issued = reg.rotate_token(token_id, overlap=overlap)
    call.show(issued, report_tenants.print_issued_token)


@token.command("revoke", cls=RegistryCommand)
@click.argument("token_id")
@registry_call
def revoke_token(call: RegistryCall, token_id: str) -> None:
    """End a token's life at once."""
    with call.open() as reg:
        revoked = reg.revoke_token(token_id)
    call.show(revoked, report_tenants.print_revoked_token)
