"""Where an option's value came from, in words: an environment variable, or the settings file.

It does: name the origin for `loraplex config`, and add it to click's error where the value is refused: whoever gave no
flag must learn which variable, or which file, to mend.
It does not: read values (click does).
"""

from __future__ import annotations

import os

import click
from click.core import ParameterSource

from loraplex.settings import Settings, declared_variables


def environment_name(param: click.Parameter, ctx: click.Context) -> str:
    """The variable that gives this option its value: one that it declares, else the one made from its command."""
    automatic = f"{ctx.auto_envvar_prefix}_{str(param.name).upper()}"
    return next((name for name in declared_variables(param) if os.environ.get(name)), automatic)


def add_origin(error: click.BadParameter) -> None:
    """Let the error say where the refused value came from, unless it was a flag."""
    ctx, param = error.ctx, error.param
    if ctx is None or param is None:
        return
    source = ctx.get_parameter_source(str(param.name))
    settings = ctx.find_root().obj
    if source is ParameterSource.ENVIRONMENT:
        origin = f"the environment variable {environment_name(param, ctx)}"
    elif source is ParameterSource.DEFAULT_MAP and isinstance(settings, Settings):
        origin = f"the settings file {settings.file}"
    else:
        return
    error.param_hint = f"{param.get_error_hint(ctx)} (from {origin})"
