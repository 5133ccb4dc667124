"""The commands about mirrors of another Hub."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import click

from registry.cli import report, report_feed
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_adapter
from registry.cli.options import RegistryCommand, RegistryGroup, adapter_argument
from registry.cli.quantities import Duration
from registry.errors import RegistryError
from registry.mirror import DEFAULT_REVISION
from registry.principal import OPERATOR

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
@adapter_argument
@click.option("--from", "source", required=True, metavar="URL", help="Such as https://huggingface.co/org/repo.")
@click.option("--revision", default=DEFAULT_REVISION, show_default=True, help="Branch, tag or commit of the upstream.")
@click.option("--base-fingerprint", default=None, metavar="HEX", help="Its base, for one without loraplex.json.")
@click.option("--every", type=Duration(), default=None, help="Look for newer commits so often, such as 1h.")
@upstream_token_option
@registry_call
def add_mirror(
    call: RegistryCall,
    adapter: str,
    *,
    source: str,
    revision: str,
    base_fingerprint: str | None,
    every: timedelta | None,
    upstream_token: str | None,
) -> None:
    """Make the upstream's commit a version of TENANT/NAME, judged like any other, and remember where it came from."""
    with call.open_with_bases() as reg:
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
    if call.as_json:
        report.print_json(done)
    else:
        report_feed.print_sync(done)
        if every is not None:
            report_feed.print_schedule(done.mirror)


@mirror.command("follow", cls=RegistryCommand)
@adapter_argument
@click.option("--every", type=Duration(), default=None, help="Look for newer commits so often, such as 1h.")
@click.option("--never", is_flag=True, help="Look for them only when `mirror sync` is run.")
@registry_call
def follow_mirror(call: RegistryCall, adapter: str, *, every: timedelta | None, never: bool) -> None:
    """Let the registry's servers pull in newer commits by themselves, judged like any other.

    While the upstream fails, it is asked more and more rarely; `mirror ls` shows it. It is asked without a token.
    """
    if never == (every is not None):
        raise click.UsageError("Give --every DURATION, or --never.")
    with call.open() as reg:
        found = reg.follow_mirror(adapter, every, principal=OPERATOR)
    call.show(found, report_feed.print_schedule)


@mirror.command("sync", cls=RegistryCommand)
@click.argument("adapter", metavar="[TENANT/NAME]", required=False, shell_complete=complete_adapter)
@upstream_token_option
@registry_call
def sync_mirror(call: RegistryCall, adapter: str | None, *, upstream_token: str | None) -> None:
    """Pull in the newer commit of one mirror, or of every one; one that fails does not hold up the others."""
    failed = 0
    with call.open() as reg:
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
            if not call.as_json:
                report_feed.print_sync(done[-1])
    if call.as_json:
        report.print_json(done)
    if failed:
        raise SystemExit(1)


@mirror.command("ls", cls=RegistryCommand)
@registry_call
def list_mirrors(call: RegistryCall) -> None:
    """List the mirrors."""
    with call.open() as reg:
        found = reg.list_mirrors(OPERATOR)
    call.show(found, report_feed.print_mirrors)


@mirror.command("rm", cls=RegistryCommand)
@adapter_argument
@registry_call
def remove_mirror(call: RegistryCall, adapter: str) -> None:
    """Forget where TENANT/NAME came from; its versions stay."""
    with call.open() as reg:
        removed = reg.remove_mirror(adapter, OPERATOR)
    call.say(removed, f"{removed.adapter} is no mirror of {removed.upstream} any more; its versions stay")


@mirror.command("through", cls=RegistryCommand)
@click.argument("tenant")
@click.option("--from", "source", default=None, metavar="URL", help="Such as https://huggingface.co/org.")
@click.option("--off", is_flag=True, help="Pull nothing in by itself.")
@registry_call
def pull_through(call: RegistryCall, tenant: str, *, source: str | None, off: bool) -> None:
    """Pull TENANT's unknown adapters in from an organisation upstream, when the tenant first reads them."""
    if off == (source is not None):
        raise click.UsageError("Give --from URL, or --off.")
    with call.open() as reg:
        policy = reg.set_tenant_policy(tenant, {"upstream": source or ""})
    call.say(policy, f"Unknown adapters of {tenant} are {'not pulled in' if off else f'pulled in from {source}'}")
