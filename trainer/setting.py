"""One setting of a job, seen from outside: its key, its flag, what it allows and what it is for.

It does: derive the flat list of settings from the structs in `trainer.job`, for the command's flags and the reference
in docs/training.md. It does not: hold values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.inspect import (
    BoolType,
    CustomType,
    Field,
    FloatType,
    IntType,
    LiteralType,
    Metadata,
    NoneType,
    StrType,
    StructType,
    Type,
    UnionType,
    VarTupleType,
    type_info,
)

from trainer.job import Job
from trainer.job_sections import SECTIONS

Kind = Literal["text", "path", "integer", "number", "switch", "choice", "names", "list"]
RENAMED_FLAGS = {"base.source": "--base"}


@dataclass(frozen=True)
class Setting:
    """A setting. `section` is None for a top-level key; `choices` is empty unless the kind is "choice"."""

    section: str | None
    key: str
    kind: Kind
    default: Any
    required: bool
    choices: tuple[str, ...]
    allowed: str
    description: str

    @property
    def dotted(self) -> str:
        """`section.key`, as errors and the documentation name it."""
        return f"{self.section}.{self.key}" if self.section else self.key

    @property
    def flag(self) -> str:
        """The command's flag, without the negative form that a switch has besides."""
        return RENAMED_FLAGS.get(self.dotted, "--" + self.key.replace("_", "-"))


def settings() -> list[Setting]:
    """Every setting of a job, in the order of a job file."""
    own = [field for field in _fields(Job) if field.name not in SECTIONS]
    found = [_setting(None, field) for field in own]
    for section, struct in SECTIONS.items():
        found += [_setting(section, field) for field in _fields(struct)]
    return found


def reference_table(section: str | None) -> str:
    """The Markdown table of one section, for docs/training.md."""
    lines = ["| key | flag | allowed | default | meaning |", "|---|---|---|---|---|"]
    for setting in settings():
        if setting.section == section:
            default = "required" if setting.required else _shown(setting.default)
            lines.append(
                f"| `{setting.key}` | `{setting.flag}` | {setting.allowed} | {default} | {setting.description} |"
            )
    return "\n".join(lines)


def _fields(struct: type[msgspec.Struct]) -> tuple[Field, ...]:
    info = type_info(struct)
    assert isinstance(info, StructType)
    return info.fields


def _setting(section: str | None, field: Field) -> Setting:
    assert isinstance(field.type, Metadata), f"{field.name} has no description"
    description = (field.type.extra_json_schema or {})["description"]
    inner = _without_none(field.type.type)
    kind, choices, allowed = _kind(inner)
    default = None if field.default is msgspec.NODEFAULT else field.default
    return Setting(section, field.name, kind, default, field.required, choices, allowed, description)


def _without_none(kind: Type) -> Type:
    if isinstance(kind, UnionType):
        rest = [each for each in kind.types if not isinstance(each, NoneType)]
        return rest[0] if len(rest) == 1 else UnionType(tuple(rest))
    return kind


def _kind(kind: Type) -> tuple[Kind, tuple[str, ...], str]:
    match kind:
        case BoolType():
            return "switch", (), "`true`, `false`"
        case IntType():
            return "integer", (), f"integer{_range(kind)}"
        case FloatType():
            return "number", (), f"number{_range(kind)}"
        case LiteralType(values):
            names = tuple(str(value) for value in values)
            return "choice", names, ", ".join(f"`{name}`" for name in names)
        case UnionType(types) if any(isinstance(each, VarTupleType) for each in types):
            return "names", (), "`all-linear` or a list of names"
        case VarTupleType():
            return "list", (), "a list of texts"
        case CustomType(cls) if cls is Path:
            return "path", (), "path"
        case StrType():
            return "text", (), "text"
    raise AssertionError(f"no flag is known for a setting of type {kind}")


def _range(kind: IntType | FloatType) -> str:
    if kind.ge is not None:
        low = f"{kind.ge:g}"
    elif kind.gt is not None:
        low = f"over {kind.gt:g}"
    else:
        return ""
    # The shortest form: Python shares equal annotations, so whether a bound reads 1 or 1.0 depends on who came first.
    high = f"{kind.le:.16g}" if kind.le is not None else f"under {kind.lt:.16g}"
    return f", {low} to {high}"


def _shown(default: Any) -> str:
    if default is None or default in ("", ()):
        return "unset"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`"
