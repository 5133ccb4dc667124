from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import InvalidNameError
from registry.names import (
    ADAPTER_CHARACTERS,
    ALIAS_CHARACTERS,
    RESERVED_TENANTS,
    TENANT_CHARACTERS,
    AdapterName,
    AdapterRef,
    Digest,
    parse_alias,
    parse_tenant,
)

HEX64 = "0123456789abcdef" * 4
WORDS = st.text(string.ascii_lowercase, min_size=1, max_size=12)
NAMES = st.lists(WORDS, min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from("._-").map(lambda by: by.join(words))
)
TENANTS = WORDS.filter(lambda name: name not in RESERVED_TENANTS)


@given(TENANTS, NAMES)
def test_an_adapter_name_is_printed_as_it_was_written(tenant: str, name: str) -> None:
    assert str(AdapterName.parse(f"{tenant}/{name}")) == f"{tenant}/{name}"


@given(
    TENANTS,
    NAMES,
    st.one_of(
        st.none(),
        st.integers(1, 999_999_999).map(str),
        WORDS,
        st.text("0123456789abcdef", min_size=12, max_size=64).map(lambda digits: f"sha256:{digits}"),
    ),
)
def test_a_reference_is_printed_as_it_was_written(tenant: str, name: str, selector: str | None) -> None:
    text = f"{tenant}/{name}" + ("" if selector is None else f"@{selector}")
    ref = AdapterRef.parse(text)
    assert str(ref) == text
    assert ref.is_bare == (selector is None)


@given(st.text())
def test_any_text_is_a_reference_or_an_invalid_name_and_never_a_path(text: str) -> None:
    try:
        ref = AdapterRef.parse(text)
    except InvalidNameError:
        return
    assert str(ref) == text
    assert ".." not in text
    assert set(text) <= set(string.ascii_lowercase + string.digits + "/._-@:")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("text2sql", "TENANT/NAME"),
        ("acme/text2sql/x", "TENANT/NAME"),
        ("/text2sql", "1 to 40"),
        ("acme/", "1 to 96"),
        ("Acme/text2sql", "a-z"),
        ("acme/Text2SQL", "a-z"),
        ("acme/..", "letter or digit"),
        ("acme/a..b", "'..'"),
        ("acme/a--b", "'--'"),
        ("ac--me/a", "single '-'"),
        ("acme-/a", "letter or digit"),
        ("acme/a.git", ".git"),
        ("acme/sql.at.prod", ".at."),
        ("acme/a.", "letter or digit"),
        ("acme/a\n", "a-z"),
        ("acme/\uff41", "a-z"),
        ("api/a", "reserved"),
        ("operator/a", "reserved"),
        ("a" * (TENANT_CHARACTERS + 1) + "/a", "1 to 40"),
        ("acme/" + "a" * (ADAPTER_CHARACTERS + 1), "1 to 96"),
    ],
)
def test_an_adapter_name_outside_the_grammar_names_the_rule(text: str, rule: str) -> None:
    with pytest.raises(InvalidNameError, match=r"is not an? (adapter|tenant) name") as caught:
        AdapterName.parse(text)
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("acme/a@", "begins with a letter"),
        ("acme/a@0", "versions are 1, 2, 3"),
        ("acme/a@01", "versions are 1, 2, 3"),
        ("acme/a@1x", "versions are 1, 2, 3"),
        ("acme/a@1234567890", "versions are 1, 2, 3"),
        ("acme/a@-1", "begins with a letter"),
        ("acme/a@Prod", "begins with a letter"),
        ("acme/a@a..b", "begins with a letter"),
        ("acme/a@b@c", "begins with a letter"),
        ("acme/a@sha256:abc", "12 to 64"),
        (f"acme/a@sha256:{HEX64}0", "12 to 64"),
        ("acme/a@sha256:" + "G" * 12, "12 to 64"),
        ("sha256:abcdefabcdef", "64 digits"),
        (f"sha256:{HEX64.upper()}", "64 digits"),
        (f"sha256:{HEX64}@1", "64 digits"),
        ("a" * 300, "256 characters"),
        ("acme/a@" + "a" * (ALIAS_CHARACTERS + 1), "begins with a letter"),
    ],
)
def test_a_reference_outside_the_grammar_names_the_rule(text: str, rule: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        AdapterRef.parse(text)
    assert rule in caught.value.rule


def test_the_longest_names_are_taken() -> None:
    AdapterName.parse("a" * TENANT_CHARACTERS + "/" + "a" * ADAPTER_CHARACTERS)
    assert parse_tenant("a-b-c") == "a-b-c"
    assert parse_alias("v1.2_rc-3") == "v1.2_rc-3"


def test_a_digest_holds_its_digits() -> None:
    assert Digest.parse(f"sha256:{HEX64}").hex == HEX64
    assert str(Digest(HEX64)) == f"sha256:{HEX64}"


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidNameError) as caught:
        AdapterRef.parse("x" * 100_000)
    assert len(str(caught.value)) < 300
