"""The training text of the embedded base: Python's standard library and synthetic chat exercises, as packed rows.

Every row is a function of (seed, step, place), so that a run can stop and go on anywhere. Nothing is downloaded.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from basemodel.embedded.exercises import Conversation, Exercise, converse
from basemodel.embedded.exercises.clock import CLOCK, hour_or_minute, times_in_text
from basemodel.embedded.exercises.coding import CODING, call, record_expression
from basemodel.embedded.exercises.copying import COPYING, repeat_text
from basemodel.embedded.exercises.records import (
    RECORDS,
    by_example,
    by_pattern,
    read_listing,
    row_to_json,
    some_to_json,
    to_json,
)
from basemodel.embedded.exercises.talk import TALK
from basemodel.embedded.tokenizer import ASSISTANT, DOCUMENT, END, PAD, SPECIAL_TOKENS

CORE: tuple[Exercise, ...] = (
    by_pattern, by_pattern, by_pattern, row_to_json, some_to_json, to_json, record_expression, record_expression,
    record_expression, read_listing, call, times_in_text, times_in_text, hour_or_minute, repeat_text, by_example,
)  # fmt: skip
"""What a small base needs most: copying spans into a given form. Half of all exercises."""
EXERCISES = COPYING + RECORDS + CODING + CLOCK + TALK[:1] + 4 * CORE
"""Drawn evenly; the rest of the small talk comes through its own entries."""
LEFT_OUT = frozenset(
    "site-packages test tests idlelib lib2to3 turtledemo ensurepip pydoc_data encodings __pycache__".split()
)
HELD_OUT_ONE_IN = 40
TEXT_SHARE = 0.25
ANSWER_WEIGHT, PROMPT_WEIGHT = 2.0, 0.2


@dataclass(frozen=True)
class Rows:
    """A batch: ids, document numbers and labels [B, T] int64, weights [B, T] float32 (0: nothing to learn)."""

    ids: Tensor
    document: Tensor
    labels: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Texts:
    """Tokens of all documents of one split, each document opened by the document token."""

    tokens: np.ndarray[tuple[int], np.dtype[np.uint16]]

    def row(self, order_seed: int, place: int, tokens: int) -> list[int]:
        """Row number `place` of an endless stream of shuffled epochs, one token longer than asked."""
        rows = (len(self.tokens) - 1) // tokens
        epoch, inside = divmod(place, rows)
        order = np.random.default_rng((order_seed, epoch)).permutation(rows)
        start = int(order[inside]) * tokens
        return [int(token) for token in self.tokens[start : start + tokens + 1]]


def library_documents(held_out: bool) -> list[str]:
    """Sources of the standard library and topics of the language reference; a fixed fortieth of them is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if not LEFT_OUT.intersection(name.parts) and _held_out(name.as_posix()) == held_out:
            documents.append(path.read_text(encoding="utf-8", errors="replace"))
    return documents + [topics[key] for key in sorted(topics) if _held_out(key) == held_out]


def tokenize_documents(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Texts:
    """Documents to one array of token ids."""
    opening = SPECIAL_TOKENS.index(DOCUMENT)
    pieces: list[int] = []
    for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        pieces += [opening, *ids]
    return Texts(np.array(pieces, dtype=np.uint16))


def render(conversation: Conversation) -> str:
    """The conversation as the chat template writes it (a test compares the two)."""
    return "".join(f"<|{message['role']}|>{message['content']}{END}" for message in conversation)


def conversations(seed: int, count: int) -> list[Conversation]:
    """Synthetic conversations; the same seed gives the same ones."""
    rng = Random(seed)  # noqa: S311 (data, not secrets)
    return [converse(rng, TALK if rng.random() < 0.01 else EXERCISES) for _ in range(count)]


class Mixture:
    """Draws batches of library text and chat exercises. Holds no state that a batch depends on."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Texts, seed: int) -> None:
        self.tokenizer = tokenizer
        self.texts = texts
        self.seed = seed

    def batch(self, step: int, rows: int, tokens: int, text_share: float = TEXT_SHARE) -> Rows:
        """The batch of one step: rows of library text first, then rows of packed conversations."""
        text_rows = round(rows * text_share)
        first = step * text_rows
        filled = [_text_row(self.texts.row(self.seed, first + place, tokens)) for place in range(text_rows)]
        rng = Random(f"{self.seed}/{step}")  # noqa: S311 (data, not secrets)
        filled += self._chat_rows(rng, rows - text_rows, tokens)
        columns = [np.stack([row[part] for row in filled]) for part in range(4)]
        ids, document, labels = (torch.from_numpy(column.astype(np.int64)) for column in columns[:3])
        return Rows(ids, document, labels, torch.from_numpy(columns[3].astype(np.float32)))

    def _chat_rows(self, rng: Random, rows: int, tokens: int) -> list[list[np.ndarray]]:
        packed: list[list[list[int]]] = [[] for _ in range(rows)]
        room = [tokens] * rows
        while max(room) > 24:
            drawn = conversations(rng.getrandbits(48), 16)
            for ids in self.tokenizer([render(one) for one in drawn], add_special_tokens=False)["input_ids"]:
                fits = [place for place in range(rows) if room[place] >= len(ids)]
                if not fits:
                    room[room.index(max(room))] -= 4  # gives up a little at a time, so that the loop ends
                    continue
                place = min(fits, key=room.__getitem__)
                packed[place].append(ids)
                room[place] -= len(ids)
        return [_chat_row(documents, tokens) for documents in packed]


def _held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def _text_row(ids: list[int]) -> list[np.ndarray]:
    tokens = np.array(ids)
    opening = SPECIAL_TOKENS.index(DOCUMENT)
    document = np.cumsum(tokens[:-1] == opening)
    return [tokens[:-1], document, tokens[1:], (tokens[1:] != opening).astype(np.float32)]


def _chat_row(documents: list[list[int]], tokens: int) -> list[np.ndarray]:
    ids = np.full(tokens, SPECIAL_TOKENS.index(PAD))
    document = np.full(tokens, len(documents))
    labels, weights = np.zeros(tokens), np.zeros(tokens)
    start = 0
    for number, piece in enumerate(documents):
        end = start + len(piece)
        ids[start:end], document[start:end] = piece, number
        labels[start : end - 1], weights[start : end - 1] = piece[1:], _chat_weights(piece)
        start = end
    return [ids, document, labels, weights]


def _chat_weights(ids: list[int]) -> list[float]:
    """The weight of each label: answers with their end token count more than prompts."""
    answering, weights = False, []
    for token in ids[:-1]:
        if token == SPECIAL_TOKENS.index(ASSISTANT):
            answering = True
        elif token == SPECIAL_TOKENS.index(END):
            answering = False
        weights.append(ANSWER_WEIGHT if answering else PROMPT_WEIGHT)
    return weights
