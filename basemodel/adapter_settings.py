"""What `adapter_config.json` says about each module: rank, scale, DoRA, trained tokens, and what was saved whole.

It does: read the file, and answer for a module's path as PEFT would.
It does not: know tensors or the base (`adapter_weights`), or judge what may be published (`registry.adapter_config`).
Source: PEFT 0.21 (`LoraConfig`, `get_pattern_key`).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from basemodel.errors import AdapterFormatError

CONFIG_FILE = "adapter_config.json"
PLAIN_PATTERN = re.compile(r"\^?[A-Za-z0-9_.-]+")
# What changes the mathematics in a way that is not known here; the registry refuses these at publish.
UNKNOWN_METHODS = (
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
)


@dataclass(frozen=True)
class AdapterSettings:
    """A PEFT LoRA config that was read. `folder` is named in errors."""

    folder: Path
    document: dict[str, Any]

    @property
    def use_dora(self) -> bool:
        """Whether each LoRA pair has a magnitude vector."""
        return bool(self.document.get("use_dora"))

    def rank_of(self, path: str) -> float:
        """The rank that PEFT builds for a module."""
        return self._setting(path, "r", "rank_pattern")

    def scale_of(self, path: str, rank: int) -> float:
        """The factor on B A: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        alpha = self._setting(path, "lora_alpha", "alpha_pattern")
        return alpha / math.sqrt(rank) if self.document.get("use_rslora") else alpha / rank

    def is_saved_whole(self, path: str) -> bool:
        """Whether `modules_to_save` names this module, or one that it is a part of. PEFT compares ends of paths."""
        names = self.document.get("modules_to_save") or []
        parts = path.split(".")
        parents = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(parent.endswith(name) for name in names for parent in parents)

    def tokens_of(self, path: str) -> list[int]:
        """The ids whose rows were trained at this module, in the order of the rows."""
        given = self.document.get("trainable_token_indices")
        if isinstance(given, dict):
            given = next((ids for name, ids in given.items() if path.endswith(name)), None)
        if not isinstance(given, list) or not all(isinstance(token, int) and token >= 0 for token in given):
            raise AdapterFormatError(
                self.folder, f"'{path}' has trained tokens, and trainable_token_indices does not list their ids"
            )
        return given

    def _setting(self, path: str, name: str, patterns: str) -> float:
        """A module's rank or alpha: the first pattern that is the end of its path, else the general one.

        PEFT reads patterns as regular expressions. Only those that are plain paths are accepted: an adapter is data,
        and its expressions are not run.
        """
        for pattern, value in (self.document.get(patterns) or {}).items():
            if PLAIN_PATTERN.fullmatch(pattern) is None:
                raise AdapterFormatError(self.folder, f"{patterns} has '{pattern}', which is not a plain module path")
            plain = pattern.removeprefix("^")
            if path == plain or (not pattern.startswith("^") and path.endswith("." + plain)):
                return self._number(value, patterns)
        return self._number(self.document.get(name), name)

    def _number(self, value: object, name: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value <= 0:
            raise AdapterFormatError(self.folder, f"{name} is {value!r}, not a positive number")
        return value


def read_settings(folder: Path) -> AdapterSettings:
    """Read the config of an adapter folder. Raises AdapterFormatError."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
    except OSError as error:
        raise unreadable(folder, CONFIG_FILE, error) from error
    except ValueError as error:
        raise AdapterFormatError(folder, f"{CONFIG_FILE} is not JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterFormatError(folder, f"{CONFIG_FILE} is not of peft_type LORA")
    for name in UNKNOWN_METHODS:
        if config.get(name):
            raise AdapterFormatError(folder, f"{CONFIG_FILE} sets {name}, which this release does not serve")
    return AdapterSettings(folder, config)


def unreadable(folder: Path, file: str, error: OSError) -> AdapterFormatError:
    """Says why, without the path that the operating system's own text carries: it reaches clients."""
    return AdapterFormatError(folder, f"{file} cannot be read ({error.strerror or type(error).__name__})")
