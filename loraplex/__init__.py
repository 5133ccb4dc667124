"""The face of Loraplex: the `loraplex` command, its settings, the doctor and the demo."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("loraplex")
