"""What the commands about tenants and their tokens print for people."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.text import Text

from registry.cli.report import console, table_of, time_text
from registry.printable import printable
from registry.tenant import IssuedToken, Tenant, Token


def print_tenant(tenant: Tenant) -> None:
    """A tenant that was just made."""
    click.echo(f"Tenant {tenant.name} is made")
    click.echo(f"Next: loraplex token create --tenant {tenant.name} --role publisher")


def print_tenants(tenants: Sequence[Tenant]) -> None:
    """All tenants."""
    if not tenants:
        click.echo("No tenants yet. Make one: loraplex tenant create NAME")
        return
    table = table_of("TENANT", "MADE")
    for tenant in tenants:
        table.add_row(tenant.name, time_text(tenant.created_at))
    console().print(table)


def print_issued_token(token: IssuedToken) -> None:
    """A token that was just made: the only time that its secret is seen."""
    expires = "never" if token.expires_at is None else time_text(token.expires_at)
    click.echo(f"Token {token.token_id} for tenant {token.tenant}, role {token.role.value}, expires {expires}")
    click.echo(f"  secret    {token.secret}")
    click.echo("Keep it now: it is not stored and cannot be shown again.")


def print_tokens(tokens: Sequence[Token]) -> None:
    """Tokens, without their secrets."""
    if not tokens:
        click.echo("No tokens yet. Make one: loraplex token create --tenant TENANT --role ROLE")
        return
    table = table_of("TOKEN", "TENANT", "ROLE", "LABEL", "MADE", "EXPIRES", "REVOKED")
    for token in tokens:
        moments = (time_text(token.created_at), time_text(token.expires_at), time_text(token.revoked_at))
        table.add_row(token.token_id, token.tenant, token.role.value, Text(printable(token.label)), *moments)
    console().print(table)


def print_revoked_token(token: Token) -> None:
    """A token that opens nothing any more."""
    click.echo(f"Token {token.token_id} of tenant {token.tenant} is revoked")
