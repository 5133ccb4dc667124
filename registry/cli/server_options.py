"""What the commands of both servers share: options, and what they write to stderr."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import click

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

open_metrics_option = click.option("--open-metrics", is_flag=True, help="Serve /metrics without a token.")


def number_option(
    flag: str, least: int, most: int | None = None, *, default: int | None = None, text: str
) -> Decorator:
    """A whole number within bounds, both included; a default is shown."""
    bounds = click.IntRange(least, most)
    return click.option(flag, type=bounds, default=default, show_default=default is not None, help=text)


def port_option(default: int) -> Decorator:
    """--port."""
    return number_option("--port", 0, 65535, default=default, text="Port; 0 is any free one.")


def grace_option(least_seconds: int, text: str) -> Decorator:
    """--grace, in seconds."""
    bounds = click.FloatRange(least_seconds, 3600)
    return click.option("--grace", type=bounds, default=30, show_default=True, help=text)


def log_level_option(text: str) -> Decorator:
    """--log-level, for `start_logging`."""
    levels = click.Choice(["debug", "info", "warning", "error"])
    return click.option("--log-level", type=levels, default="warning", show_default=True, help=text)


def start_logging(level: str) -> None:
    """Write what happens to stderr, from this level on."""
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of every opening
