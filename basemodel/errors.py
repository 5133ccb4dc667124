"""Errors of `basemodel`. Every one derives from `BaseModelError`.

BaseModelError
    BaseNotFoundError        the source names nothing that can be loaded
    BaseFormatError          the source is there, but is no causal language model that can be quantized here
    SnapshotDamagedError     the cached quantized snapshot is incomplete or was changed
    AdapterFormatError       an adapter folder does not fit this base
    MixtureFormatError       a mixture's files are not what they must be, or do not fit this base
"""

from __future__ import annotations

from pathlib import Path


class BaseModelError(Exception):
    """Root of what can go wrong with a base model. The message is fit for an operator."""


class BaseNotFoundError(BaseModelError):
    """Nothing loadable stands behind `source`."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(
            f"base '{source}' was not found: {reason}. Give 'embedded', a folder in the Hugging Face layout "
            "(config.json, *.safetensors, tokenizer.json) or a Hub id such as Qwen/Qwen2.5-0.5B-Instruct."
        )
        self.source = source
        self.reason = reason


class BaseFormatError(BaseModelError):
    """`source` exists, but cannot be used as a base."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"base '{source}' cannot be used: {reason}")
        self.source = source
        self.reason = reason


class SnapshotDamagedError(BaseModelError):
    """A cached snapshot is not what was written."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(
            f"the quantized snapshot {folder} is damaged: {reason}. Delete that folder; "
            "it is made again from its source."
        )
        self.folder = folder
        self.reason = reason


class AdapterFormatError(BaseModelError):
    """An adapter folder cannot be attached to this base. `reason` names the file, tensor or key."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"the adapter in {folder.name} cannot be attached: {reason}")
        self.folder = folder
        self.reason = reason


class MixtureFormatError(BaseModelError):
    """A mixture cannot be used. `reason` names the file and the key or tensor."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the mixture cannot be used: {reason}")
        self.reason = reason
