"""The data files of a job: rows of text, before any tokenizer sees them.

It does: read JSONL, CSV and TSV; decide each file's format and say so; check every row; count what deserves a word
(duplicates, ignored fields, validation rows that are also in training); split; and identify the data by a digest.
It does not: tokenize or mask (`encoding`), or order rows (`batches`). Nothing heavy is loaded to check data.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError
from trainer.job import DataSection, EvaluationSection, Job

RowFormat = Literal["chat", "prompt-completion", "text"]
FORMAT_FIELDS: dict[RowFormat, tuple[str, ...]] = {
    "chat": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
ROLES = ("system", "user", "assistant")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
DEFAULT_VALIDATION_FRACTION = 0.05
LINES_SHOWN = 5


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


@dataclass(frozen=True)
class DataFile:
    """A checked file. `sha256` is of its bytes; `notices` say what deserves a word and is no error."""

    path: Path
    format: RowFormat
    sha256: str
    rows: tuple[Row, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class JobData:
    """What a job trains and validates on. `validation_file` is the training file where rows were held out of it."""

    train_file: DataFile
    validation_file: DataFile | None
    train_rows: tuple[Row, ...]
    validation_rows: tuple[Row, ...]
    overlapping_rows: int
    notices: tuple[str, ...]

    @property
    def digest(self) -> str:
        """`sha256:...` over the files' hashes and the rows on each side: equal digests, equal data in equal order."""
        validation = self.validation_file.sha256 if self.validation_file else None
        sides = [[row.line for row in self.train_rows], [row.line for row in self.validation_rows]]
        canonical = json.dumps([self.train_file.sha256, validation, sides], separators=(",", ":"))
        return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def read_job_data(job: Job) -> JobData:
    """Read, check and split the files of `job`. Raises DataError with the file and line."""
    train = read_data_file(job.data.train, job.data)
    if job.evaluation.validation is not None:
        validation = read_data_file(job.evaluation.validation, job.data)
        seen = {_content(row) for row in train.rows}
        overlapping = sum(_content(row) in seen for row in validation.rows)
        notices = [*train.notices, *validation.notices]
        if overlapping:
            notices.append(
                f"{overlapping} of {len(validation.rows)} validation rows are also in the training file: "
                "their loss and exact match say nothing about new input"
            )
        return JobData(train, validation, train.rows, validation.rows, overlapping, tuple(notices))
    train_rows, validation_rows = _split(train, job.evaluation, seed=job.optimization.seed)
    held_out = train if validation_rows else None
    return JobData(train, held_out, train_rows, validation_rows, 0, train.notices)


def read_data_file(path: Path, section: DataSection) -> DataFile:
    """Read and check one file. Raises DataError with the line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror}") from error
    records = list(_records(path, content))
    if not records:
        raise DataError(path, "is empty: it has no row to learn from")
    first_line, first = records[0]
    row_format = _detect(path, first_line, first) if section.format == "auto" else section.format
    if section.as_chat and row_format != "prompt-completion":
        raise DataError(
            path, f"data.as_chat turns prompt and completion into a chat, and this file's format is {row_format}"
        )
    rows = tuple(_row(path, line, record, row_format) for line, record in records)
    notices = (*_unused_fields(path, records, row_format), *_duplicates(path, rows))
    return DataFile(path, row_format, hashlib.sha256(content).hexdigest(), rows, notices)


def _records(path: Path, content: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix in JSONL_SUFFIXES:
        return _json_records(path, content)
    if suffix in DELIMITERS:
        return _csv_records(path, content, DELIMITERS[suffix])
    known = ", ".join((*JSONL_SUFFIXES, *DELIMITERS))
    raise DataError(
        path, f"has the ending {suffix or '(none)'}; the endings {known} are read. Rename or convert the file"
    )


def _json_records(path: Path, content: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for line, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(path, f"is not UTF-8 (byte {error.start} of the line)", line=line) from error
        except json.JSONDecodeError as error:
            shown = raw.decode("utf-8", "replace").strip()
            shown = shown if len(shown) <= 60 else shown[:60] + "..."
            reason = f"is not JSON: {error.msg} at column {error.colno} of: {shown}"
            raise DataError(path, reason, line=line) from error
        except RecursionError as error:
            raise DataError(path, "is JSON that nests too deeply", line=line) from error
        if not isinstance(record, dict):
            raise DataError(path, f"is a JSON {type(record).__name__}, not an object with fields", line=line)
        yield line, record


def _csv_records(path: Path, content: bytes, delimiter: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(path, "is not UTF-8", line=line) from error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if header is None:
                header = cells
                if len(set(header)) != len(header):
                    raise DataError(path, f"the header names a column twice: {', '.join(header)}", line=line)
            elif cells:
                if len(cells) != len(header):
                    raise DataError(path, f"has {len(cells)} cells, the header has {len(header)}", line=line)
                yield line, dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(path, f"is not CSV: {error}", line=line) from error


def _detect(path: Path, line: int, record: Mapping[str, Any]) -> RowFormat:
    for row_format, fields in FORMAT_FIELDS.items():
        if all(field in record for field in fields):
            return row_format
    wanted = "; ".join(f"{' and '.join(fields)} ({name})" for name, fields in FORMAT_FIELDS.items())
    raise DataError(path, f"has the fields {', '.join(record) or '(none)'}; a row needs one of: {wanted}", line=line)


def _row(path: Path, line: int, record: Mapping[str, Any], row_format: RowFormat) -> Row:
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


def _unused_fields(path: Path, records: list[tuple[int, Mapping[str, Any]]], row_format: RowFormat) -> list[str]:
    unused = sorted({field for _, record in records for field in record} - set(FORMAT_FIELDS[row_format]))
    return [f"{path.name}: fields that are not used: {', '.join(unused)}"] if unused else []


def _duplicates(path: Path, rows: tuple[Row, ...]) -> list[str]:
    first_line: dict[str, int] = {}
    repeated: list[tuple[int, int]] = []
    for row in rows:
        first = first_line.setdefault(_content(row), row.line)
        if first != row.line:
            repeated.append((row.line, first))
    if not repeated:
        return []
    shown = ", ".join(f"line {line} is line {first}" for line, first in repeated[:LINES_SHOWN])
    more = ", ..." if len(repeated) > LINES_SHOWN else ""
    return [f"{path.name}: {len(repeated)} of {len(rows)} rows are duplicates ({shown}{more}); they count twice"]


def _content(row: Row) -> str:
    match row:
        case ChatRow(_, messages):
            return json.dumps([[message.role, message.content] for message in messages])
        case CompletionRow(_, prompt, completion):
            return json.dumps([prompt, completion])
        case TextRow(_, text):
            return json.dumps(text)


def _split(file: DataFile, evaluation: EvaluationSection, *, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Hold out a share of the distinct rows; equal rows stay on one side."""
    fraction = evaluation.validation_fraction
    contents = sorted({_content(row) for row in file.rows})
    wanted = round(len(contents) * (DEFAULT_VALIDATION_FRACTION if fraction is None else fraction))
    if fraction == 0 or len(contents) < 2:
        return file.rows, ()
    random.Random(f"split {seed}").shuffle(contents)
    held_out = set(contents[: max(1, wanted)])
    train = tuple(row for row in file.rows if _content(row) not in held_out)
    return train, tuple(row for row in file.rows if _content(row) in held_out)
