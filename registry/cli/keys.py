"""The commands about signatures: key generate, add, ls, revoke; sign and verify.

Keys are made and used on the caller's machine. The registry gets public keys and signatures, never a private key.
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from registry.blobs import hash_file
from registry.cli import report, report_upkeep
from registry.cli.call import RegistryCall, registry_call
from registry.cli.completion import complete_tenant
from registry.cli.options import (
    HomePath,
    RegistryCommand,
    RegistryGroup,
    json_option,
    reference_argument,
    version_argument,
)
from registry.errors import InvalidValueError
from registry.model_signature import (
    ALGORITHMS,
    PrivateKey,
    algorithm_of,
    generate_key,
    id_of,
    pem_of,
    private_pem_of,
    read_private_key,
    read_public_key,
)
from registry.model_signature import sign as sign_files
from registry.model_signature import verify as verify_files
from registry.principal import OPERATOR
from registry.version import Version


@click.group(cls=RegistryGroup)
def key() -> None:
    """Make keys, and say whose signatures a tenant trusts."""


@key.command("generate", cls=RegistryCommand)
@click.argument("file", type=HomePath(dir_okay=False))
@click.option("--algorithm", type=click.Choice(ALGORITHMS), default="ed25519", show_default=True, help="Kind of key.")
@json_option
def generate(file: Path, *, algorithm: str, as_json: bool) -> None:
    """Make a private key in FILE, and its public key in FILE.pub. Nothing leaves this machine.

    OpenSSF's `model_signing` tool (1.1) verifies signatures of the ECDSA keys, not of Ed25519.
    """
    made = generate_key(algorithm)
    public_file = file.with_name(f"{file.name}.pub")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(private_pem_of(made))
        with public_file.open("x") as text:
            text.write(pem_of(made.public_key()))
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written ({error.strerror}).") from error
    facts = {"private_key": str(file), "public_key": str(public_file), "key_id": id_of(made.public_key())}
    if as_json:
        report.print_json(facts | {"algorithm": algorithm})
    else:
        click.echo(f"The private key is in {file}: keep it to yourself. The public one is in {public_file}.")
        click.echo(f"Next: loraplex key add {public_file} --tenant TENANT --label NAME")


@key.command("add", cls=RegistryCommand)
@click.argument("file", type=HomePath(exists=True, dir_okay=False))
@click.option("--tenant", required=True, shell_complete=complete_tenant, help="The tenant that trusts it.")
@click.option("--label", required=True, help="Whose key it is.")
@registry_call
def add(call: RegistryCall, file: Path, *, tenant: str, label: str) -> None:
    """Trust the public key in FILE: versions that it signs count as signed."""
    pem = file.read_text(errors="replace")
    with call.open() as reg:
        added = reg.add_key(tenant, pem, label=label)
    call.say(
        added, f"Tenant {added.tenant} trusts the {added.algorithm} key {added.label!r}", f"  key       {added.key_id}"
    )


@key.command("ls", cls=RegistryCommand)
@click.option("--tenant", required=True, shell_complete=complete_tenant, help="Whose keys.")
@registry_call
def list_keys(call: RegistryCall, *, tenant: str) -> None:
    """List the keys that a tenant trusts, and those that it trusted once."""
    with call.open() as reg:
        keys = reg.list_keys(tenant)
    call.show(keys, report_upkeep.print_keys)


@key.command("revoke", cls=RegistryCommand)
@click.argument("key_id", metavar="KEY")
@click.option("--tenant", required=True, shell_complete=complete_tenant, help="The tenant that trusts it no longer.")
@registry_call
def revoke(call: RegistryCall, key_id: str, *, tenant: str) -> None:
    """Trust KEY (its label, its id, or 8 digits of it) no longer: its signatures count for nothing, old ones too."""
    with call.open() as reg:
        revoked = reg.revoke_key(tenant, key_id)
    call.say(revoked, f"Key {revoked.label!r} of tenant {revoked.tenant} is revoked")


@click.command(cls=RegistryCommand)
@version_argument
@click.option("--key", "key_file", type=HomePath(exists=True, dir_okay=False), required=True, help="The private key.")
@click.option(
    "--folder",
    type=HomePath(exists=True, file_okay=False),
    default=None,
    help="What you mean to sign; the version must have exactly these files.",
)
@registry_call
def sign(call: RegistryCall, ref: str, *, key_file: Path, folder: Path | None) -> None:
    """Sign a version on this machine, and keep the signature with it. The private key does not leave this machine."""
    private = _read_key(key_file)
    with call.open() as reg:
        version = reg.resolve(ref, principal=OPERATOR)
        if folder is not None:
            _compare(folder, version)
        bundle = sign_files(version.files, version.adapter.rpartition("/")[2], private)
        numbered = f"{version.adapter}@{version.number}"
        signature = reg.attach_signature(numbered, bundle, principal=OPERATOR)
    call.say(signature, f"{numbered} is signed by {signature.label}", f"  digest    {version.digest}")


@click.command(cls=RegistryCommand)
@reference_argument
@click.option(
    "--key",
    "key_file",
    type=HomePath(exists=True, dir_okay=False),
    default=None,
    help="A public key of your own: only its signature counts, whatever the tenant trusts.",
)
@click.option(
    "--bundle", type=HomePath(dir_okay=False), default=None, help="Write the first valid signature to this file."
)
@registry_call
def verify(call: RegistryCall, ref: str, *, key_file: Path | None, bundle: Path | None) -> None:
    """Verify a version's signatures; exit code 1 where none is valid.

    With --bundle, `model_signing verify key FOLDER --signature FILE --public_key PEM` verifies a pulled folder.
    """
    with call.open() as reg:
        version = reg.resolve(ref, principal=OPERATOR)
        numbered = f"{version.adapter}@{version.number}"
        found = reg.signatures(numbered, OPERATOR)
    if key_file is None:
        valid = [signature for signature in found if signature.fault is None]
    else:
        public = read_public_key(key_file.read_text(errors="replace"))
        valid = [signature for signature in found if verify_files(signature.bundle, version.files, public) is None]
    if bundle is not None and valid:
        bundle.write_text(valid[0].bundle)
    if call.as_json:
        report.print_json({"version": numbered, "valid": [one.key_id for one in valid], "signatures": found})
    else:
        report_upkeep.print_signatures(version, found, valid)
    if not valid:
        raise SystemExit(1)


def _read_key(file: Path) -> PrivateKey:
    raw = file.read_bytes()
    try:
        private = read_private_key(raw)
    except TypeError:
        password = click.prompt(f"Password of {file}", hide_input=True, err=True)
        private = read_private_key(raw, password.encode())
    assert algorithm_of(private.public_key()) in ALGORITHMS
    return private


def _compare(folder: Path, version: Version) -> None:
    present = {path.name: hash_file(path) for path in folder.iterdir() if path.is_file()}
    if present != {file.path: file.sha256 for file in version.files}:
        raise InvalidValueError("folder", f"its files are not those of {version.adapter}@{version.number}")
