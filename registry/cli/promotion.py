"""The commands that decide what an alias may point at: policy, approve, attest, canary."""

from __future__ import annotations

from pathlib import Path

import click

from registry.aliases import Expected
from registry.canary import PERMILLE
from registry.cli import report, report_promotion
from registry.cli.options import (
    HomePath,
    Place,
    RegistryCommand,
    alias_option,
    evidence_option,
    expect_option,
    json_option,
    open_place,
    place_options,
)
from registry.errors import InvalidValueError
from registry.policies import POLICY_BYTES_LIMIT, read_policy_text
from registry.principal import Principal

note_option = click.option("--note", default="", help="Kept with the attestation.")
verdict_option = click.option("--passed/--failed", "passed", required=True, help="What came out.")
percent_option = click.option(
    "--percent",
    type=click.FloatRange(0.1, 100.0),
    required=True,
    help="Part of the alias's requests, in steps of 0.1.",
)


@click.group()
def policy() -> None:
    """Set, show and try what a version must show before an alias may point at it."""


@policy.command("set", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@click.argument("file", type=HomePath(exists=True, dir_okay=False, allow_dash=True))
@alias_option
@place_options
@json_option
def set_policy(adapter: str, file: Path, *, alias: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """Make FILE (TOML or JSON; - reads JSON from stdin) the policy of ALIAS, in the place of the one before."""
    document = read_policy_text(_text_of(file), is_toml=file.suffix == ".toml")
    with open_place(home, registry) as reg:
        record = reg.set_policy(adapter, alias, document, principal=Principal.operator())
    if as_json:
        report.print_json(record)
    else:
        report_promotion.print_policy(record)


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
    if as_json:
        report.print_json(records)
    else:
        report_promotion.print_policies(records)


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
    if as_json:
        report.print_json(attestation)
    else:
        report_promotion.print_attestation(attestation)


@click.group()
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
    if as_json:
        report.print_json(attestation)
    else:
        report_promotion.print_attestation(attestation)


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
    if as_json:
        report.print_json(attestation)
    else:
        report_promotion.print_attestation(attestation)


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
    if as_json:
        report.print_json(attestation)
    else:
        report_promotion.print_attestation(attestation)


@attest.command("ls", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@place_options
@json_option
def list_attestations(ref: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """List what is attested of a version, oldest first."""
    with open_place(home, registry) as reg:
        attestations = reg.attestations(ref, Principal.operator())
    if as_json:
        report.print_json(attestations)
    else:
        report_promotion.print_attestations(attestations)


@click.group()
def canary() -> None:
    """Give a part of an alias's requests to a second version."""


@canary.command("start", cls=RegistryCommand)
@click.argument("ref", metavar="TENANT/NAME@VERSION")
@alias_option
@percent_option
@place_options
@json_option
def start_canary(ref: str, *, alias: str, percent: float, home: Path, registry: Place | None, as_json: bool) -> None:
    """Give a part of ALIAS to this version, in the place of a canary that runs. It passes no gate yet."""
    with open_place(home, registry) as reg:
        started = reg.start_canary(ref, alias, permille=_permille(percent), principal=Principal.operator())
    if as_json:
        report.print_json(started)
    else:
        report_promotion.print_canary(started)


@canary.command("weight", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@percent_option
@place_options
@json_option
def change_canary(
    adapter: str, *, alias: str, percent: float, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Give the canary of ALIAS another part; who had it keeps it where the part grows."""
    with open_place(home, registry) as reg:
        changed = reg.change_canary(adapter, alias, permille=_permille(percent), principal=Principal.operator())
    if as_json:
        report.print_json(changed)
    else:
        report_promotion.print_canary(changed)


@canary.command("show", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@place_options
@json_option
def show_canaries(adapter: str, *, home: Path, registry: Place | None, as_json: bool) -> None:
    """Show the canaries that run on an adapter's aliases."""
    with open_place(home, registry) as reg:
        running = reg.canaries(adapter, Principal.operator())
    if as_json:
        report.print_json(running)
    else:
        report_promotion.print_canaries(running)


@canary.command("stop", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@place_options
@json_option
def stop_canary(adapter: str, *, alias: str, home: Path, registry: Place | None, as_json: bool) -> None:
    """End the canary of ALIAS: every request goes to the version that it points at."""
    with open_place(home, registry) as reg:
        ended = reg.stop_canary(adapter, alias, principal=Principal.operator())
    if as_json:
        report.print_json(ended)
    else:
        click.echo(f"{adapter}@{alias} has no canary any more (it was version {ended.number})")


@canary.command("promote", cls=RegistryCommand)
@click.argument("adapter", metavar="TENANT/NAME")
@alias_option
@expect_option
@evidence_option
@place_options
@json_option
def promote_canary(
    adapter: str, *, alias: str, expect: Expected, evidence: str, home: Path, registry: Place | None, as_json: bool
) -> None:
    """Point ALIAS at the canary's version, if the alias's policy lets it through; that ends the canary."""
    operator = Principal.operator()
    with open_place(home, registry) as reg:
        move = reg.promote_canary(adapter, alias, principal=operator, expected=expect, evidence=evidence)
    if as_json:
        report.print_json(move)
    else:
        report.print_move(move)


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


def _permille(percent: float) -> int:
    permille = round(percent * PERMILLE / 100)
    if abs(permille * 100 / PERMILLE - percent) > 1e-9:
        raise click.BadParameter(f"{percent} is not a multiple of 0.1.")
    return permille
