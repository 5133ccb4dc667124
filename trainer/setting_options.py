"""The flags of `loraplex train`: one for each setting of a job.

It does: make click options from `trainer.setting`. It does not: check ranges; the job does, so that its errors name the
key and are the same for flags and files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from registry.cli.options import HomePath
from trainer.job_sections import ALL_LINEAR
from trainer.setting import Setting, settings


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the flag of every setting of a job."""
    for setting in reversed(settings()):
        command = _option(setting)(command)
    return command


def _option(setting: Setting) -> Callable[[Callable[..., None]], Callable[..., None]]:
    shown = "" if setting.default in (None, "", ()) else f"  [default: {_shown(setting.default)}]"
    text = setting.description.replace("`", "") + shown
    flag = f"{setting.flag}/--no-{setting.flag[2:]}" if setting.kind == "switch" else setting.flag
    return click.option(flag, parameter_of(setting), type=_click_type(setting), default=None, help=text)


def _click_type(setting: Setting) -> click.ParamType[Any] | None:
    match setting.kind:
        case "choice":
            return click.Choice(setting.choices)
        case "integer":
            return click.INT
        case "number":
            return click.FLOAT
        case "path":
            return HomePath()
        case "names":
            return ModuleNames()
        case "list":
            return Texts()
        case "switch":
            return click.BOOL
        case "text":
            return click.STRING


class ModuleNames(click.ParamType[str | list[str]]):
    """`all-linear`, or names with commas between them."""

    name = "NAME[,NAME...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | list[str]:
        """Split the text; a list from a settings file stays."""
        if isinstance(value, list):
            return value
        return ALL_LINEAR if value == ALL_LINEAR else str(value).split(",")


class Texts(click.ParamType[list[str]]):
    """Texts with commas between them."""

    name = "TEXT[,TEXT...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        """Split the text; a list from a settings file stays."""
        return value if isinstance(value, list) else str(value).split(",")


def parameter_of(setting: Setting) -> str:
    """The name under which click keeps a setting's value."""
    return "setting_" + setting.dotted.replace(".", "_")


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
