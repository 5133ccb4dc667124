"""The commands that decide what an alias may point at: policy, approve, attest."""

from __future__ import annotations

from pathlib import Path

import click

from registry.cli import report, report_promotion
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_alias
from registry.cli.options import (
    HomePath,
    RegistryCommand,
    RegistryGroup,
    adapter_argument,
    alias_option,
    version_argument,
)
from registry.errors import InvalidValueError
from registry.policies import POLICY_BYTES_LIMIT, read_policy_text
from registry.principal import OPERATOR

note_option = click.option("--note", default="", help="Kept with the attestation.")
verdict_option = click.option("--passed/--failed", "passed", required=True, help="What came out.")


@click.group(cls=RegistryGroup)
def policy() -> None:
    """Set, show and try what a version must show before an alias may point at it."""


@policy.command("set", cls=RegistryCommand)
@adapter_argument
@click.argument("file", type=HomePath(exists=True, dir_okay=False, allow_dash=True))
@alias_option
@registry_call
def set_policy(call: RegistryCall, adapter: str, file: Path, *, alias: str) -> None:
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
    with call.open() as reg:
        record = reg.set_policy(adapter, alias, document, principal=OPERATOR)
    call.show(record, report_promotion.print_policy)


@policy.command("show", cls=RegistryCommand)
@adapter_argument
@click.option("--alias", default=None, metavar="ALIAS", shell_complete=complete_alias, help="Only this alias's.")
@registry_call
def show_policy(call: RegistryCall, adapter: str, *, alias: str | None) -> None:
    """Show the policies of an adapter's aliases."""
    with call.open() as reg:
        records = reg.policies(adapter, OPERATOR) if alias is None else [reg.policy(adapter, alias, OPERATOR)]
    call.show(records, report_promotion.print_policies)


@policy.command("rm", cls=RegistryCommand)
@adapter_argument
@alias_option
@registry_call
def remove_policy(call: RegistryCall, adapter: str, *, alias: str) -> None:
    """Take the policy of ALIAS away: every version may then be promoted to it."""
    with call.open() as reg:
        reg.remove_policy(adapter, alias, principal=OPERATOR)
    call.say({"adapter": adapter, "alias": alias, "is_removed": True}, f"{adapter}@{alias} has no policy any more")


@policy.command("check", cls=RegistryCommand)
@version_argument
@alias_option
@registry_call
def check_policy(call: RegistryCall, ref: str, *, alias: str) -> None:
    """Judge a version by the policy of ALIAS without moving it; exit code 1 where it does not pass."""
    with call.open() as reg:
        verdict = reg.check_gate(ref, alias, OPERATOR)
    if call.as_json:
        report.print_json(verdict)
    else:
        report_promotion.print_gate(verdict, alias)
    if verdict is not None and not verdict.passed:
        raise SystemExit(1)


@click.command(cls=RegistryCommand)
@version_argument
@alias_option
@note_option
@registry_call
def approve(call: RegistryCall, ref: str, *, alias: str, note: str) -> None:
    """Approve a version for ALIAS. It is no promotion: a policy counts approvals."""
    with call.open() as reg:
        attestation = reg.approve(ref, alias, principal=OPERATOR, note=note)
    call.show(attestation, report_promotion.print_attestation)


@click.group(cls=RegistryGroup)
def attest() -> None:
    """Record what was found out about a version: evaluations, probe runs, scans. Nothing of it is ever changed."""


@attest.command("evaluation", cls=RegistryCommand)
@version_argument
@click.option("--name", required=True, help="The evaluation's name, such as golden-set.")
@click.option("--metric", "metrics", multiple=True, required=True, metavar="NAME=VALUE", help="A figure; repeat it.")
@click.option("--passed/--failed", "passed", default=None, help="What came out, where it is for or against.")
@note_option
@registry_call
def attest_evaluation(
    call: RegistryCall, ref: str, *, name: str, metrics: tuple[str, ...], passed: bool | None, note: str
) -> None:
    """Record figures that were measured; the newest of a name counts."""
    figures = dict(map(_figure_of, metrics))
    with call.open() as reg:
        attestation = reg.attest_evaluation(ref, name, figures, principal=OPERATOR, passed=passed, note=note)
    call.show(attestation, report_promotion.print_attestation)


@attest.command("probes", cls=RegistryCommand)
@version_argument
@click.option("--name", default="probes", show_default=True, help="Who or what ran them.")
@verdict_option
@note_option
@registry_call
def attest_probes(call: RegistryCall, ref: str, *, name: str, passed: bool, note: str) -> None:
    """Record that the manifest's probes were run."""
    with call.open() as reg:
        attestation = reg.attest_probes(ref, passed=passed, principal=OPERATOR, name=name, note=note)
    call.show(attestation, report_promotion.print_attestation)


@attest.command("scan", cls=RegistryCommand)
@version_argument
@click.option("--name", required=True, help="The scanner's name.")
@verdict_option
@note_option
@registry_call
def attest_scan(call: RegistryCall, ref: str, *, name: str, passed: bool, note: str) -> None:
    """Record what a scanner found; the newest result of each scanner counts."""
    with call.open() as reg:
        attestation = reg.attest_scan(ref, name, passed=passed, principal=OPERATOR, note=note)
    call.show(attestation, report_promotion.print_attestation)


@attest.command("ls", cls=RegistryCommand)
@version_argument
@registry_call
def list_attestations(call: RegistryCall, ref: str) -> None:
    """List what is attested of a version, oldest first."""
    with call.open() as reg:
        attestations = reg.attestations(ref, OPERATOR)
    call.show(attestations, report_promotion.print_attestations)


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
