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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.job import Job
from trainer.job_sections import DataSection, EvaluationSection
from trainer.rows import FORMAT_FIELDS, Row, RowFormat, detect_format, parse_row, row_content

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSONL_SUFFIXES = (".jsonl", ".ndjson")
DEFAULT_VALIDATION_FRACTION = 0.05
LINES_SHOWN = 5


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
        seen = {row_content(row) for row in train.rows}
        overlapping = sum(row_content(row) in seen for row in validation.rows)
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
    row_format = detect_format(path, first_line, first) if section.format == "auto" else section.format
    if section.as_chat and row_format != "prompt-completion":
        raise DataError(
            path, f"data.as_chat turns prompt and completion into a chat, and this file's format is {row_format}"
        )
    rows = tuple(parse_row(path, line, record, row_format) for line, record in records)
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


def _unused_fields(path: Path, records: list[tuple[int, Mapping[str, Any]]], row_format: RowFormat) -> list[str]:
    unused = sorted({field for _, record in records for field in record} - set(FORMAT_FIELDS[row_format]))
    return [f"{path.name}: fields that are not used: {', '.join(unused)}"] if unused else []


def _duplicates(path: Path, rows: tuple[Row, ...]) -> list[str]:
    first_line: dict[str, int] = {}
    repeated: list[tuple[int, int]] = []
    for row in rows:
        first = first_line.setdefault(row_content(row), row.line)
        if first != row.line:
            repeated.append((row.line, first))
    if not repeated:
        return []
    shown = ", ".join(f"line {line} is line {first}" for line, first in repeated[:LINES_SHOWN])
    more = ", ..." if len(repeated) > LINES_SHOWN else ""
    return [f"{path.name}: {len(repeated)} of {len(rows)} rows are duplicates ({shown}{more}); they count twice"]


def _split(file: DataFile, evaluation: EvaluationSection, *, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Hold out a share of the distinct rows, chosen by a hash of their content; equal rows stay together."""
    fraction = evaluation.validation_fraction
    contents = {row_content(row) for row in file.rows}
    if fraction == 0 or len(contents) < 2:
        return file.rows, ()
    ordered = sorted(contents, key=lambda content: hashlib.sha256(f"{seed}:{content}".encode()).digest())
    wanted = round(len(contents) * (DEFAULT_VALIDATION_FRACTION if fraction is None else fraction))
    held_out = set(ordered[: max(1, wanted)])
    train = tuple(row for row in file.rows if row_content(row) not in held_out)
    return train, tuple(row for row in file.rows if row_content(row) in held_out)
