"""`loraplex config`: every setting of every command, its value now, and where the value comes from.

The values are those that click itself would use, so this list cannot disagree with what a command does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from loraplex.lazy_group import LazyGroup
from loraplex.origin import environment_name
from loraplex.settings import Settings

HIDDEN_VALUE = "********"


@dataclass(frozen=True)
class Setting:
    """One option of one command. `value` is JSON; `origin` is `default`, `file PATH` or `environment NAME`."""

    command: str
    option: str
    value: Any
    origin: str


@click.command()
@click.argument("command_name", metavar="[COMMAND]", required=False)
@click.option("--changed", is_flag=True, help="Only what a file or the environment has set.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def config(ctx: click.Context, command_name: str | None, *, changed: bool, as_json: bool) -> None:
    """Show each setting and where it comes from."""
    settings = list(effective_settings(ctx, only=command_name))
    if changed:
        settings = [setting for setting in settings if setting.origin != "default"]
    if as_json:
        click.echo(json.dumps([asdict(setting) for setting in settings], indent=2))
        return
    table = Table("setting", "value", "origin", box=None, pad_edge=False, header_style="bold")
    for setting in settings:
        value = "" if setting.value is None else json.dumps(setting.value, ensure_ascii=False)
        table.add_row(f"{setting.command} {setting.option}", value, setting.origin)
    Console().print(table)


def effective_settings(ctx: click.Context, only: str | None = None) -> Iterator[Setting]:
    """Every option of every command, or of one; raises click.UsageError where there is no such command."""
    root = ctx.find_root()
    group = root.command
    assert isinstance(group, LazyGroup)
    if only is not None and only not in group.lazy_commands:
        raise click.UsageError(f"there is no command {only!r}; the commands are {', '.join(group.lazy_commands)}", ctx)
    settings = root.obj
    assert isinstance(settings, Settings)
    for name in [only] if only else list(group.lazy_commands):
        command = group.lazy_commands[name].load()
        parent = click.Context(group, info_name=root.info_name, auto_envvar_prefix=root.auto_envvar_prefix)
        parent.default_map = {name: settings.default_map(name, command)} if settings.file else {}
        yield from _settings_of(command, name, parent, settings)


def _settings_of(command: click.Command, path: str, parent: click.Context, settings: Settings) -> Iterator[Setting]:
    ctx = click.Context(command, parent=parent, info_name=path.rpartition(" ")[2])
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _settings_of(child, f"{path} {name}", ctx, settings)
        return
    for param in command.params:
        if isinstance(param, click.Option) and param.expose_value:
            value, source = param.consume_value(ctx, {})
            yield Setting(path, param.opts[-1], _shown(param, value), _origin(param, source, ctx, settings))


def _shown(param: click.Option, value: Any) -> Any:
    if value is None or repr(value) == "Sentinel.UNSET":
        return None
    if param.hide_input:
        return HIDDEN_VALUE
    return value if isinstance(value, bool | int | float | str | list) else str(value)


def _origin(param: click.Option, source: ParameterSource, ctx: click.Context, settings: Settings) -> str:
    if source is ParameterSource.DEFAULT_MAP:
        return f"file {settings.file}"
    if source is ParameterSource.ENVIRONMENT:
        return f"environment {environment_name(param, ctx)}"
    return "default"
