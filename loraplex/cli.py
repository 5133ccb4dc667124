"""The `loraplex` command: it lists the commands, reads the settings, and imports the one command that is called.

`loraplex --help` answers at once: neither torch nor a database or web library is imported, which tests hold; nor does
the help of any command import torch, or that of a registry command a database.
"""

from __future__ import annotations

from pathlib import Path

import click

from loraplex import __version__
from loraplex.lazy_group import LazyCommand, LazyGroup
from loraplex.settings import PREFIX, read_settings

COMMANDS = {
    "train": LazyCommand("trainer.cli:train", "Train a LoRA or QLoRA adapter."),
    "publish": LazyCommand("registry.cli.adapters:publish", "Publish an adapter folder as a new version."),
    "visibility": LazyCommand("registry.cli.adapters:visibility", "Make an adapter private or public."),
    "ls": LazyCommand("registry.cli.adapters:ls", "List adapters, a tenant's, or the versions of one."),
    "show": LazyCommand("registry.cli.adapters:show", "Show a version: files, base, training, metrics."),
    "pull": LazyCommand("registry.cli.adapters:pull", "Copy a version out of the registry, each byte checked."),
    "promote": LazyCommand("registry.cli.adapters:promote", "Move an alias to a version."),
    "rollback": LazyCommand("registry.cli.adapters:rollback", "Move an alias back to where it was before."),
    "alias": LazyCommand("registry.cli.aliases:alias", "List aliases and their moves, and delete them."),
    "export": LazyCommand("registry.cli.archives:export", "Write versions into an archive or an OCI layout."),
    "import": LazyCommand("registry.cli.archives:import_", "Publish what export has written, judged again."),
    "mirror": LazyCommand("registry.cli.mirrors:mirror", "Pull adapters in from another Hub."),
    "events": LazyCommand("registry.cli.events:events", "Show publishes, promotions and other changes."),
    "webhook": LazyCommand("registry.cli.webhooks:webhook", "Tell other servers of what happens."),
    "policy": LazyCommand("registry.cli.promotion:policy", "Say what a version must show before an alias moves."),
    "approve": LazyCommand("registry.cli.promotion:approve", "Approve a version for an alias."),
    "attest": LazyCommand("registry.cli.promotion:attest", "Record evaluations, probe runs and scans of a version."),
    "canary": LazyCommand("registry.cli.canaries:canary", "Give a part of an alias's requests to a second version."),
    "lineage": LazyCommand("registry.cli.insight:lineage", "Show what a version came from and what came from it."),
    "card": LazyCommand("registry.cli.insight:card", "Print a version's model card."),
    "diff": LazyCommand("registry.cli.insight:diff", "Show how two versions differ."),
    "tenant": LazyCommand("registry.cli.tenants:tenant", "Create and list tenants, and set their quotas."),
    "token": LazyCommand("registry.cli.tenants:token", "Create, list, rotate and revoke access tokens."),
    "delete": LazyCommand("registry.cli.upkeep:delete", "Delete a version, or an adapter."),
    "move": LazyCommand("registry.cli.upkeep:move", "Rename an adapter."),
    "pin": LazyCommand("registry.cli.upkeep:pin", "Keep a version, whatever the retention rules say."),
    "unpin": LazyCommand("registry.cli.upkeep:unpin", "Keep a version no longer."),
    "pins": LazyCommand("registry.cli.upkeep:pins", "List pins, and what servers have loaded."),
    "retention": LazyCommand("registry.cli.upkeep:retention", "Show or set how long versions are kept."),
    "gc": LazyCommand("registry.cli.upkeep:gc", "Delete what nothing needs, and free its bytes."),
    "fsck": LazyCommand("registry.cli.upkeep:fsck", "Read every byte of the registry, and check its catalog."),
    "audit": LazyCommand("registry.cli.audit:audit", "Read and verify the audit log."),
    "key": LazyCommand("registry.cli.keys:key", "Make signing keys, and say whose a tenant trusts."),
    "sign": LazyCommand("registry.cli.keys:sign", "Sign a version on this machine."),
    "verify": LazyCommand("registry.cli.keys:verify", "Verify a version's signatures."),
    "registry": LazyCommand("registry.cli.registry:registry", "Run a registry of its own, and look after it."),
    "serve": LazyCommand("serving.cli:serve", "Serve the base and every published adapter over HTTP."),
    "base": LazyCommand("loraplex.base_cli:base", "Prepare and inspect quantized bases."),
    "demo": LazyCommand("loraplex.demo.cli:demo", "Train three adapters and serve them in one batch."),
    "doctor": LazyCommand("loraplex.doctor_cli:doctor", "Check this machine, and say how to mend what is wrong."),
    "config": LazyCommand("loraplex.config_cli:config", "Show each setting and where it comes from."),
    "completion": LazyCommand("loraplex.completion_cli:completion", "Print the completion script for a shell."),
    "version": LazyCommand("loraplex.version_cli:version", "Show the versions of loraplex and what it stands on."),
}


@click.group(
    cls=LazyGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": PREFIX},
)
@click.version_option(__version__, prog_name="loraplex", message="%(prog)s %(version)s")
@click.option(
    "--config",
    "config_file",
    envvar="LORAPLEX_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Settings file (TOML).  [default: ./loraplex.toml if there is one]",
)
@click.pass_context
def main(ctx: click.Context, config_file: Path | None) -> None:
    """One 4-bit base model, thousands of LoRA adapters, one server.

    Settings come from the settings file, then LORAPLEX_* variables, then flags; `loraplex config` shows each one.
    """
    settings = read_settings(config_file, commands=tuple(COMMANDS))
    ctx.obj = settings
    called = ctx.invoked_subcommand
    if settings.file and called in COMMANDS and called is not None:
        ctx.default_map = {called: settings.default_map(called, COMMANDS[called].load())}
