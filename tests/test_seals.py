"""What we seal, we alone can open; anything else is None, and never an error."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st

from core.seals import Sealer

SEALER = Sealer("a key")
texts = st.text(max_size=200).filter(lambda text: text.isascii() or text.encode(errors="ignore").decode() == text)


@given(texts)
def test_what_was_sealed_can_be_opened(text: str) -> None:
    assert SEALER.open(SEALER.seal(text)) == text


@given(texts, st.text(min_size=1, max_size=20).filter(lambda key: key.isascii()))
def test_every_router_with_the_key_can_open_it(text: str, key: str) -> None:
    assert Sealer(key).open(Sealer(key).seal(text)) == text


def test_a_router_with_another_key_cannot() -> None:
    assert Sealer("another key").open(SEALER.seal("secret")) is None


def test_nobody_can_read_it() -> None:
    sealed = SEALER.seal("Hippopotamonstrosesquippedalian" * 10)
    assert "Hippo" not in sealed
    assert b"Hippo" not in base64.urlsafe_b64decode(sealed)
    assert sealed.isascii()
    assert sealed.isprintable(), "it travels in JSON, and through every client"


def test_the_same_text_is_sealed_differently_every_time() -> None:
    assert SEALER.seal("secret") != SEALER.seal("secret")


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    raw = bytearray(base64.urlsafe_b64decode(SEALER.seal("secret")))
    raw[place % len(raw)] ^= change
    assert SEALER.open(base64.urlsafe_b64encode(raw).decode()) is None


@given(st.text(max_size=200))
def test_what_others_sealed_is_none(sealed: str) -> None:
    assert SEALER.open(sealed) is None


def test_a_part_of_it_is_none() -> None:
    sealed = SEALER.seal("secret")
    assert SEALER.open(sealed[:-4]) is None
    assert SEALER.open(sealed[4:]) is None
    assert SEALER.open("") is None
