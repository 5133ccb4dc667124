"""The base that runs now, as a request sees it: its names, its identity, its tokenizer and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from serving.messages import Ready
from serving.tokenization import Tokenization

BASE_ALIAS = "base"
SHORT_DIGITS = 12


@dataclass(frozen=True)
class ServedBase:
    """Made from the engine's `Ready`. `context_tokens` is the smaller of the engine's and the server's limit."""

    name: str
    fingerprint: str
    vocabulary_tokens: int
    context_tokens: int
    max_running: int
    adapter_slots: int
    kv_blocks: int
    kv_block_tokens: int
    device: str
    load_seconds: float
    tokenization: Tokenization
    folder: Path
    end_token_ids: tuple[int, ...]

    @classmethod
    def from_ready(cls, ready: Ready, *, context_limit_tokens: int | None) -> ServedBase:
        """Read the tokenizer from the base's folder (it blocks). Raises BaseFolderError."""
        context_tokens = ready.context_tokens
        if context_limit_tokens is not None:
            context_tokens = min(context_tokens, context_limit_tokens)
        return cls(
            name=ready.base["name"],
            fingerprint=ready.base["fingerprint"],
            vocabulary_tokens=ready.base["vocabulary_size"],
            context_tokens=context_tokens,
            max_running=ready.max_running,
            adapter_slots=ready.adapter_slots,
            kv_blocks=ready.kv_blocks,
            kv_block_tokens=ready.kv_block_tokens,
            device=ready.device,
            load_seconds=ready.load_seconds,
            tokenization=Tokenization.load(Path(ready.base_folder)),
            folder=Path(ready.base_folder),
            end_token_ids=ready.end_token_ids,
        )

    def is_named(self, model: str) -> bool:
        """Whether a request's `model` means the base itself."""
        return model in (BASE_ALIAS, self.name)

    @property
    def short_fingerprint(self) -> str:
        """The first digits of the fingerprint, for people."""
        return self.fingerprint[:SHORT_DIGITS]
