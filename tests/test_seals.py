"""What we seal, we alone can open; anything else is None, and never an error."""

from __future__ import annotations

import base64
import hashlib
from typing import get_args

from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from core.seals import MOST_OWNERS, Purpose, Sealer, is_ours

SEALER = Sealer("a key")
texts = st.text(max_size=200).filter(lambda text: text.isascii() or text.encode(errors="ignore").decode() == text)


@given(texts)
def test_what_was_sealed_can_be_opened(text: str) -> None:
    assert SEALER.open(SEALER.seal(text, "reasoning"), "reasoning") == text


@given(texts, st.text(min_size=1, max_size=20).filter(lambda key: key.isascii()))
def test_every_router_with_the_key_can_open_it(text: str, key: str) -> None:
    assert Sealer(key).open(Sealer(key).seal(text, "reasoning"), "reasoning") == text


def test_a_router_with_another_key_cannot() -> None:
    assert Sealer("another key").open(SEALER.seal("secret", "reasoning"), "reasoning") is None


def test_nobody_can_read_it() -> None:
    sealed = SEALER.seal("Hippopotamonstrosesquippedalian" * 10, "reasoning")
    assert "Hippo" not in sealed
    assert b"Hippo" not in base64.urlsafe_b64decode(sealed)
    assert sealed.isascii()
    assert sealed.isprintable(), "it travels in JSON, and through every client"


def test_the_same_text_is_sealed_differently_every_time() -> None:
    assert SEALER.seal("secret", "reasoning") != SEALER.seal("secret", "reasoning")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(SEALER.seal("secret", "reasoning")))
    raw[place % len(raw)] ^= change
    assert SEALER.open(base64.urlsafe_b64encode(raw).decode(), "reasoning") is None


@given(st.text(max_size=200))
def test_what_others_sealed_is_none(sealed: str) -> None:
    assert SEALER.open(sealed, "reasoning") is None


def test_a_part_of_it_is_none() -> None:
    sealed = SEALER.seal("secret", "reasoning")
    assert SEALER.open(sealed[:-4], "reasoning") is None
    assert SEALER.open(sealed[4:], "reasoning") is None
    assert SEALER.open("", "reasoning") is None


PURPOSES = st.sampled_from(get_args(Purpose))


@given(texts, PURPOSES, PURPOSES)
def test_what_was_sealed_for_one_purpose_opens_for_no_other(text: str, purpose: Purpose, other: Purpose) -> None:
    assert SEALER.open(SEALER.seal(text, purpose), other) == (text if purpose == other else None)


@given(texts, PURPOSES)
def test_what_was_sealed_before_there_were_purposes_stays_readable(text: str, purpose: Purpose) -> None:
    old = Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"a key").digest())).encrypt(text.encode()).decode()
    assert SEALER.open(old, purpose) == (None if purpose == "session" else text), "there were no sessions then"
    assert not is_ours(old), "it cannot be kept apart from what others seal"


def test_ours_are_known_whatever_the_key() -> None:
    assert is_ours(Sealer("another key").seal("secret", "compaction"))
    assert not is_ours("gAAAAABforeign")
    assert not is_ours(None)


def test_without_its_beginning_it_is_none() -> None:
    sealed = SEALER.seal("secret", "reasoning")
    for purpose in get_args(Purpose):
        assert SEALER.open(sealed[8:], purpose) is None


owners = st.sampled_from(["", "ann", "bob", "reasoning", "\0ann"])


@given(owners, owners, st.sampled_from(get_args(Purpose)), st.sampled_from(get_args(Purpose)))
def test_what_was_sealed_for_an_owner_opens_for_that_owner_and_purpose_alone(
    owner: str, other: str, purpose: Purpose, another: Purpose
) -> None:
    sealed = SEALER.of(owner).seal("text", purpose)
    opened = Sealer("a key").of(other).open(sealed, another)
    assert opened == ("text" if (owner, purpose) == (other, another) else None)
    assert is_ours(sealed)


def test_what_is_older_than_owners_opens_for_who_has_none_alone() -> None:
    older = SEALER.seal("text", "reasoning")
    key = base64.urlsafe_b64encode(hashlib.sha256(b"a key").digest())
    oldest = Fernet(key).encrypt(b"text").decode()
    for sealed in (older, oldest):
        assert SEALER.of("").open(sealed, "reasoning") == "text"
        assert SEALER.of("ann").open(sealed, "reasoning") is None


def test_any_number_of_owners_has_a_sealer_and_few_are_kept() -> None:
    sealer = Sealer("a key")
    sealed = sealer.of("first").seal("text", "reasoning")
    for number in range(3 * MOST_OWNERS):
        sealer.of(f"owner {number}")
    assert sealer.of("first").open(sealed, "reasoning") == "text"
    assert len(sealer._others) <= MOST_OWNERS
