"""The base's tokenizer without torch: text to token ids, token ids to text, messages to a prompt.

It does: load `tokenizer.json` and the chat template from the base's folder.
It does not: follow a growing answer (`serving.transcript`), or know requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from serving.chat_template import MARK_END, MARK_START, MARKED, ChatTemplate
from serving.errors import BaseFolderError, InvalidFieldError
from serving.tool_syntax import HERMES, ToolSyntax

TOKENIZER_FILE = "tokenizer.json"
CACHED_TOKEN_TEXTS = 65536


class Tokenization:
    """A base's tokenizer and chat template. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, literal: Tokenizer, template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._literal = literal
        self._template = template
        self._byte_of = _byte_alphabet()
        self.longest_token_characters = max(map(len, tokenizer.get_vocab()), default=1)
        self.token_text = lru_cache(maxsize=CACHED_TOKEN_TEXTS)(self._token_text)

    @classmethod
    def load(cls, folder: Path) -> Tokenization:
        """Read the tokenizer of a base's folder. Raises BaseFolderError."""
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise BaseFolderError(
                TOKENIZER_FILE, "is missing: save its tokenizer with transformers (`save_pretrained`), which writes it"
            )
        try:
            text = path.read_text()
            tokenizer, literal = Tokenizer.from_str(text), Tokenizer.from_str(text)
        except Exception as error:  # the tokenizers package raises nothing more precise
            raise BaseFolderError(TOKENIZER_FILE, f"cannot be read ({error})") from error
        for each in (tokenizer, literal):
            each.no_truncation()
            each.no_padding()
        literal.encode_special_tokens = True
        control_tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
        return cls(tokenizer, literal, ChatTemplate.load(folder, control_tokens))

    @property
    def has_chat_template(self) -> bool:
        """Whether the base says how a chat is written."""
        return self._template is not None

    def encode(self, text: str) -> list[int]:
        """A prompt's token ids, with what the tokenizer puts around a text (such as a beginning-of-text token)."""
        return list(self._tokenizer.encode(text).ids)

    @property
    def tool_syntax(self) -> ToolSyntax:
        """How this base writes a call of a function."""
        return HERMES if self._template is None else self._template.tool_syntax

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """The token ids of a chat, ready for the assistant's turn. Raises InvalidFieldError."""
        if self._template is None:
            raise InvalidFieldError(
                "This base has no chat template: use /v1/completions with a prompt.", param="messages"
            )
        pieces = MARKED.split(self._template.render(messages, tools))
        token_ids: list[int] = []
        # Odd pieces are control tokens that a client typed: they are text, not control.
        for position, piece in enumerate(pieces):
            tokenizer = self._literal if position % 2 else self._tokenizer
            plain = piece.replace(MARK_START, "").replace(MARK_END, "")
            token_ids.extend(tokenizer.encode(plain, add_special_tokens=False).ids)
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for, which need not be whole characters."""
        piece = self._tokenizer.id_to_token(token_id) or ""
        text = self._plain_text(token_id)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text.encode()
        if len(piece) == 6 and piece.startswith("<0x"):
            return bytes([int(piece[3:5], 16)])
        if all(character in self._byte_of for character in piece):
            return bytes(self._byte_of[character] for character in piece)
        return text.encode()

    def _token_text(self, token_id: int) -> str:
        """One token as OpenAI's log-probabilities write it: its text, or its bytes where it is part of a character."""
        text = self._plain_text(token_id)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.token_bytes(token_id))

    def _plain_text(self, token_id: int) -> str:
        """Decoded behind itself: some decoders strip the blank of a first token."""
        once = self._tokenizer.decode([token_id], skip_special_tokens=False)
        twice: str = self._tokenizer.decode([token_id, token_id], skip_special_tokens=False)
        return twice[len(once) :]


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes for bytes (GPT-2's table, `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return table
