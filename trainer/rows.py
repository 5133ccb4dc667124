"""One row of a data file: what it may hold, and the checks that it passes before anything is loaded.

It does: define the three kinds of row and make one from the fields of a record, or say what is wrong with it.
It does not: read files (`data`) or tokenize (`encoding`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError

RowFormat = Literal["chat", "prompt-completion", "text"]
FORMAT_FIELDS: dict[RowFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRow:
    """A conversation that ends with an assistant's turn. `line` counts from 1."""

    line: int
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class CompletionRow:
    """A prompt and what should follow it."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class TextRow:
    """Text that is learned as a whole."""

    line: int
    text: str


Row = ChatRow | CompletionRow | TextRow


def row_content(row: Row) -> str:
    """What two rows have in common when they are duplicates of each other."""
    match row:
        case ChatRow(_, messages):
            return json.dumps([[message.role, message.content] for message in messages])
        case CompletionRow(_, prompt, completion):
            return json.dumps([prompt, completion])
        case TextRow(_, text):
            return json.dumps(text)


def detect_format(path: Path, line: int, record: Mapping[str, Any]) -> RowFormat:
    """The format that a record's fields show. Raises DataError."""
    for row_format, fields in FORMAT_FIELDS.items():
        if all(field in record for field in fields):
            return row_format
    wanted = "; ".join(f"{' and '.join(fields)} ({name})" for name, fields in FORMAT_FIELDS.items())
    raise DataError(path, f"has the fields {', '.join(record) or '(none)'}; a row needs one of: {wanted}", line=line)


def parse_row(path: Path, line: int, record: Mapping[str, Any], row_format: RowFormat) -> Row:
    """The row in a record. `path` and `line` are for the error. Raises DataError."""
    missing = [field for field in FORMAT_FIELDS[row_format] if field not in record]
    if missing:
        found = ", ".join(record) or "(none)"
        raise DataError(path, f"has no field {missing[0]!r} (format {row_format}); it has: {found}", line=line)
    if row_format == "chat":
        return ChatRow(line, _messages(path, line, record["messages"]))
    if row_format == "text":
        return TextRow(line, _text(path, line, "text", record["text"]))
    prompt = record["prompt"]
    if not isinstance(prompt, str):
        raise DataError(path, f"field 'prompt' is {type(prompt).__name__}, not a string", line=line)
    return CompletionRow(line, prompt, _text(path, line, "completion", record["completion"]))


def _messages(path: Path, line: int, value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):  # a CSV cell
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(path, f"field 'messages' is not JSON: {error.msg}", line=line) from error
    if not isinstance(value, list) or not value:
        raise DataError(path, "field 'messages' must be a list with at least one message", line=line)
    messages = tuple(_message(path, line, number, entry) for number, entry in enumerate(value, start=1))
    for number, message in enumerate(messages, start=1):
        if message.role == "system" and number > 1:
            raise DataError(path, f"message {number} has the role system; only the first message may", line=line)
    if not any(message.role == "assistant" for message in messages):
        raise DataError(path, "no message has the role assistant: every label is masked, nothing is learned", line=line)
    if messages[-1].role != "assistant":
        raise DataError(path, f"the last message has the role {messages[-1].role}; it must be assistant's", line=line)
    return messages


def _message(path: Path, line: int, number: int, entry: Any) -> Message:
    if not isinstance(entry, dict) or not {"role", "content"} <= set(entry):
        raise DataError(path, f"message {number} must be an object with role and content", line=line)
    extra = sorted(set(entry) - {"role", "content"})
    if extra:
        raise DataError(path, f"message {number} has {extra[0]!r}, which is not trained on; remove it", line=line)
    if entry["role"] not in ROLES:
        reason = f"message {number} has the role {entry['role']!r}; the roles are {', '.join(ROLES)}"
        raise DataError(path, reason, line=line)
    if entry["role"] == "assistant":
        return Message("assistant", _text(path, line, f"content of message {number}", entry["content"]))
    if not isinstance(entry["content"], str):
        reason = f"message {number}: content is {type(entry['content']).__name__}, not a string"
        raise DataError(path, reason, line=line)
    return Message(entry["role"], entry["content"])


def _text(path: Path, line: int, field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(path, f"field {field!r} is {type(value).__name__}, not a string", line=line)
    if not value.strip():
        raise DataError(path, f"field {field!r} is empty: every label is masked, nothing is learned", line=line)
    return value
