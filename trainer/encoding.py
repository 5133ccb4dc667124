"""Rows as tokens: which tokens a row has, and which of them are learned.

It does: tokenize each row exactly as the server will see its prompt, mark the labels (the completion with its end of
text; each assistant's turn with its end of turn; all of a plain text), and apply the policy for long rows.
It does not: read files (`data`) or pad (`batches`).

The mask of a chat is built by rendering the conversation up to each assistant's turn and up to its end: both must be
prefixes of the whole, as text and as tokens. Where the template renders old turns differently from the last one (some
drop old reasoning), the conversation becomes one example per assistant's turn, each as the server would render it.
Letters: T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trainer.data import DataFile
from trainer.errors import DataError, LongRowError, TemplateError
from trainer.job_sections import DataSection
from trainer.rows import CompletionRow, Message, Row, TextRow


@dataclass(frozen=True)
class Example:
    """A tokenized row: token_ids [T], is_label [T]. The first token is never a label: nothing predicts it.

    `answer_start` is where the last completion begins; None for plain text and for an answer that was cut.
    """

    line: int
    token_ids: NDArray[np.int32]
    is_label: NDArray[np.bool_]
    answer_start: int | None

    @property
    def label_tokens(self) -> int:
        """How many tokens are learned."""
        return int(self.is_label.sum())


@dataclass(frozen=True)
class EncodedRows:
    """The examples of some rows of a file, and what happened to the others."""

    examples: tuple[Example, ...]
    truncated_rows: int
    dropped_rows: int
    notices: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all examples, without padding."""
        return sum(len(example.token_ids) for example in self.examples)

    @property
    def label_tokens(self) -> int:
        """Tokens that are learned, in all examples."""
        return sum(example.label_tokens for example in self.examples)


def encode_rows(
    file: DataFile,
    rows: tuple[Row, ...],
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    *,
    limit_tokens: int,
) -> EncodedRows:
    """Tokenize `rows` of `file`. Raises DataError with the line, LongRowError, TemplateError."""
    encoder = RowEncoder(tokenizer, as_chat=section.as_chat)
    examples: list[Example] = []
    for row in rows:
        try:
            encoded = encoder.encode(row)
        except jinja2.TemplateError as error:
            reason = f"the base's chat template refuses the conversation: {error}"
            raise DataError(file.path, reason, line=row.line) from error
        if not all(example.label_tokens for example in encoded):
            raise DataError(file.path, "every label is masked: the row has no token to learn", line=row.line)
        examples += encoded
    kept, truncated, dropped = _within_limit(file.path, examples, section, limit_tokens)
    notices = list(encoder.notices)
    if truncated:
        notices.append(f"{file.path.name}: {truncated} rows were cut to {limit_tokens} tokens")
    if dropped:
        notices.append(f"{file.path.name}: {dropped} rows were left out: over {limit_tokens} tokens")
    if rows and not kept:
        raise DataError(
            file.path, f"no row is left: all are longer than {limit_tokens} tokens, or keep no label when cut"
        )
    return EncodedRows(tuple(kept), truncated, dropped, tuple(notices))


