"""adapter_config.json of PEFT, judged: either it means what the engine serves, or it is refused with the reason.

Every field that changes the mathematics is checked. A field that is not known here is accepted only where it is
switched off (null, false, empty), because a newer PEFT may have given it a meaning that the server does not have.
Checked against peft 0.21.2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from registry.errors import RejectedAdapterError
from registry.json_document import parse_json_object
from registry.name_pattern import PatternTable, is_module_name
from registry.reasons import RejectReason

CONFIG_FILE = "adapter_config.json"
RANK_LIMIT = 1024
ALPHA_LIMIT = 1_000_000.0
LIST_LIMIT = 20_000
PATTERNS_LIMIT = 20_000
HINT_CHARACTERS = 512

_HARMLESS_INITS = frozenset({"gaussian", "orthogonal", "eva"})
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_TRANSFORMERS_MODULE = re.compile(r"transformers(\.models\.[a-z0-9_]+\.modeling_[a-z0-9_]+)?", re.ASCII)
_AUTO_MAPPING_FIELDS = frozenset({"base_model_class", "parent_library", "unsloth_fixed"})

_JUDGED_FIELDS = frozenset(
    "peft_type task_type auto_mapping r lora_alpha use_rslora bias lora_bias rank_pattern alpha_pattern target_modules "
    "exclude_modules layers_to_transform init_lora_weights use_dora modules_to_save trainable_token_indices "
    "layer_replication".split()
)
_NEUTRAL_FIELDS = frozenset(
    "peft_version base_model_name_or_path revision inference_mode fan_in_fan_out lora_dropout layers_pattern "
    "megatron_core qalora_group_size loftq_config eva_config corda_config lora_ga_config runtime_config".split()
)
"""Fields without influence on a forward pass of plain LoRA, whatever they hold."""

_BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class AdapterConfig:
    """What the server needs of a LoRA config.

    `targets` is None where PEFT was given a pattern; `is_target_list_complete` is False where other fields narrow it.
    `base_name` and `base_revision` are what the trainer called its base: a hint, never trusted.
    """

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: PatternTable[int]
    alpha_pattern: PatternTable[float]
    targets: tuple[str, ...] | None
    excluded: tuple[str, ...]
    is_target_list_complete: bool
    base_name: str | None
    base_revision: str | None
    use_dora: bool = False
    saved_modules: tuple[str, ...] = ()
    trained_tokens: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def plain_scale(self) -> float:
        """The factor that `r` and `lora_alpha` alone would give."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """The ids whose rows were trained at this module; a list without a name is for the one that has them."""
        return next((ids for name, ids in self.trained_tokens.items() if module.endswith(name)), None)

    def rank_of(self, module: str) -> int:
        """The rank that PEFT would build for this module."""
        return self.rank_pattern.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor on B A x: alpha / r, or alpha / sqrt(r) with rsLoRA."""
        rank = self.rank_of(module)
        return self.alpha_pattern.get(module, self.alpha) / (math.sqrt(rank) if self.use_rslora else rank)


def parse_config(raw: bytes) -> AdapterConfig:
    """Judge the config on its own, without the base or the tensors. Raises RejectedAdapterError."""
    document = parse_json_object(raw, file=CONFIG_FILE)
    _check_method(document)
    if not _is_off(document.get("layer_replication")):
        shown = _shown(document["layer_replication"])
        _refuse(RejectReason.UNSUPPORTED_LAYER_REPLICATION, f"`layer_replication` is {shown}", "layer_replication")
    if document.get("bias", "none") not in _BIASES:
        _refuse(RejectReason.BAD_CONFIG, f"`bias` is {_shown(document['bias'])}, not {', '.join(_BIASES)}", "bias")
    _check_init(document.get("init_lora_weights", True))
    _check_auto_mapping(document.get("auto_mapping"))
    for field in sorted(document.keys() - _JUDGED_FIELDS - _NEUTRAL_FIELDS):
        if not _is_off(document[field]):
            _refuse(RejectReason.UNSUPPORTED_CONFIG, f"`{field}` is {_shown(document[field])}", field)
    use_rslora, use_dora, _ = (_switch(document, field) for field in ("use_rslora", "use_dora", "lora_bias"))
    targets, excluded = _name_list(document, "target_modules"), _name_list(document, "exclude_modules")
    return AdapterConfig(
        rank=_rank(document.get("r"), "r"),
        alpha=_alpha(document.get("lora_alpha"), "lora_alpha"),
        use_rslora=use_rslora,
        rank_pattern=PatternTable({key: _rank(v, key) for key, v in _pattern(document, "rank_pattern").items()}),
        alpha_pattern=PatternTable({key: _alpha(v, key) for key, v in _pattern(document, "alpha_pattern").items()}),
        targets=targets,
        excluded=excluded or (),
        is_target_list_complete=targets is not None
        and _is_off(document.get("layers_to_transform"))
        and (excluded is not None or _is_off(document.get("exclude_modules"))),
        base_name=_hint(document.get("base_model_name_or_path")),
        base_revision=_hint(document.get("revision")),
        use_dora=use_dora,
        saved_modules=_name_list(document, "modules_to_save") or (),
        trained_tokens=_trained_tokens(document.get("trainable_token_indices")),
    )


