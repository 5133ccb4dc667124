"""Every error of the face. Each says what is wrong, where, and what to do next.

LoraplexError
├── SettingsError     a settings file that cannot be read, or a key in it that nothing honours
├── MissingExtraError a command whose optional dependencies are not installed
└── DemoError         a step of the demo that did not do what it shows
    ├── PortTakenError the port that the demo was given belongs to somebody else
    └── ServerError   the demo's server did not start, or ended early
"""

from __future__ import annotations

from pathlib import Path


class LoraplexError(Exception):
    """Root of the face's errors; its text is ready to be shown to the user."""


class SettingsError(LoraplexError):
    """A settings file that cannot be honoured. `key` is dotted (`serve.port`); None where the whole file is meant."""

    def __init__(self, file: Path, reason: str, *, key: str | None = None, suggestion: str | None = None):
        self.file, self.key, self.reason, self.suggestion = file, key, reason, suggestion
        where = f"{file}: {key}" if key else str(file)
        hint = f" Did you mean {suggestion!r}?" if suggestion else ""
        super().__init__(f"{where}: {reason}.{hint}")


class MissingExtraError(LoraplexError):
    """A command needs packages that a plain installation leaves out."""

    def __init__(self, command: str, *, package: str, extra: str):
        self.command, self.package, self.extra = command, package, extra
        super().__init__(
            f"`loraplex {command}` needs the package {package}, which is not installed. "
            f"Install it with: pip install 'loraplex[{extra}]'"
        )


class DemoError(LoraplexError):
    """A step of the demo did not do what it shows."""


class PortTakenError(DemoError):
    """Another program listens on the port that the demo was given."""

    def __init__(self, port: int):
        self.port = port
        super().__init__(f"port {port} is taken. Give another with --port, or none: then the demo takes a free one.")


class ServerError(DemoError):
    """The demo's server did not become ready, or ended early. `log` holds what it printed."""

    def __init__(self, reason: str, *, log: Path, last_lines: str = ""):
        self.reason, self.log = reason, log
        shown = f"\n{last_lines}" if last_lines else ""
        super().__init__(f"the server {reason}. Its log is {log}.{shown}")
