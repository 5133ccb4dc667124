"""Settings: what a command's options are when no flag gives them.

The order, weakest first: the option's default, the settings file, the environment (`LORAPLEX_<COMMAND>_<OPTION>`;
`LORAPLEX_HOME` for every command), the flag. click does the laying over; this module reads the file, refuses what
nothing would honour, and hands click its `default_map`.

The file is `--config FILE`, else `$LORAPLEX_CONFIG`, else `loraplex.toml` in the working directory if there is one:

    home = "/srv/loraplex"        # at the top: for every command that has the option

    [serve]                       # a table per command, an entry per option
    port = 8000

    [token.create]                # a command inside a group
    role = "reader"
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from loraplex.errors import SettingsError

PREFIX = "LORAPLEX"
DEFAULT_FILE = Path("loraplex.toml")
SHARED_KEYS = ("home", "registry")
FILE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """What the settings file says. `file` is None where there is none."""

    file: Path | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def default_map(self, name: str, command: click.Command) -> dict[str, Any]:
        """The values for one command, by the names of its parameters; for a group, by the names of its commands.

        Raises:
            SettingsError: the command's table holds a key that it has no option for.
        """
        return self._default_map(command, self.tables.get(name, {}), path=name)

    def _default_map(self, command: click.Command, table: Mapping[str, Any], path: str) -> dict[str, Any]:
        if isinstance(command, click.Group):
            self._refuse_unknown(table, known=command.commands, path=path, kind="command")
            return {
                name: self._default_map(child, self._table(table, name, path), path=f"{path}.{name}")
                for name, child in command.commands.items()
            }
        parameters = parameters_by_option(command)
        self._refuse_unknown(table, known=parameters, path=path, kind="option")
        given = {name: value for name, value in self.shared.items() if name in parameters} | dict(table)
        return {parameters[name]: value for name, value in given.items()}

    def _table(self, parent: Mapping[str, Any], name: str, path: str) -> Mapping[str, Any]:
        table = parent.get(name, {})
        if not isinstance(table, dict):
            raise SettingsError(self._named_file, "must be a table", key=f"{path}.{name}")
        return table

    def _refuse_unknown(self, table: Mapping[str, Any], known: Mapping[str, Any], path: str, kind: str) -> None:
        for name in table:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                reason = f"`loraplex {path.replace('.', ' ')}` has no such {kind}"
                raise SettingsError(
                    self._named_file, reason, key=f"{path}.{name}", suggestion=close[0] if close else None
                )

    @property
    def _named_file(self) -> Path:
        assert self.file is not None, "only a file can hold an unknown key"
        return self.file


def parameters_by_option(command: click.Command) -> dict[str, str]:
    """The command's long options without their dashes (`adapter-slots`), and the parameter that each one sets."""
    options = (param for param in command.params if isinstance(param, click.Option))
    return {flag[2:]: str(param.name) for param in options for flag in param.opts if flag.startswith("--")}


def name_variables(command: click.Command, path: str) -> None:
    """Give each option that has no variable the one of its flag, `LORAPLEX_<COMMAND>_<OPTION>`.

    click alone would make it from the parameter's name, which for some options is another word than the flag.
    """
    for _, option, own in _options(command, path):
        option.envvar = option.envvar or own


def variables_read(command: click.Command, path: str) -> set[str]:
    """The variables that give an option of this command, or of a command in this group, its value."""
    found: set[str] = set()
    for each, option, own in _options(command, path):
        found.update([*declared_variables(option), own, _variable(each, str(option.name))])
    return found


def declared_variables(param: click.Parameter) -> list[str]:
    """The variables that this parameter itself names."""
    return [param.envvar] if isinstance(param.envvar, str) else list(param.envvar or ())


def _options(command: click.Command, path: str) -> Iterator[tuple[str, click.Option, str]]:
    """Each option with the path of its command (`token create`) and the variable of its flag."""
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _options(child, f"{path} {name}")
    for param in command.params:
        flag = next((flag for flag in param.opts if flag.startswith("--")), None)
        if isinstance(param, click.Option) and flag is not None:
            yield path, param, _variable(path, flag[2:])


def _variable(path: str, option: str) -> str:
    return re.sub(r"\W", "_", f"{PREFIX} {path} {option}").upper()


def read_settings(file: Path | None, commands: tuple[str, ...]) -> Settings:
    """Read the settings file, or `loraplex.toml` in the working directory where `file` is None and there is one.

    Raises:
        SettingsError: the file is missing, unreadable, not TOML, or has an entry that is no command's.
    """
    if file is None:
        if not DEFAULT_FILE.is_file():
            return Settings()
        file = DEFAULT_FILE
    document = _read_toml(file)
    shared: dict[str, Any] = {}
    tables: dict[str, Mapping[str, Any]] = {}
    for name, value in document.items():
        if name in SHARED_KEYS and isinstance(value, str):
            shared[name] = value
        elif name in commands and isinstance(value, dict):
            tables[name] = value
        elif name in SHARED_KEYS or name in commands:
            raise SettingsError(file, "must be a path" if name in SHARED_KEYS else "must be a table", key=name)
        else:
            close = difflib.get_close_matches(name, (*SHARED_KEYS, *commands), n=1)
            reason = f"is neither a command nor one of {', '.join(SHARED_KEYS)}"
            raise SettingsError(file, reason, key=name, suggestion=close[0] if close else None)
    return Settings(file=file, shared=shared, tables=tables)


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > FILE_LIMIT_BYTES:
            raise SettingsError(file, f"is larger than {FILE_LIMIT_BYTES} bytes, so it is not a settings file")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(file, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(file, f"is not TOML: {error}") from error