def _check_method(document: Mapping[str, Any]) -> None:
    if document.get("peft_type") != "LORA":
        shown = _shown(document.get("peft_type"))
        _refuse(RejectReason.UNSUPPORTED_METHOD, f"`peft_type` is {shown}", "peft_type")
    if document.get("task_type") not in (None, "CAUSAL_LM"):
        _refuse(RejectReason.UNSUPPORTED_TASK, f"`task_type` is {_shown(document['task_type'])}", "task_type")


def _check_init(init: Any) -> None:
    if isinstance(init, bool) or init is None:
        return
    if isinstance(init, str) and init.lower() in _HARMLESS_INITS:
        return
    changes_base = isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS)
    reason = RejectReason.BASE_CHANGING_INIT if changes_base else RejectReason.UNSUPPORTED_CONFIG
    _refuse(reason, f"`init_lora_weights` is {_shown(init)}", "init_lora_weights")


def _check_auto_mapping(mapping: Any) -> None:
    if mapping is None:
        return
    reason = RejectReason.FOREIGN_AUTO_MAPPING
    if not isinstance(mapping, dict) or mapping.keys() - _AUTO_MAPPING_FIELDS:
        _refuse(reason, f"`auto_mapping` is {_shown(mapping)}", "auto_mapping")
    library = mapping.get("parent_library")
    if library is not None and not (isinstance(library, str) and _TRANSFORMERS_MODULE.fullmatch(library)):
        _refuse(reason, f"`auto_mapping.parent_library` is {_shown(library)}", "auto_mapping.parent_library")


def _switch(document: Mapping[str, Any], field: str) -> bool:
    value = document.get(field, False)
    if not isinstance(value, bool):
        _refuse(RejectReason.BAD_CONFIG, f"`{field}` is {_shown(value)}, not true or false", field)
    return value


def _trained_tokens(given: Any) -> dict[str, tuple[int, ...]]:
    """Ids by the module that they are for; "" is any."""
    named = {"": given} if isinstance(given, list) else {} if given is None else given
    for ids in named.values() if isinstance(named, dict) else [None]:
        if not _are_token_ids(ids):
            detail = f"`trainable_token_indices` is {_shown(given)}, not lists of at most {LIST_LIMIT} token ids"
            _refuse(RejectReason.BAD_CONFIG, detail, "trainable_token_indices")
    return {name: tuple(ids) for name, ids in named.items()}


def _are_token_ids(ids: Any) -> bool:
    is_list = isinstance(ids, list) and 0 < len(ids) <= LIST_LIMIT
    return is_list and all(isinstance(token, int) and 0 <= token < 1 << 31 for token in ids)


def _rank(value: Any, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= RANK_LIMIT:
        _refuse(RejectReason.BAD_CONFIG, f"the rank `{field}` is {_shown(value)}, not 1 to {RANK_LIMIT}", field)
    return value


def _alpha(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= ALPHA_LIMIT:
        _refuse(RejectReason.BAD_CONFIG, f"the alpha `{field}` is {_shown(value)}, not 0 to {ALPHA_LIMIT:.0f}", field)
    return float(value)


def _pattern(document: Mapping[str, Any], field: str) -> dict[str, Any]:
    pattern = document.get(field)
    if pattern is None:
        return {}
    if not isinstance(pattern, dict) or len(pattern) > PATTERNS_LIMIT:
        _refuse(RejectReason.BAD_CONFIG, f"`{field}` is not an object of at most {PATTERNS_LIMIT} entries", field)
    for key in pattern:
        if not is_module_name(key):
            _refuse(RejectReason.UNSUPPORTED_PATTERN, f"`{field}` has the key {_shown(key)}", field)
    return pattern


def _name_list(document: Mapping[str, Any], field: str) -> tuple[str, ...] | None:
    """A list of module names; None where the field is absent or a pattern, which is never run."""
    names = document.get(field)
    if names is None or isinstance(names, str):
        return None
    if not isinstance(names, list) or len(names) > LIST_LIMIT or not all(isinstance(name, str) for name in names):
        _refuse(RejectReason.BAD_CONFIG, f"`{field}` is not a list of at most {LIST_LIMIT} names", field)
    return tuple(names)


def _hint(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= HINT_CHARACTERS else None


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _refuse(reason: RejectReason, detail: str, field: str) -> NoReturn:
    raise RejectedAdapterError(reason, detail, file=CONFIG_FILE, field=field)