class RowEncoder:
    """Turns rows into examples with one tokenizer. Only its own `notices` change."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, as_chat: bool):
        self._tokenizer = tokenizer
        self._as_chat = as_chat
        if tokenizer.eos_token_id is None:
            raise TemplateError("the base's tokenizer has no end-of-text token, so no answer could be taught to end")
        self._end_id: int = tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder
        self._special_ids = {number for number, token in added.items() if token.special} | {self._end_id}
        self.notices: list[str] = []

    def encode(self, row: Row) -> list[Example]:
        """The examples of a row: one, or one per assistant's turn where the template cannot show all at once.

        Raises jinja2.TemplateError where the template refuses the conversation.
        """
        if isinstance(row, TextRow):
            ids = self._ended(self._ids(row.text, special=True))
            return [_example(row.line, ids, [(0, len(ids))], answer_start=None)]
        if isinstance(row, CompletionRow) and not self._as_chat:
            return [self._completion(row)]
        if isinstance(row, CompletionRow):
            return self._chat(row.line, (Message("user", row.prompt), Message("assistant", row.completion)))
        return self._chat(row.line, row.messages)

    def _completion(self, row: CompletionRow) -> Example:
        prompt = self._ids(row.prompt, special=True)
        ids = self._ended(self._ids(row.prompt + row.completion, special=True))
        if ids[: len(prompt)] != prompt:  # a token spans the border, but the server will tokenize the prompt alone
            ids = self._ended(prompt + self._ids(row.completion, special=False))
        return _example(row.line, ids, [(len(prompt), len(ids))], answer_start=len(prompt))

    def _chat(self, line: int, messages: tuple[Message, ...]) -> list[Example]:
        whole = self._render(messages)
        turns = [number for number, message in enumerate(messages) if message.role == "assistant"]
        spans = [self._span(messages, turn) for turn in turns]
        if all(whole.startswith(text) for text, _ in spans):
            return [self._marked(line, whole, [(start, len(text)) for text, start in spans])]
        return [self._marked(line, text, [(start, len(text))]) for text, start in spans]

    def _span(self, messages: tuple[Message, ...], turn: int) -> tuple[str, int]:
        """The rendered conversation up to the end of a turn, and where the turn's answer begins in it."""
        before = self._render(messages[:turn], generation_prompt=True)
        text = self._render(messages[: turn + 1])
        if not text.startswith(before) or len(text) == len(before):
            raise TemplateError(
                "the base's chat template renders a prompt that is no prefix of the finished conversation, so the "
                f"answer cannot be told from its prompt. The prompt ends with {before[-60:]!r}; the conversation "
                f"has {text[max(0, len(before) - 60) : len(before) + 20]!r} there. Use prompt-completion rows instead."
            )
        return text, len(before)

    def _marked(self, line: int, text: str, spans: list[tuple[int, int]]) -> Example:
        """The example of a rendered chat whose answers are at `spans` (in characters)."""
        cuts = sorted({0, len(text), *(cut for span in spans for cut in span)})
        ids, position = self._tokenized_at(text, cuts)
        labels: list[tuple[int, int]] = []
        for start, end in spans:
            labels.append((position[start], self._end_of_turn(ids, position[start], position[end])))
        last_start, last_end = labels[-1]
        if ids[last_end - 1] not in self._special_ids:
            self._notice("the chat template does not end a turn with a special token; the end-of-text token is added")
            ids = [*ids[:last_end], self._end_id]
            labels[-1] = (last_start, last_end + 1)
        return _example(line, ids, labels, answer_start=last_start)

    def _tokenized_at(self, text: str, cuts: list[int]) -> tuple[list[int], dict[int, int]]:
        """Token ids of `text`, and for each cut (in characters) the token that begins there."""
        ids = self._ids(text, special=False)
        position = {0: 0, len(text): len(ids)}
        for cut in cuts[1:-1]:
            prefix = self._ids(text[:cut], special=False)
            if ids[: len(prefix)] != prefix:
                break
            position[cut] = len(prefix)
        else:
            return ids, position
        ids, position = [], {0: 0}  # a token spans a cut: tokenize piece by piece, as the server does with a prompt
        for start, end in pairwise(cuts):
            ids += self._ids(text[start:end], special=False)
            position[end] = len(ids)
        return ids, position

    def _end_of_turn(self, ids: list[int], start: int, end: int) -> int:
        """The end of a turn's labels: behind its last special token, where only white space follows that."""
        for index in range(end - 1, start - 1, -1):
            if ids[index] in self._special_ids:
                return index + 1
            if str(self._tokenizer.decode([ids[index]])).strip():
                break
        return end

    def _render(self, messages: tuple[Message, ...], *, generation_prompt: bool = False) -> str:
        if not self._tokenizer.chat_template:
            raise TemplateError("the base has no chat template. Use prompt-completion or text rows, or another base.")
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        text = self._tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=generation_prompt
        )
        assert isinstance(text, str)
        return text

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def _ended(self, ids: list[int]) -> list[int]:
        return ids if ids and ids[-1] == self._end_id else [*ids, self._end_id]

    def _notice(self, text: str) -> None:
        if text not in self.notices:
            self.notices.append(text)


def _example(line: int, ids: list[int], labels: list[tuple[int, int]], *, answer_start: int | None) -> Example:
    is_label = np.zeros(len(ids), dtype=np.bool_)
    for start, end in labels:
        is_label[start:end] = True
    is_label[:1] = False
    return Example(line, np.asarray(ids, dtype=np.int32), is_label, answer_start or None)


def _within_limit(
    path: Path, examples: list[Example], section: DataSection, limit_tokens: int
) -> tuple[list[Example], int, int]:
    """Examples of at most `limit_tokens`, how many were cut to that, and how many were left out."""
    long = [example for example in examples if len(example.token_ids) > limit_tokens]
    if long and section.too_long == "error":
        first = long[0]
        raise LongRowError(
            path,
            line=first.line,
            row_tokens=len(first.token_ids),
            limit_tokens=limit_tokens,
            others=len(long) - 1,
        )
    if section.too_long == "drop":
        return [example for example in examples if len(example.token_ids) <= limit_tokens], 0, len(long)
    kept: list[Example] = []
    truncated = 0
    for example in examples:
        if len(example.token_ids) <= limit_tokens:
            kept.append(example)
        elif example.is_label[:limit_tokens].any():
            truncated += 1
            kept.append(
                Example(
                    example.line, example.token_ids[:limit_tokens], example.is_label[:limit_tokens], answer_start=None
                )
            )
    return kept, truncated, len(examples) - len(kept)
