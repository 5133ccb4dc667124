"""`loraplex completion SHELL`: prints the script that makes a shell complete commands, options and adapters."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "loraplex"
VARIABLE = "_LORAPLEX_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    bash: put `eval "$(loraplex completion bash)"` into ~/.bashrc.
    zsh: put `eval "$(loraplex completion zsh)"` into ~/.zshrc.
    fish: put `loraplex completion fish | source` into ~/.config/fish/config.fish.
    """
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these three"
    click.echo(kind(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
