"""The commands about mirrors of another Hub."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import click

from registry import local_bases
from registry.cli import report, report_feed
from registry.cli.options import Place, RegistryCommand, RegistryGroup, json_option, open_place, place_options
from registry.cli.quantities import Duration
from registry.errors import RegistryError
from registry.mirror import DEFAULT_REVISION
from registry.principal import Principal

OPERATOR = Principal.operator()

upstream_token_option = click.option(
    "--upstream-token",
    envvar="LORAPLEX_UPSTREAM_TOKEN",
    default=None,
    help="What the upstream is asked with; it is sent to no other host, and not kept.",
)


@click.group(cls=RegistryGroup)
def mirror() -> None:
    """Pull adapters in from another Hub."""


@mirror.command("add", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@click.option("--from", "source", required=True, metavar="URL", help="Such as https://huggingface.co/org/repo.")
@click.option("--revision", default=DEFAULT_REVISION, show_default=True, help="Branch, tag or commit of the upstream.")
@click.option("--base-fingerprint", default=None, metavar="HEX", help="Its base, for one without loraplex.json.")
@click.option("--every", type=Duration(), default=None, help="Look for newer commits so often, such as 1h.")
@upstream_token_option
@place_options
@json_option
def add_mirror(
    adapter: str,
    *,
    source: str,
    revision: str,
    base_fingerprint: str | None,
    every: timedelta | None,
    upstream_token: str | None,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Make the upstream's commit a version of TENANT/NAME, judged like any other, and remember where it came from."""
    with open_place(home, registry, create=True) as reg:
        local_bases.register_all(reg, home, warn=lambda text: click.echo(f"Warning: {text}", err=True))
        done = reg.add_mirror(
            adapter,
            source,
            revision=revision,
            token=upstream_token,
            base_fingerprint=base_fingerprint,
            principal=OPERATOR,
        )
        if every is not None:
            done = replace(done, mirror=reg.follow_mirror(adapter, every, principal=OPERATOR))
    if as_json:
        report.print_json(done)
    else:
        report_feed.print_sync(done)
        if every is not None:
            report_feed.print_schedule(done.mirror)


@mirror.command("follow", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@click.option("--every", type=Duration(), default=None, help="Look for newer commits so often, such as 1h.")
@click.option("--never", is_flag=True, help="Look for them only when `mirror sync` is run.")
@place_options
@json_option
def follow_mirror(
    adapter: str, *, every: timedelta | None, never: bool, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Let the registry's servers pull in newer commits by themselves, judged like any other.

    While the upstream fails, it is asked more and more rarely; `mirror ls` shows it. It is asked without a token.
    """
    if never == (every is not None):
        raise click.UsageError("Give --every DURATION, or --never.")
    with open_place(home, registry) as reg:
        found = reg.follow_mirror(adapter, every, principal=OPERATOR)
    report.show(found, report_feed.print_schedule, as_json=as_json)


@mirror.command("sync", cls=RegistryCommand)
@click.argument("adapter", metavar="[TENANT/NAME]", required=False)
@upstream_token_option
@place_options
@json_option
def sync_mirror(
    adapter: str | None, *, upstream_token: str | None, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Pull in the newer commit of one mirror, or of every one; one that fails does not hold up the others."""
    failed = 0
    with open_place(home, registry) as reg:
        names = [adapter] if adapter is not None else [found.adapter for found in reg.list_mirrors(OPERATOR)]
        done = []
        for name in names:
            try:
                done.append(reg.sync_mirror(name, token=upstream_token, principal=OPERATOR))
            except RegistryError as error:
                if adapter is not None:
                    raise
                failed += 1
                click.echo(f"Error: {name}: {error.message}", err=True)
                continue
            if not as_json:
                report_feed.print_sync(done[-1])
    if as_json:
        report.print_json(done)
    if failed:
        raise SystemExit(1)


@mirror.command("ls", cls=RegistryCommand)
@place_options
@json_option
def list_mirrors(*, home: Path, registry: Place | None, as_json: bool) -> None:
    """List the mirrors."""
    with open_place(home, registry) as reg:
        found = reg.list_mirrors(OPERATOR)
    report.show(found, report_feed.print_mirrors, as_json=as_json)


@mirror.command("rm", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@place_options
@json_option
def remove_mirror(adapter: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Forget where TENANT/NAME came from; its versions stay."""
    with open_place(home, registry) as reg:
        removed = reg.remove_mirror(adapter, OPERATOR)
    if as_json:
        report.print_json(removed)
    else:
        click.echo(f"{removed.adapter} is no mirror of {removed.upstream} any more; its versions stay")


@mirror.command("through", cls=RegistryCommand)
@click.argument("tenant")
@click.option("--from", "source", default=None, metavar="URL", help="Such as https://huggingface.co/org.")
@click.option("--off", is_flag=True, help="Pull nothing in by itself.")
@place_options
@json_option
def pull_through(
    tenant: str, *, source: str | None, off: bool, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Pull TENANT's unknown adapters in from an organisation upstream, when the tenant first reads them."""
    if off == (source is not None):
        raise click.UsageError("Give --from URL, or --off.")
    with open_place(home, registry) as reg:
        policy = reg.set_tenant_policy(tenant, {"upstream": source or ""})
    if as_json:
        report.print_json(policy)
    else:
        click.echo(f"Unknown adapters of {tenant} are {'not pulled in' if off else f'pulled in from {source}'}")
