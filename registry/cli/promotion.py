"""The commands that decide what an alias may point at: policy, approve, attest."""

from __future__ import annotations

from pathlib import Path

import click

from registry.cli import report, report_promotion
from registry.cli.options import (
    HomePath,
    Place,
    RegistryCommand,
    RegistryGroup,
    alias_option,
    json_option,
    open_place,
    place_options,
)
from registry.errors import InvalidValueError
from registry.policies import POLICY_BYTES_LIMIT, read_policy_text
from registry.principal import Principal

note_option = click.option("--note", default="", help="Kept with the attestation.")
verdict_option = click.option("--passed/--failed", "passed", required=True, help="What came out.")


@click.group(cls=RegistryGroup)
def policy() -> None:
    """Set, show and try what a version must show before an alias may point at it."""


@policy.command("set", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@click.argument("file", type=HomePath(exists=True, dir_okay=False, allow_dash=True))
@alias_option
@place_options
@json_option
def set_policy(adapter: str, file: Path, *, alias: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """Make FILE (TOML or JSON; - reads JSON from stdin) the policy of ALIAS, in the place of the one before.

    \b
    A policy in TOML; each requirement may be left out:
        probes = "passed"      # or "present"
        signed = true
        approvals = 2
        [[metrics]]
        metric = "exact_match"
        better = "higher"
        bound = 0.9            # at least
        margin = 0.01          # better than what the alias points at
    """  # noqa: D301 (click's own mark)
    document = read_policy_text(_text_of(file), is_toml=file.suffix == ".toml")
    with open_place(home, registry) as reg:
        record = reg.set_policy(adapter, alias, document, principal=Principal.operator())
    report.show(record, report_promotion.print_policy, as_json=as_json)


@policy.command("show", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@click.option("--alias", default=None, metavar="ALIAS", help="Only this alias's.")
@place_options
@json_option
def show_policy(adapter: str, *, alias: str | None, home: Path, registry: Place | None, as_json: bool) -> None:
    """Show the policies of an adapter's aliases."""
    operator = Principal.operator()
    with open_place(home, registry) as reg:
        records = reg.policies(adapter, operator) if alias is None else [reg.policy(adapter, alias, operator)]
    report.show(records, report_promotion.print_policies, as_json=as_json)


@policy.command("rm", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@place_options
@json_option
def remove_policy(adapter: str, *, alias: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """Take the policy of ALIAS away: every version may then be promoted to it."""
    with open_place(home, registry) as reg:
        reg.remove_policy(adapter, alias, principal=Principal.operator())
    if as_json:
        report.print_json({"adapter": adapter, "alias": alias, "is_removed": True})
    else:
        click.echo(f"{adapter}@{alias} has no policy any more")


@policy.command("check", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@alias_option
@place_options
@json_option
def check_policy(ref: str, *, alias: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """Judge a version by the policy of ALIAS without moving it; exit code 1 where it does not pass."""
    with open_place(home, registry) as reg:
        verdict = reg.check_gate(ref, alias, Principal.operator())
    if as_json:
        report.print_json(verdict)
    else:
        report_promotion.print_gate(verdict, alias)
    if verdict is not None and not verdict.passed:
        raise SystemExit(1)


@click.command(cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@alias_option
@note_option
@place_options
@json_option
def approve(ref: str, *, alias: str, note: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """Approve a version for ALIAS. It is no promotion: a policy counts approvals."""
    with open_place(home, registry) as reg:
        attestation = reg.approve(ref, alias, principal=Principal.operator(), note=note)
    report.show(attestation, report_promotion.print_attestation, as_json=as_json)


@click.group(cls=RegistryGroup)
def attest() -> None:
    """Record what was found out about a version: evaluations, probe runs, scans. Nothing of it is ever changed."""


@attest.command("evaluation", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@click.option("--name", required=True, help="The evaluation's name, such as golden-set.")
@click.option("--metric", "metrics", multiple=True, required=True, metavar="NAME=VALUE", help="A figure; repeat it.")
@click.option("--passed/--failed", "passed", default=None, help="What came out, where it is for or against.")
@note_option
@place_options
@json_option
def attest_evaluation(
    ref: str,
    *,
    name: str,
    metrics: tuple[str, ...],
    passed: bool | None,
    note: str,
    home: Path,
    registry: Place | None,
    as_json: bool,
) -> None:
    """Record figures that were measured; the newest of a name counts."""
    figures = dict(map(_figure_of, metrics))
    with open_place(home, registry) as reg:
        operator = Principal.operator()
        attestation = reg.attest_evaluation(ref, name, figures, principal=operator, passed=passed, note=note)
    report.show(attestation, report_promotion.print_attestation, as_json=as_json)


@attest.command("probes", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@click.option("--name", default="probes", show_default=True, help="Who or what ran them.")
@verdict_option
@note_option
@place_options
@json_option
def attest_probes(
    ref: str, *, name: str, passed: bool, note: str, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Record that the manifest's probes were run."""
    with open_place(home, registry) as reg:
        attestation = reg.attest_probes(ref, passed=passed, principal=Principal.operator(), name=name, note=note)
    report.show(attestation, report_promotion.print_attestation, as_json=as_json)


@attest.command("scan", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@click.option("--name", required=True, help="The scanner's name.")
@verdict_option
@note_option
@place_options
@json_option
def attest_scan(
    ref: str, *, name: str, passed: bool, note: str, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Record what a scanner found; the newest result of each scanner counts."""
    with open_place(home, registry) as reg:
        attestation = reg.attest_scan(ref, name, passed=passed, principal=Principal.operator(), note=note)
    report.show(attestation, report_promotion.print_attestation, as_json=as_json)


@attest.command("ls", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@place_options
@json_option
def list_attestations(ref: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """List what is attested of a version, oldest first."""
    with open_place(home, registry) as reg:
        attestations = reg.attestations(ref, Principal.operator())
    report.show(attestations, report_promotion.print_attestations, as_json=as_json)


def _text_of(file: Path) -> str:
    try:
        with click.open_file(str(file), encoding="utf-8") as stream:
            text: str = stream.read(POLICY_BYTES_LIMIT + 1)
            return text
    except UnicodeDecodeError as error:
        raise InvalidValueError("policy", "it is not UTF-8 text") from error


def _figure_of(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, float(value)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE, such as accuracy=0.93.") from error
