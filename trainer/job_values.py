"""The plain values that a job is made from: nested dictionaries, before they are validated.

It does: refuse unknown keys with the closest known one, anchor paths, lay flags over a file, and turn a validation
error into one that names the key. It does not: know any setting; `trainer.job` says which keys there are.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from trainer.errors import JobError

# What other trainers call a setting: the closest key by spelling would be the wrong one.
FAMILIAR_NAMES = {
    "batch_size": "optimization.batch_rows",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lr": "optimization.learning_rate",
    "lr_scheduler_type": "optimization.schedule",
    "model": "base.source",
    "num_train_epochs": "optimization.epochs",
    "output_dir": "output.run",
    "rank": "adapter.r",
    "use_rslora": "adapter.rslora",
    "warmup_steps": "optimization.warmup_ratio",
}
_REASON_AND_PATH = re.compile(r"^(?P<reason>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)


def refuse_unknown_keys(values: Mapping[str, Any], known: Mapping[str, Iterable[str] | None], *, origin: str) -> None:
    """Raise JobError at the first key that is not in `known`: section -> its keys, or plain key -> None."""
    everything = [f"{section}.{key}" for section, keys in known.items() for key in keys or ()]
    for name, value in values.items():
        if name not in known:
            raise _unknown(name, [*known, *everything], origin)
        keys = known[name]
        if keys is None:
            continue
        if not isinstance(value, Mapping):
            raise JobError(f"must be a section with keys, not {value!r}", key=name, origin=origin)
        for key in value:
            if key not in set(keys):
                raise _unknown(f"{name}.{key}", everything, origin)


def refuse_non_finite(values: Mapping[str, Any], *, origin: str) -> None:
    """Raise JobError at a number that is NaN or infinite: TOML can write them, and no range excludes NaN."""
    for section, keys in values.items():
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            if isinstance(value, float) and not math.isfinite(value):
                raise JobError(f"{value} is not allowed: it must be finite", key=f"{section}.{key}", origin=origin)


def anchor_paths(values: dict[str, Any], keys: Iterable[str], sources: Iterable[str], folder: Path) -> None:
    """Make the relative paths among `values` relative to `folder`, in place. `~` is the user's home.

    Of `sources`, which are one or a list of texts, those that begin with a dot are such paths; others are names.
    """
    for dotted in keys:
        section, _, key = dotted.partition(".")
        value = values.get(section, {}).get(key)
        if isinstance(value, str):
            values[section][key] = str(folder / Path(value).expanduser())
    for dotted in sources:
        section, _, key = dotted.partition(".")
        value = values.get(section, {}).get(key)
        if isinstance(value, list):
            values[section][key] = [_anchored(each, folder) for each in value]
        elif value is not None:
            values[section][key] = _anchored(value, folder)


def _anchored(source: Any, folder: Path) -> Any:
    return str((folder / source).absolute()) if isinstance(source, str) and source.startswith(".") else source


def overlaid(
    values: Mapping[str, Any], overrides: Mapping[str, Any], exclusive: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """`values` with `overrides` on top, key by key. An override of one of an exclusive pair displaces the other."""
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for name, value in overrides.items():
        if not isinstance(value, Mapping):
            result[name] = value
            continue
        section = result.setdefault(name, {})
        for pair in exclusive:
            for chosen, displaced in (pair, pair[::-1]):
                if chosen in value:
                    section.pop(displaced, None)
        section.update(value)
    return result


def refuse_both(section: object, first: str, second: str) -> None:
    """Raise ValueError where both attributes of `section` are set: they answer the same question."""
    if getattr(section, first) is not None and getattr(section, second) is not None:
        raise ValueError(f"{first} and {second} exclude each other; give one of them")


def explained(
    message: str, *, values: Mapping[str, Any], structs: Mapping[str, type[msgspec.Struct]], origin: str
) -> JobError:
    """The error for one of msgspec's messages: ``Expected ... - at `$.section.key` ``."""
    match = _REASON_AND_PATH.match(message)
    reason, path = (match["reason"], match["path"] or "") if match else (message, "")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", reason)
    if missing:
        key = f"{path}.{missing[1]}" if path else missing[1]
        return JobError("is required and was not given", key=key, origin=origin)
    given = _lookup(values, path)
    if given is None or isinstance(given, Mapping):
        return JobError(reason, key=path or None, origin=origin)
    section, _, key = path.partition(".")
    if reason.startswith("Invalid enum value") and section in structs:
        choices = [f'"{choice}"' for choice in _choices(structs[section], key)]
        return JobError(f"{given!r} is not allowed: it must be one of {', '.join(choices)}", key=path, origin=origin)
    return JobError(f"{given!r} is not allowed: {reason[0].lower()}{reason[1:]}", key=path, origin=origin)


def _choices(struct: type[msgspec.Struct], key: str) -> list[str]:
    schema = msgspec.json.schema(struct, schema_hook=lambda _: {})
    text = str(schema["$defs"][struct.__name__]["properties"][key])
    return re.findall(r"'([^']+)'", text[text.index("'enum': [") :].partition("]")[0])[1:]


def _unknown(name: str, known: list[str], origin: str) -> JobError:
    leaf = name.rpartition(".")[2]
    if leaf in FAMILIAR_NAMES:
        return JobError("is no setting of a job.", key=name, origin=origin, suggestion=FAMILIAR_NAMES[leaf])
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        leaves = {key.rpartition(".")[2]: key for key in known}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    return JobError("is no setting of a job.", key=name, origin=origin, suggestion=close[0] if close else None)


def _lookup(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in re.sub(r"\[.*\]", "", path).split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
