"""Data files: every kind of wrong line is named with its number, and what deserves a word is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.data import DataFile, read_data_file, read_job_data
from trainer.errors import DataError
from trainer.job import Job
from trainer.job_sections import DataSection
from trainer.rows import ChatRow, CompletionRow, Message, TextRow

GOOD = '{"prompt": "a", "completion": "b"}\n'
CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


def read(path: Path, content: str | bytes, **section: Any) -> DataFile:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_data_file(path, DataSection(train=path, **section))


def chat(*messages: Any) -> str:
    return json.dumps({"messages": list(messages)}) + "\n"


def said(role: str, content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", None, "is empty"),
        ("\n \n", None, "is empty"),
        (GOOD + "not json\n", 2, "is not JSON: Expecting value at column 1 of: not json"),
        (GOOD + "\n" + '{"prompt": "a",}\n', 3, "is not JSON"),
        (GOOD + "[1]\n", 2, "is a JSON list"),
        (GOOD.encode() + b'{"prompt": "\xff"}\n', 2, "is not UTF-8"),
        (GOOD + "[" * 100_000 + "\n", 2, "JSON"),
        ('{"question": "a"}\n', 1, "has the fields question; a row needs one of: messages"),
        (GOOD + '{"prompt": "a"}\n', 2, "has no field 'completion' (format prompt-completion); it has: prompt"),
        (GOOD + '{"prompt": 3, "completion": "b"}\n', 2, "field 'prompt' is int, not a string"),
        (GOOD + '{"prompt": "a", "completion": null}\n', 2, "field 'completion' is NoneType"),
        (GOOD + '{"prompt": "a", "completion": " "}\n', 2, "every label is masked"),
        ('{"text": ""}\n', 1, "every label is masked"),
        (CHAT + '{"messages": []}\n', 2, "at least one message"),
        (CHAT + '{"messages": "hi"}\n', 2, "field 'messages' is not JSON"),
        (CHAT + '{"messages": ["hi"]}\n', 2, "message 1 must be an object with role and content"),
        (CHAT + chat(said("user"), said("human")), 2, "message 2 has the role 'human'; the roles are system, user"),
        (CHAT + chat(said("user"), said(["x"])), 2, "the roles are"),  # type: ignore[arg-type]
        (CHAT + chat(said("user"), said("system"), said("assistant")), 2, "only the first message may"),
        (CHAT + chat(said("user")), 2, "no message has the role assistant: every label is masked"),
        (CHAT + chat(said("assistant"), said("user")), 2, "the last message has the role user"),
        (CHAT + chat(said("user"), said("assistant", "")), 2, "every label is masked"),
        (CHAT + chat(said("user", 3), said("assistant")), 2, "message 1: content is int"),
        (CHAT + chat(said("user"), said("assistant", tool_calls=[])), 2, "'tool_calls', which is not trained on"),
    ],
)
def test_a_wrong_line_of_jsonl_is_named(tmp_path: Path, content: str | bytes, line: int | None, words: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / "x.jsonl", content)
    assert error.value.line == line
    assert words in str(error.value)
    place = f"{tmp_path / 'x.jsonl'}, line {line}: " if line else f"{tmp_path / 'x.jsonl'}: "
    assert str(error.value).startswith(place)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("prompt,completion\n", None, "is empty"),
        ("prompt,completion\na,b\nc\n", 3, "has 1 cells, the header has 2"),
        ("prompt,completion\na,b,c\n", 2, "has 3 cells"),
        ("prompt,prompt\na,b\n", 1, "names a column twice"),
        ("question,answer\na,b\n", 2, "has the fields question, answer"),
        ('prompt,completion\n"a\nb",c\nd,\n', 4, "field 'completion' is empty"),
        ('prompt,completion\na,"b\n', 2, "is not CSV"),
        (b"prompt,completion\na,b\n\xff,b\n", 3, "is not UTF-8"),
        ('messages\n"not json"\n', 2, "field 'messages' is not JSON"),
    ],
)
def test_a_wrong_line_of_csv_is_named(tmp_path: Path, content: str | bytes, line: int | None, words: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / "x.csv", content)
    assert error.value.line == line
    assert words in str(error.value)


def test_the_three_formats_in_three_kinds_of_file(tmp_path: Path) -> None:
    messages = [said("system", "s"), said("user", "a"), said("assistant", "b")]
    expected = ChatRow(1, (Message("system", "s"), Message("user", "a"), Message("assistant", "b")))
    assert read(tmp_path / "x.jsonl", chat(*messages)).rows == (expected,)
    cell = json.dumps(messages).replace('"', '""')
    (row,) = read(tmp_path / "y.csv", f'messages\n"{cell}"\n').rows
    assert row == ChatRow(2, expected.messages)
    (row,) = read(tmp_path / "z.tsv", "prompt\tcompletion\na, b\tc\n").rows
    assert row == CompletionRow(2, "a, b", "c")
    assert read(tmp_path / "w.ndjson", '{"text": "é"}').rows == (TextRow(1, "é"),)


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    marked = read(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode())
    assert [row.line for row in marked.rows] == [1, 4]
    assert read(tmp_path / "x.csv", b"\xef\xbb\xbfprompt,completion\r\na,b\r\n").rows == (CompletionRow(2, "a", "b"),)


@pytest.mark.parametrize("name", ["x.json", "x.parquet", "x"])
def test_an_unknown_ending_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"the endings \.jsonl, \.ndjson, \.csv, \.tsv are read"):
        read(tmp_path / name, GOOD)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_data_file(tmp_path / "none.jsonl", DataSection(train=tmp_path))


def test_as_chat_needs_prompts_and_completions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this file's format is chat"):
        read(tmp_path / "x.jsonl", CHAT, as_chat=True)


def test_a_format_that_is_set_is_not_guessed(tmp_path: Path) -> None:
    both = '{"prompt": "a", "completion": "b", "text": "c"}\n'
    assert read(tmp_path / "x.jsonl", both, format="text").rows == (TextRow(1, "c"),)


def test_duplicates_and_unused_fields_are_said(tmp_path: Path) -> None:
    file = read(tmp_path / "x.jsonl", GOOD + '{"prompt": "a", "completion": "b", "id": 4}\n' + GOOD)
    assert file.notices == (
        "x.jsonl: fields that are not used: id",
        "x.jsonl: 2 of 3 rows are duplicates (line 2 is line 1, line 3 is line 1); they count twice",
    )


def rows_of(count: int) -> str:
    return "".join(json.dumps({"prompt": str(number), "completion": "b"}) + "\n" for number in range(count))


def split(path: Path, **evaluation: Any) -> tuple[set[int], set[int]]:
    job = Job.from_values({"data": {"train": path}, "evaluation": evaluation})
    data = read_job_data(job)
    return {row.line for row in data.train_rows}, {row.line for row in data.validation_rows}


def test_the_split_is_seeded_keeps_equal_rows_together_and_loses_none(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of(100) + rows_of(100))
    train, validation = split(path, validation_fraction=0.2)
    assert len(validation) == 40
    assert {line % 100 for line in validation}.isdisjoint({line % 100 for line in train})
    assert train | validation == set(range(1, 201))
    assert split(path, validation_fraction=0.2) == (train, validation)
    job = Job.from_values({"data": {"train": path}, "optimization": {"seed": 1}})
    assert {row.line for row in read_job_data(job).validation_rows} != validation


def test_the_default_split_is_a_twentieth_and_zero_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of(100))
    assert len(split(path)[1]) == 5
    assert len(split(path, validation_fraction=0)[1]) == 0
    path.write_text(rows_of(3))
    assert len(split(path)[1]) == 1
    path.write_text(rows_of(1))
    assert split(path) == ({1}, set())


def test_rows_that_are_in_both_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(rows_of(5))
    (tmp_path / "v.csv").write_text("prompt,completion\n3,b\n4,b\n99,b\n")
    job = Job.from_values({"data": {"train": tmp_path / "t.jsonl"}, "evaluation": {"validation": tmp_path / "v.csv"}})
    data = read_job_data(job)
    assert data.overlapping_rows == 2
    assert any("2 of 3 validation rows are also in the training file" in notice for notice in data.notices)


def test_the_digest_follows_the_bytes_and_the_split(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(rows_of(40))
    job = Job.from_values({"data": {"train": path}})
    first = read_job_data(job).digest
    assert first.startswith("sha256:")
    assert len(first) == 71
    assert read_job_data(job).digest == first
    assert read_job_data(Job.from_values({"data": {"train": path}, "optimization": {"seed": 2}})).digest != first
    path.write_text(rows_of(40) + " \n")
    assert read_job_data(job).digest != first
