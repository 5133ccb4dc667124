"""The commands about tenants and their tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from registry.cli import report
from registry.cli.options import Place, RegistryCommand, json_option, open_place, place_options
from registry.principal import Role

DAYS_LIMIT = 3650


@click.group()
def tenant() -> None:
    """Create and list tenants."""


@tenant.command("create", cls=RegistryCommand)
@click.argument("name")
@place_options
@json_option
def create_tenant(name: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Make the tenant NAME: a namespace with its own adapters and tokens."""
    with open_place(home, registry, create=True) as reg:
        made = reg.create_tenant(name)
    if as_json:
        report.print_json(made)
    else:
        report.print_tenant(made)


@tenant.command("ls", cls=RegistryCommand)
@place_options
@json_option
def list_tenants(*, home: Path, registry: Place | None, as_json: bool) -> None:
    """List the tenants."""
    with open_place(home, registry) as reg:
        tenants = reg.list_tenants()
    if as_json:
        report.print_json(tenants)
    else:
        report.print_tenants(tenants)


@click.group()
def token() -> None:
    """Create, list and revoke access tokens."""


@token.command("create", cls=RegistryCommand)
@click.option("--tenant", required=True, help="The tenant that the token belongs to.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    default="reader",
    show_default=True,
    help="What the token allows; each role may do what the ones before it may.",
)
@click.option("--label", default="", help="What the token is for.")
@click.option("--expires-days", type=click.IntRange(1, DAYS_LIMIT), default=None, help="Days that it is valid.")
@place_options
@json_option
def create_token(
    *, tenant: str, role: str, label: str, expires_days: int | None, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Make a token. Its secret is printed now and never again: only its hash is kept."""
    expires_at = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    with open_place(home, registry, create=True) as reg:
        issued = reg.create_token(tenant, role, label=label, expires_at=expires_at)
    if as_json:
        report.print_json(issued)
    else:
        report.print_issued_token(issued)


@token.command("ls", cls=RegistryCommand)
@click.option("--tenant", default=None, help="Only this tenant's.")
@place_options
@json_option
def list_tokens(*, tenant: str | None, home: Path, registry: Place | None, as_json: bool) -> None:
    """List tokens, without their secrets."""
    with open_place(home, registry) as reg:
        names = [tenant] if tenant is not None else [listed.name for listed in reg.list_tenants()]
        tokens = [listed for name in names for listed in reg.list_tokens(name)]
    if as_json:
        report.print_json(tokens)
    else:
        report.print_tokens(tokens)


@token.command("revoke", cls=RegistryCommand)
@click.argument("token_id")
@place_options
@json_option
def revoke_token(token_id: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """End a token's life at once."""
    with open_place(home, registry) as reg:
        revoked = reg.revoke_token(token_id)
    if as_json:
        report.print_json(revoked)
    else:
        report.print_revoked_token(revoked)
