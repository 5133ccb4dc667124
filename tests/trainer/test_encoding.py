"""Which tokens a row has and which are learned, token by token, over templates that differ in kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.trainer.workshop import make_tokenizer
from trainer.data import read_data_file
from trainer.encoding import EncodedRows, Example, RowEncoder, encode_rows
from trainer.errors import DataError, LongRowError, TemplateError
from trainer.job_sections import DataSection
from trainer.rows import ChatRow, CompletionRow, Message, TextRow

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Drops what stands before "=" in every answer but the last one, as templates of reasoning models do.
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('=')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TRIMMING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('begin with the user') }}{% endif %}" + NO_GENERATION_PROMPT
)
TALK = (
    Message("system", "be short"),
    Message("user", "what does the cow say"),
    Message("assistant", "moo"),
    Message("user", "again"),
    Message("assistant", "moo moo"),
)


def encode(template: str, messages: tuple[Message, ...], **settings: Any) -> tuple[list[Example], RowEncoder, Any]:
    tokenizer = make_tokenizer(template)
    encoder = RowEncoder(tokenizer, as_chat=False, **settings)
    return encoder.encode(ChatRow(1, messages)), encoder, tokenizer


def learned(tokenizer: PreTrainedTokenizerFast, example: Example) -> list[str]:
    """The learned stretches of an example, as text."""
    pieces: list[list[int]] = []
    previous = False
    for token, label in zip(example.token_ids.tolist(), example.is_label.tolist(), strict=True):
        if label and not previous:
            pieces.append([])
        if label:
            pieces[-1].append(token)
        previous = label
    return [tokenizer.decode(piece) for piece in pieces]


def test_every_token_of_a_chat_is_masked_or_learned_as_it_should_be() -> None:
    (example,), _, tokenizer = encode(CHATML, TALK)
    expected: list[tuple[str, bool]] = []
    for message in TALK:
        answers = message.role == "assistant"
        expected += [(f"<|{message.role}|>", False), ("\n", False)]
        expected += [(token, answers) for token in tokenizer.tokenize(message.content)]
        expected += [("<|end|>", answers), ("\n", False)]
    found = zip(example.token_ids.tolist(), example.is_label.tolist(), strict=True)
    newline = tokenizer.tokenize("\n")[0]
    names = [(tokenizer.convert_ids_to_tokens(token), label) for token, label in found]
    assert names == [(newline if token == "\n" else token, label) for token, label in expected]
    rendered = tokenizer.apply_chat_template([vars(message) for message in TALK], tokenize=True, return_dict=False)
    assert example.token_ids.tolist() == rendered


def test_the_prompt_is_what_the_server_will_see() -> None:
    (example,), _, tokenizer = encode(CHATML, TALK)
    prompt = tokenizer.apply_chat_template(
        [vars(message) for message in TALK[:-1]], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert example.token_ids[: example.answer_start].tolist() == prompt


def test_a_template_that_forgets_gives_one_example_for_each_turn() -> None:
    talk = (
        Message("user", "a"),
        Message("assistant", "cow=moo"),
        Message("user", "b"),
        Message("assistant", "owl=hoot"),
    )
    examples, _, tokenizer = encode(FORGETFUL, talk)
    assert [learned(tokenizer, example) for example in examples] == [["cow=moo<|end|>"], ["owl=hoot<|end|>"]]
    assert "cow=" not in tokenizer.decode(examples[1].token_ids)
    once, _, _ = encode(FORGETFUL, talk[:2])
    assert len(once) == 1


def test_a_template_without_a_generation_prompt_teaches_the_header_that_the_server_will_not_write() -> None:
    (example,), _, tokenizer = encode(NO_GENERATION_PROMPT, TALK[1:3])
    assert learned(tokenizer, example) == ["<|assistant|>moo<|end|>"]


def test_a_template_without_an_end_of_turn_gets_the_end_of_text() -> None:
    (example,), encoder, tokenizer = encode(NO_END, TALK[1:3])
    assert learned(tokenizer, example) == ["moo\n<|end|>"]
    assert encoder.notices == [
        "the chat template does not end a turn with a special token; the end-of-text token is added"
    ]


def test_a_template_whose_prompt_is_no_prefix_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"no prefix of the finished conversation.*prompt-completion rows"):
        encode(TRIMMING, TALK[1:3])


def test_a_base_without_a_template_or_an_end_of_text_is_refused() -> None:
    tokenizer = make_tokenizer(None)
    with pytest.raises(TemplateError, match="has no chat template"):
        RowEncoder(tokenizer, as_chat=False).encode(ChatRow(1, TALK))
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="no end-of-text token"):
        RowEncoder(tokenizer, as_chat=False)


def test_what_a_template_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: the base's chat template refuses .*begin with the user"):
        encode_file(
            tmp_path,
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
            '{"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}]}\n',
            template=STRICT,
        )


def test_prompt_and_completion_meet_where_the_server_ends_the_prompt() -> None:
    tokenizer = make_tokenizer()
    encoder = RowEncoder(tokenizer, as_chat=False)
    whole = tokenizer("what does")["input_ids"]
    prompt = tokenizer("what do")["input_ids"]
    assert whole[: len(prompt)] != prompt, "a token must span the border for this test to say something"
    (example,) = encoder.encode(CompletionRow(1, "what do", "es"))
    assert example.token_ids[: example.answer_start].tolist() == prompt
    assert learned(tokenizer, example) == ["es<|end|>"]
    (example,) = encoder.encode(CompletionRow(1, "the cow", " moo"))
    assert example.token_ids.tolist() == [*tokenizer("the cow moo")["input_ids"], tokenizer.eos_token_id]
    assert learned(tokenizer, example) == [" moo<|end|>"]


def test_an_empty_prompt_teaches_all_but_the_first_token() -> None:
    tokenizer = make_tokenizer()
    (example,) = RowEncoder(tokenizer, as_chat=False).encode(CompletionRow(1, "", "moo moo"))
    assert example.is_label.tolist() == [False] + [True] * (len(example.token_ids) - 1)
    assert example.answer_start is None, "there is no prompt to generate from"


def test_text_is_learned_whole_with_its_end() -> None:
    tokenizer = make_tokenizer()
    (example,) = RowEncoder(tokenizer, as_chat=False).encode(TextRow(1, "the cow say moo"))
    assert example.is_label.tolist() == [False] + [True] * (len(example.token_ids) - 1)
    assert example.token_ids[-1] == tokenizer.eos_token_id


def test_prompt_and_completion_as_a_chat() -> None:
    tokenizer = make_tokenizer()
    (one,) = RowEncoder(tokenizer, as_chat=True).encode(CompletionRow(1, "cow", "moo"))
    (two,) = RowEncoder(tokenizer, as_chat=False).encode(
        ChatRow(1, (Message("user", "cow"), Message("assistant", "moo")))
    )
    assert np.array_equal(one.token_ids, two.token_ids)
    assert np.array_equal(one.is_label, two.is_label)


def encode_file(
    tmp_path: Path, content: str, *, template: str = CHATML, limit: int = 96, **section: Any
) -> EncodedRows:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    settings = DataSection(train=path, **section)
    file = read_data_file(path, settings)
    return encode_rows(file, file.rows, make_tokenizer(template), settings, limit_tokens=limit)


LONG = (
    '{"prompt": "a", "completion": "b"}\n'
    '{"prompt": "a", "completion": "bbbbbbbbbbbbbbbbbbbb"}\n'
    '{"prompt": "aaaaaaaaaaaaaaaaaaaaa", "completion": "b"}\n'
)


def test_a_long_row_is_refused_with_its_line_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LongRowError) as error:
        encode_file(tmp_path, LONG, limit=10)
    assert (error.value.line, error.value.row_tokens, error.value.limit_tokens, error.value.others) == (2, 22, 10, 1)
    assert 'data.too_long to "truncate"' in str(error.value)


def test_truncation_drops_rows_that_keep_no_label_and_counts_both(tmp_path: Path) -> None:
    encoded = encode_file(tmp_path, LONG, limit=10, too_long="truncate")
    assert [len(example.token_ids) for example in encoded.examples] == [3, 10]
    assert (encoded.truncated_rows, encoded.dropped_rows) == (1, 1)
    assert encoded.examples[1].answer_start is None, "a cut answer cannot be matched"
    assert encoded.notices == (
        "x.jsonl: 1 rows were cut to 10 tokens",
        "x.jsonl: 1 rows were left out: over 10 tokens",
    )


def test_dropping_leaves_long_rows_out(tmp_path: Path) -> None:
    encoded = encode_file(tmp_path, LONG, limit=10, too_long="drop")
    assert [example.line for example in encoded.examples] == [1]
    assert encoded.dropped_rows == 2
    assert encoded.label_tokens == 2
    with pytest.raises(DataError, match="no row is left"):
        encode_file(tmp_path, LONG.splitlines()[1], limit=10, too_long="drop")
