"""The demo tasks: right answers, a fixed seed, and no thing shared by the two sides of the split."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

from loraplex.demo.example import Side, side_of
from loraplex.demo.tasks import TASKS, DemoTask, task_named, write_jsonl

LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
BY_NAME = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@BY_NAME
def test_sizes_and_distinct_prompts(task: DemoTask) -> None:
    examples = task.train(3000, seed=1)
    assert len(examples) == 3000
    assert len({example.prompt for example in examples}) == 3000
    assert len({example.completion for example in examples}) > 1500
    assert max(len(example.prompt) + len(example.completion) for example in examples) < 420


@BY_NAME
def test_same_seed_same_rows_and_other_seed_other_rows(task: DemoTask) -> None:
    assert task.train(50, seed=3) == task.train(50, seed=3)
    assert task.held_out(50, seed=3) == task.held_out(50, seed=3)
    assert task.train(50, seed=3) != task.train(50, seed=4)
    assert task.train(80, seed=3)[:50] == task.train(50, seed=3)


@BY_NAME
def test_the_sides_share_no_prompt_and_no_instance(task: DemoTask) -> None:
    train, held_out = task.train(3000, seed=5), task.held_out(300, seed=5)
    assert not {example.prompt for example in train} & {example.prompt for example in held_out}
    seen = {part for example in train for part in example.instance.split("\n")}
    unseen = {part for example in held_out for part in example.instance.split("\n")}
    assert not seen & unseen
    assert all(side_of(part) is Side.TRAIN for part in seen)
    assert all(side_of(part) is Side.HELD_OUT for part in unseen)


@BY_NAME
def test_the_instance_is_what_the_prompt_and_answer_are_about(task: DemoTask) -> None:
    for example in task.held_out(300, seed=6):
        for part in example.instance.split("\n"):
            if task.name == "log2json":
                assert part in example.prompt
                assert part in json.loads(example.completion).values()
            elif task.name == "text2cron":
                assert part == f"cron {example.completion}"
            else:
                listed = [sorted(re.findall(r"\w+", line)) for line in example.prompt.split("\n")]
                assert sorted(re.findall(r"\w+", part)) in listed


def test_sql_runs_on_its_schema() -> None:
    for example in task_named("text2sql").train(1500, seed=7):
        *listing, question = example.prompt.split("\n")
        assert question.startswith("SQL for: ")
        database = sqlite3.connect(":memory:")
        for table in listing:
            database.execute(f"CREATE TABLE {table}")
        database.execute(f"EXPLAIN {example.completion}")
        database.close()


def test_log_json_parses_and_its_values_stand_in_the_line() -> None:
    orders: set[tuple[str, ...]] = set()
    for example in task_named("log2json").train(1500, seed=8):
        fields = json.loads(example.completion)
        orders.add(tuple(fields))
        assert all(str(item) in example.prompt for item in fields.values())
        assert json.dumps(fields) == example.completion
    assert len(orders) == 5


def test_cron_fields_are_in_range() -> None:
    for example in task_named("text2cron").train(1500, seed=9):
        fields = example.completion.split(" ")
        assert len(fields) == 5
        for field, (low, high) in zip(fields, LIMITS, strict=True):
            assert re.fullmatch(r"\*|\*/\d+|\d+|\d+-\d+|\d+,\d+", field)
            assert all(low <= int(number) <= high for number in re.findall(r"\d+", field))


def test_one_prompt_has_one_answer() -> None:
    for task in TASKS:
        answers: dict[str, str] = {}
        for seed in range(4):
            for example in task.train(800, seed):
                assert answers.setdefault(example.prompt, example.completion) == example.completion


def test_too_many_rows_are_refused() -> None:
    narrow = DemoTask("narrow", "", "", lambda rng, side: task_named("text2cron").held_out(1, 0)[0])
    with pytest.raises(ValueError, match="ask for fewer"):
        narrow.train(2, seed=0)


def test_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(KeyError, match="text2sql, log2json, text2cron"):
        task_named("text2poem")


def test_write_jsonl(tmp_path: Path) -> None:
    examples = task_named("text2cron").train(5, seed=1)
    write_jsonl(examples, tmp_path / "train.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text("utf-8").splitlines()]
    assert [row["messages"][-1] for row in rows] == [{"role": "assistant", "content": e.completion} for e in examples]
    assert [row["messages"][0]["content"] for row in rows] == [example.prompt for example in examples]
    assert all(list(row) == ["messages"] for row in rows)
