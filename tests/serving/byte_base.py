"""A base that needs no model: one token for each byte, a chat template, and the base.json that the registry judges by.

Token id of byte b: FIRST_BYTE + b, so that a test can read and write prompts without the tokenizers package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.registry.adapter_folders import base_document

SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
END, SYSTEM, USER, ASSISTANT = range(4)
FIRST_BYTE = len(SPECIAL)
VOCABULARY = FIRST_BYTE + 256
CONTEXT_TOKENS = 512
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] == 'refuse' %}{{ raise_exception('this base refuses the word') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def base_json() -> dict[str, Any]:
    """The base.json of the byte base, with the modules and the fingerprint of the registry's tiny base."""
    return base_document() | {"name": "bytes", "vocabulary_size": VOCABULARY, "context_tokens": CONTEXT_TOKENS}


def write_byte_base(folder: Path) -> Path:
    """Write the tokenizer, the chat template and base.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": TEMPLATE}))
    (folder / "base.json").write_text(json.dumps(base_json()))
    return folder


def to_ids(text: str) -> list[int]:
    """Text as the byte base tokenizes it."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def to_text(token_ids: list[int]) -> str:
    """The text of token ids, special tokens by their names."""
    parts = [
        SPECIAL[token_id].encode() if token_id < FIRST_BYTE else bytes([token_id - FIRST_BYTE])
        for token_id in token_ids
    ]
    return b"".join(parts).decode(errors="replace")


def _tokenizer() -> dict[str, Any]:
    vocabulary = {name: token_id for token_id, name in enumerate(SPECIAL)}
    vocabulary |= {character: FIRST_BYTE + byte for byte, character in enumerate(_byte_characters())}
    added = [
        {"id": token_id, "content": name, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token_id, name in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }


def _byte_characters() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, by byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
