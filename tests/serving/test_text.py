"""Tokens to text: the detokenizer, stop strings and the transcript, against whole-text decoding."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.detokenizer import Detokenizer
from serving.errors import BaseFolderError, InvalidFieldError
from serving.messages import TokenLogprob
from serving.stop_strings import StopStrings
from serving.tokenization import Tokenization
from serving.transcript import Transcript
from tests.serving.byte_base import FIRST_BYTE, to_ids, write_byte_base

CHARACTERS = st.text(alphabet="ab .é€🙂\n", max_size=20)


@pytest.fixture(scope="module")
def tokenization(byte_base: Path) -> Tokenization:
    return Tokenization.load(byte_base)


@given(data=st.binary(max_size=30))
def test_pieces_make_up_the_whole_text(tokenization: Tokenization, data: bytes) -> None:
    token_ids = [FIRST_BYTE + byte for byte in data]
    detokenizer = Detokenizer(tokenization.decode)
    pieces = [detokenizer.add(token_id) for token_id in token_ids]
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == tokenization.decode(token_ids) == data.decode(errors="replace")


@given(text=CHARACTERS)
def test_valid_text_never_shows_a_replacement(tokenization: Tokenization, text: str) -> None:
    detokenizer = Detokenizer(tokenization.decode)
    pieces = [detokenizer.add(token_id) for token_id in tokenization.encode(text)]
    assert "".join(pieces) == text
    assert not detokenizer.finish()


def test_bytes_that_are_no_text_are_given_up(tokenization: Tokenization) -> None:
    detokenizer = Detokenizer(tokenization.decode)
    shown = "".join(detokenizer.add(FIRST_BYTE + 0x80) for _ in range(200))
    assert len(shown) > 100


def test_special_tokens_have_no_text(tokenization: Tokenization) -> None:
    detokenizer = Detokenizer(tokenization.decode)
    assert [detokenizer.add(token_id) for token_id in [0, *to_ids("a"), 1, *to_ids("b")]] == ["", "a", "", "b"]
    assert not detokenizer.is_waiting


@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=0, max_size=3),
)
def test_stop_strings_cut_where_the_whole_text_has_them(pieces: list[str], stops: list[str]) -> None:
    watch = StopStrings(stops)
    shown = ""
    fed = ""
    for piece in pieces:
        fed += piece
        shown += watch.add(piece)
        if watch.found:
            break
    shown += "" if watch.found else watch.finish()
    cuts = [fed.find(stop) for stop in stops if stop in fed]
    assert shown == (fed[: min(cuts)] if cuts else fed)
    assert watch.found == bool(cuts)


@given(text=CHARACTERS, stops=st.lists(st.sampled_from(["b", "é", "ab", " 🙂", "\n\n"]), max_size=2))
def test_a_transcript_shows_the_text_before_the_stop_and_its_tokens(
    tokenization: Tokenization, text: str, stops: list[str]
) -> None:
    transcript = Transcript(tokenization.decode, stops)
    shown, tokens = "", []
    for token_id in tokenization.encode(text):
        passage = transcript.add([token_id], [TokenLogprob(token_id, -1.0, [])])
        shown += passage.text
        tokens += passage.tokens
        # Never more tokens than text: a token of text that is held back is held back too.
        assert len(tokenization.decode([token.logprob.token_id for token in tokens])) <= len(shown)
        if transcript.is_stopped:
            break
    else:
        passage = transcript.finish()
        shown += passage.text
        tokens += passage.tokens
    cuts = [text.find(stop) for stop in stops if stop in text]
    assert shown == (text[: min(cuts)] if cuts else text)
    assert tokenization.decode([token.logprob.token_id for token in tokens]) == shown
    assert [token.offset for token in tokens] == sorted(token.offset for token in tokens)


def test_token_texts(tokenization: Tokenization) -> None:
    assert tokenization.token_text(FIRST_BYTE + ord(" ")) == " "
    assert tokenization.token_text(FIRST_BYTE + 0xE2) == "bytes:\\xe2"
    assert tokenization.token_bytes(FIRST_BYTE + 0xE2) == b"\xe2"
    assert tokenization.token_text(0) == "<|end|>"


def test_a_base_without_a_tokenizer_or_template(tmp_path: Path) -> None:
    with pytest.raises(BaseFolderError, match=r"tokenizer\.json of the base is missing"):
        Tokenization.load(tmp_path)
    folder = write_byte_base(tmp_path / "base")
    (folder / "tokenizer_config.json").unlink()
    assert not Tokenization.load(folder).has_chat_template
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(BaseFolderError, match="cannot be compiled"):
        Tokenization.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(BaseFolderError, match="cannot be read"):
        Tokenization.load(folder)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% set ns = namespace(a=1) %}{% set ns.__class__ = 1 %}",
        "{% for i in range(10000000) %}x{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, tokenization: Tokenization, source: str) -> None:
    folder = write_byte_base(tmp_path / "base")
    (folder / "chat_template.jinja").write_text(source)
    try:
        prompt = tokenization.decode(Tokenization.load(folder).encode_chat([{"role": "user", "content": "x"}]))
    except InvalidFieldError:
        return
    assert prompt == ""
