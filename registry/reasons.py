"""Why an adapter folder is refused: one stable code per reason, with its meaning and what to do next.

The codes are part of the public surface: programs match on them, and `docs/registry.md` lists them (a test compares).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class RejectReason(StrEnum):
    """Stable codes of refusal."""

    NOT_A_FOLDER = "not-a-folder"
    SUBFOLDER = "subfolder"
    NOT_A_PLAIN_FILE = "not-a-plain-file"
    FILE_NOT_ALLOWED = "file-not-allowed"
    MISSING_FILE = "missing-file"
    FILE_TOO_LARGE = "file-too-large"
    CHANGED_WHILE_READ = "changed-while-read"
    BAD_JSON = "bad-json"
    BAD_CONFIG = "bad-config"
    UNSUPPORTED_METHOD = "unsupported-method"
    UNSUPPORTED_TASK = "unsupported-task"
    UNSUPPORTED_CONFIG = "unsupported-config"
    UNSUPPORTED_MODULES_TO_SAVE = "unsupported-modules-to-save"
    UNSUPPORTED_TRAINABLE_TOKENS = "unsupported-trainable-tokens"
    UNSUPPORTED_LAYER_REPLICATION = "unsupported-layer-replication"
    UNSUPPORTED_PATTERN = "unsupported-pattern"
    BASE_CHANGING_INIT = "base-changing-init"
    FOREIGN_AUTO_MAPPING = "foreign-auto-mapping"
    BAD_SAFETENSORS = "bad-safetensors"
    HEADER_TOO_LARGE = "header-too-large"
    UNSUPPORTED_DTYPE = "unsupported-dtype"
    NO_TENSORS = "no-tensors"
    WRONG_KEY_PREFIX = "wrong-key-prefix"
    UNEXPECTED_TENSOR = "unexpected-tensor"
    INCOMPLETE_PAIR = "incomplete-pair"
    RANK_MISMATCH = "rank-mismatch"
    TARGETS_MISMATCH = "targets-mismatch"
    UNKNOWN_MODULE = "unknown-module"
    SHAPE_MISMATCH = "shape-mismatch"
    NOT_FINITE = "not-finite"
    BAD_MANIFEST = "bad-manifest"
    BAD_MIXTURE = "bad-mixture"
    BAD_GATE = "bad-gate"
    UNKNOWN_EXPERT = "unknown-expert"
    UNSUPPORTED_EXPERT = "unsupported-expert"
    BASE_UNKNOWN = "base-unknown"
    BASE_AMBIGUOUS = "base-ambiguous"
    BASE_UNVERIFIED = "base-unverified"
    BASE_MISMATCH = "base-mismatch"


@dataclass(frozen=True)
class Advice:
    """What a refusal means, and the sentence that tells the caller what to do next."""

    meaning: str
    next_step: str


_SAVE_AGAIN = "Save it again with `model.save_pretrained(DIR)` of PEFT, and publish that folder."
_SERVED = (
    "This release serves LoRA of any rank with rsLoRA, patterns, DoRA, biases, embeddings, modules_to_save and "
    "trained tokens"
)

ADVICE: Mapping[RejectReason, Advice] = MappingProxyType(
    {
        RejectReason.NOT_A_FOLDER: Advice(
            "The path is not a folder that can be read.", "Give the folder that holds adapter_config.json."
        ),
        RejectReason.SUBFOLDER: Advice(
            "There is a folder inside the adapter folder.",
            "Publish the folder that directly holds adapter_config.json: PEFT saves an adapter that is not named "
            "'default' one level deeper.",
        ),
        RejectReason.NOT_A_PLAIN_FILE: Advice(
            "An entry is a symbolic link, a device, a socket or a pipe.",
            "Replace it by a plain file: copy the adapter with `cp -rL`.",
        ),
        RejectReason.FILE_NOT_ALLOWED: Advice(
            "A file is not on the list: adapter_config.json, adapter_model.safetensors, loraplex.json, *.md; of a "
            "mixture, loraplex_mixture.json and gate.safetensors in place of the first two. Pickles, code, tokenizers "
            "and templates never are.",
            "Remove it from the folder; weights must be adapter_model.safetensors, and the tokenizer and chat template "
            "are the base's.",
        ),
        RejectReason.MISSING_FILE: Advice(
            "adapter_config.json or adapter_model.safetensors is not there; or of a mixture, loraplex_mixture.json or "
            "gate.safetensors.",
            _SAVE_AGAIN,
        ),
        RejectReason.FILE_TOO_LARGE: Advice(
            "A file is larger than its limit, or there are too many files.",
            "Check that this is a LoRA adapter and not a full model.",
        ),
        RejectReason.CHANGED_WHILE_READ: Advice(
            "A file changed or vanished while it was copied.", "Wait until the writer has finished, and publish again."
        ),
        RejectReason.BAD_JSON: Advice(
            "A JSON file is cut short, not UTF-8, nested too deeply, or has a key twice.", _SAVE_AGAIN
        ),
        RejectReason.BAD_CONFIG: Advice(
            "A field of adapter_config.json is missing, of the wrong type or out of its range.", _SAVE_AGAIN
        ),
        RejectReason.UNSUPPORTED_METHOD: Advice(
            "`peft_type` is not LORA.", f"{_SERVED}: train with LoRA or convert the adapter to it."
        ),
        RejectReason.UNSUPPORTED_TASK: Advice(
            "`task_type` is not CAUSAL_LM.", "Only adapters of causal language models are served: train for CAUSAL_LM."
        ),
        RejectReason.UNSUPPORTED_CONFIG: Advice(
            "A field asks for something that the server would not do (a variant of LoRA, or an unknown field).",
            f"{_SERVED}: train again without this field.",
        ),
        RejectReason.UNSUPPORTED_MODULES_TO_SAVE: Advice(
            "A linear layer has LoRA over a weight of its own, which is not the base's.",
            "Merge the LoRA of that layer into its weight before you save, or name the layer in modules_to_save only.",
        ),
        RejectReason.UNSUPPORTED_TRAINABLE_TOKENS: Advice(
            "Trained token rows do not match trainable_token_indices, or leave a gap after the base's vocabulary.",
            "Add tokens without a gap (`resize_token_embeddings`), and save the adapter again with PEFT.",
        ),
        RejectReason.UNSUPPORTED_LAYER_REPLICATION: Advice(
            "The adapter is for a model with repeated layers.", f"{_SERVED}: train again without layer_replication."
        ),
        RejectReason.UNSUPPORTED_PATTERN: Advice(
            "A key of rank_pattern or alpha_pattern is a regular expression; these are never run.",
            "Write module names or their endings instead, such as 'layers.0.self_attn.q_proj' or 'q_proj'.",
        ),
        RejectReason.BASE_CHANGING_INIT: Advice(
            "The initialization changed the base's own weights (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA).",
            "Convert it on saving: `save_pretrained(DIR, path_initial_model_for_weight_conversion=INITIAL)`.",
        ),
        RejectReason.FOREIGN_AUTO_MAPPING: Advice(
            "`auto_mapping` names a library to import that is not transformers.",
            'Set "auto_mapping" to null in adapter_config.json.',
        ),
        RejectReason.BAD_SAFETENSORS: Advice(
            "The safetensors file is cut short, or its header does not describe its bytes.", _SAVE_AGAIN
        ),
        RejectReason.HEADER_TOO_LARGE: Advice(
            "The safetensors header is larger than 1 MB.", "Check that this is a LoRA adapter and not a full model."
        ),
        RejectReason.UNSUPPORTED_DTYPE: Advice(
            "A tensor is not F32, F16 or BF16.",
            "Cast the adapter's tensors to float32, float16 or bfloat16 and save again.",
        ),
        RejectReason.NO_TENSORS: Advice(
            "Nothing would be attached: the file has no LoRA tensors.",
            "Check that the adapter was trained and saved: an empty one would be served as the plain base.",
        ),
        RejectReason.WRONG_KEY_PREFIX: Advice(
            "Tensor names do not begin with `base_model.model.`; other servers load such a file without any effect.",
            _SAVE_AGAIN,
        ),
        RejectReason.UNEXPECTED_TENSOR: Advice(
            "A tensor is none that PEFT saves of a LoRA adapter, or is there twice.",
            f"{_SERVED}: remove the tensor or train without it.",
        ),
        RejectReason.INCOMPLETE_PAIR: Advice(
            "A module has one half of its LoRA factors, or a magnitude (DoRA) without factors, or the reverse.",
            _SAVE_AGAIN,
        ),
        RejectReason.RANK_MISMATCH: Advice(
            "The shapes say another rank than `r` and `rank_pattern`, so the scale would be wrong.",
            "Correct r or rank_pattern in adapter_config.json, or save the adapter again.",
        ),
        RejectReason.TARGETS_MISMATCH: Advice(
            "`target_modules` and the tensors name different modules, so PEFT would load what is not served.",
            "Correct target_modules in adapter_config.json, or save the adapter again.",
        ),
        RejectReason.UNKNOWN_MODULE: Advice(
            "A tensor is for a module that the base does not have, or of a kind that this module cannot have.",
            "Check that the adapter belongs to this base: `loraplex publish --base-fingerprint` names another one.",
        ),
        RejectReason.SHAPE_MISMATCH: Advice(
            "A tensor's shape does not fit the base's layer.",
            "Check that the adapter belongs to this base: `loraplex publish --base-fingerprint` names another one.",
        ),
        RejectReason.NOT_FINITE: Advice(
            "A tensor holds NaN or infinity.",
            "Training diverged: lower the learning rate, or publish an earlier checkpoint.",
        ),
        RejectReason.BAD_MANIFEST: Advice(
            "loraplex.json is not a manifest.",
            "Publish the folder as the trainer exported it, or remove loraplex.json and name the base with "
            "--base-fingerprint.",
        ),
        RejectReason.BAD_MIXTURE: Advice(
            "loraplex_mixture.json is not the description of a mixture.",
            "Publish the folder as the trainer exported it.",
        ),
        RejectReason.BAD_GATE: Advice(
            "gate.safetensors does not hold the gate of these experts on this base: gate.weight [experts, hidden size] "
            "and gate.bias [experts], float32.",
            "Publish the folder as the trainer exported it, for the base that it was trained on.",
        ),
        RejectReason.UNKNOWN_EXPERT: Advice(
            "A mixture lists an expert that is no version of its own tenant, or one that the publisher may not read.",
            "Publish the expert's files in the same tenant first: the same files have the same digest.",
        ),
        RejectReason.UNSUPPORTED_EXPERT: Advice(
            "An expert is a mixture itself, stands on another base, or is not plain LoRA.",
            "Use plain LoRA adapters that were trained on the mixture's base.",
        ),
        RejectReason.BASE_UNKNOWN: Advice(
            "There is no manifest, and the shapes fit no registered base.",
            "Make its base known with `loraplex base register SOURCE`, or name it with --base-fingerprint FINGERPRINT.",
        ),
        RejectReason.BASE_AMBIGUOUS: Advice(
            "There is no manifest, and several registered bases fit.",
            "Name the base that it was trained on with --base-fingerprint FINGERPRINT, or in adapter_config.json as "
            "base_model_name_or_path.",
        ),
        RejectReason.BASE_UNVERIFIED: Advice(
            "There is no manifest, and this tenant takes only adapters that record their base.",
            "Publish the folder as the trainer exported it, with its loraplex.json.",
        ),
        RejectReason.BASE_MISMATCH: Advice(
            "The adapter was trained on another base than the one registered or named.",
            "Train it again on this base, or make its own known with `loraplex base register SOURCE`.",
        ),
    }
)
