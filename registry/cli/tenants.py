"""The commands about tenants and their tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from registry.cli import report, report_upkeep
from registry.cli.completion import complete_tenant
from registry.cli.options import Place, RegistryCommand, RegistryGroup, json_option, open_place, place_options
from registry.cli.quantities import Count, Duration, Size, limit_of
from registry.principal import Role

DAYS_LIMIT = 3650


@click.group(cls=RegistryGroup)
def tenant() -> None:
    """Create and list tenants, and set their quotas."""


@tenant.command("create", cls=RegistryCommand)
@click.argument("name")
@place_options
@json_option
def create_tenant(name: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Make the tenant NAME: a namespace with its own adapters and tokens."""
    with open_place(home, registry, create=True) as reg:
        made = reg.create_tenant(name)
    report.show(made, report.print_tenant, as_json=as_json)


@tenant.command("ls", cls=RegistryCommand)
@place_options
@json_option
def list_tenants(*, home: Path, registry: Place | None, as_json: bool) -> None:
    """List the tenants."""
    with open_place(home, registry) as reg:
        tenants = reg.list_tenants()
    report.show(tenants, report.print_tenants, as_json=as_json)


@tenant.command("show", cls=RegistryCommand)
@click.argument("name", shell_complete=complete_tenant)
@place_options
@json_option
def show_tenant(name: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Show what the tenant NAME has, and what it may have."""
    with open_place(home, registry) as reg:
        usage = reg.usage(name)
    report.show(usage, report_upkeep.print_usage, as_json=as_json)


@tenant.command("quota", cls=RegistryCommand)
@click.argument("name", shell_complete=complete_tenant)
@click.option("--bytes", "quota_bytes", type=Size(), default=None, help="Bytes, such as 10GB.  [default: as it is]")
@click.option("--versions", "quota_versions", type=Count(), default=None, help="Versions.  [default: as it is]")
@place_options
@json_option
def set_quota(
    name: str,
    *,
    quota_bytes: int | str | None,
    quota_versions: int | str | None,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Bound what the tenant NAME may have; `none` is no limit. What is there already stays."""
    with open_place(home, registry) as reg:
        before = reg.usage(name)
        usage = reg.set_quota(
            name,
            quota_bytes=limit_of(quota_bytes, before.quota_bytes),
            quota_versions=limit_of(quota_versions, before.quota_versions),
        )
    report.show(usage, report_upkeep.print_usage, as_json=as_json)


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
@place_options
@json_option
def tenant_policy(
    name: str,
    *,
    require_signature: bool | None,
    unverified_base: str | None,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Show or change what the tenant NAME demands of adapters."""
    given = {"require_signature": require_signature, "unverified_base": unverified_base}
    changes = {field: value for field, value in given.items() if value is not None}
    with open_place(home, registry) as reg:
        policy = reg.set_tenant_policy(name, changes) if changes else reg.tenant_policy(name)
    if as_json:
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
@place_options
@json_option
def create_token(
    *,
    tenant: str,
    role: str,
    label: str,
    scope: tuple[str, ...],
    expires_days: int | None,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Make a token. Its secret is printed now and never again: only its hash is kept."""
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with open_place(home, registry, create=True) as reg:
        issued = reg.create_token(tenant, role, label=label, expires_at=expires_at, scope=scope or None)
    report.show(issued, report.print_issued_token, as_json=as_json)


@token.command("ls", cls=RegistryCommand)
@click.option("--tenant", default=None, shell_complete=complete_tenant, help="Only this tenant's.")
@place_options
@json_option
def list_tokens(*, tenant: str | None, home: Path, registry: Place | None, as_json: bool) -> None:
    """List tokens, without their secrets."""
    with open_place(home, registry) as reg:
        names = [tenant] if tenant is not None else [listed.name for listed in reg.list_tenants()]
        tokens = [listed for name in names for listed in reg.list_tokens(name)]
    report.show(tokens, report.print_tokens, as_json=as_json)


@token.command("rotate", cls=RegistryCommand)
@click.argument("token_id")
@click.option("--overlap", type=Duration(), default="0s", show_default=True, help="How long the old one stays valid.")
@place_options
@json_option
def rotate_token(token_id: str, *, overlap: timedelta, home: Path, registry: Place | None, as_json: bool) -> None:
    """Make a token that takes TOKEN_ID's place, with the same rights; the old one ends after the overlap."""
    with open_place(home, registry) as reg:
        issued = reg.rotate_token(token_id, overlap=overlap)
    report.show(issued, report.print_issued_token, as_json=as_json)


@token.command("revoke", cls=RegistryCommand)
@click.argument("token_id")
@place_options
@json_option
def revoke_token(token_id: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """End a token's life at once."""
    with open_place(home, registry) as reg:
        revoked = reg.revoke_token(token_id)
    report.show(revoked, report.print_revoked_token, as_json=as_json)
