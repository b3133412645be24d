"""JSON as servers and clients really send it: what orjson and msgspec refuse is read too, and nothing that leaves is
broken."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.json import Halves, decode_json, encode_json, has_half, whole_text
from tests.test_laws import law

ODD: dict[bytes, Any] = {
    b'\xef\xbb\xbf{"a":1}': {"a": 1},
    b' \r\n{"a":1}\n': {"a": 1},
    b'{"a":NaN,"b":-Infinity,"c":Infinity,"d":1e999,"e":1}': {"a": None, "b": None, "c": None, "d": None, "e": 1},
    b'{"a":18446744073709551617}': {"a": 2**64 + 1},
    b'{"a":%b}' % (b"9" * 400): {"a": 10**400 - 1},
    b'{"a":%b,"b":1}' % (b"9" * 5000): {"a": None, "b": 1},
    b'{"a":"x\ny\t"}': {"a": "x\ny\t"},
    rb'{"a":"\ud83d"}': {"a": "\ufffd"},
    rb'{"a":"\ude00 \ud83d\ude00"}': {"a": "\ufffd 😀"},
    rb'{"\ud83d":1}': {"\ufffd": 1},
    b'{"a":"\xf0\x9f"}': {"a": "\ufffd"},
    b'{"\xe9":"caf\xe9"}': {"\ufffd": "caf\ufffd"},
    b'["NaN", NaN]': ["NaN", None],
    b'{"a":1,"a":2}': {"a": 2},
}


@pytest.mark.parametrize(("data", "value"), ODD.items(), ids=range(len(ODD)))
def test_odd_json_is_read(data: bytes, value: Any) -> None:
    assert decode_json(data) == value


@pytest.mark.parametrize(
    "data", [b"", b" ", b"{", b'{"a":1} x', b"{'a':1}", b"<html>", b'{"a":01}', b"[" * 100_000, "nothing"]
)
def test_what_is_no_json_is_an_error(data: bytes | str) -> None:
    with pytest.raises(ValueError):
        decode_json(data)


# Everything that a JSON text can hold, halves of characters included.
any_text = st.text(st.characters(), max_size=12)
any_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@law
@given(any_value)
def test_whatever_python_writes_is_read_and_can_be_sent_on(value: Any) -> None:
    read = decode_json(json.dumps(value))
    sent = encode_json(read)
    assert json.loads(sent) == read
    sent.decode()
    assert decode_json(sent) == read


@law
@given(any_value)
def test_whatever_is_sent_is_utf_8_and_has_no_half_of_a_character(value: Any) -> None:
    sent = encode_json(value)
    assert not has_half(str(json.loads(sent)))


@law
@given(any_value)
def test_what_the_fast_encoder_takes_is_encoded_by_it(value: Any) -> None:
    try:
        quickly = orjson.dumps(value)
    except TypeError:
        return
    assert encode_json(value) == quickly


@law
@given(st.recursive(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.lists, max_leaves=8))
def test_numbers_stay_what_they_are(value: Any) -> None:
    read = decode_json(json.dumps(value))
    assert read == value
    assert decode_json(encode_json(read)) == value


def test_what_is_nested_deeper_than_the_fast_encoder_takes_is_encoded_too() -> None:
    deep = b"[" * 300 + b"]" * 300
    assert encode_json(decode_json(deep)) == deep
    for _ in range(100_000):
        deep = [deep]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="too deep"):
        encode_json(deep)


@law
@given(any_text)
def test_a_whole_text_is_utf_8_and_is_left_alone(text: str) -> None:
    whole = whole_text(text)
    assert whole.encode().decode() == whole == whole_text(whole)
    if not has_half(text):
        assert whole == text


@law
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.data())
def test_a_text_that_is_cut_within_its_characters_is_joined(text: str, data: st.DataObject) -> None:
    """In its bytes, and in its UTF-16 halves, as servers cut them that escape each token alone."""
    in_bytes = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(in_bytes)), max_size=6)))
    pieces = [in_bytes[start:end] for start, end in zip([0, *cuts], [*cuts, len(in_bytes)], strict=True)]
    joined = Halves()
    whole = [joined.feed(piece.decode(errors="surrogateescape")) for piece in pieces]
    assert "".join(whole) + joined.flush() == text

    units = json.dumps(text)[1:-1]
    halves = json.loads(f'"{units}"') if not text else "".join(_halves(text))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(halves)), max_size=6)))
    joined = Halves()
    whole = [joined.feed(halves[start:end]) for start, end in zip([0, *cuts], [*cuts, len(halves)], strict=True)]
    assert "".join(whole) + joined.flush() == text


def _halves(text: str) -> list[str]:
    """The text in UTF-16 units, each a character to Python."""
    units = text.encode("utf-16-le")
    return [chr(int.from_bytes(units[at : at + 2], "little")) for at in range(0, len(units), 2)]


@law
@given(st.lists(any_text, max_size=6))
def test_whatever_comes_in_pieces_is_whole_text(pieces: list[str]) -> None:
    joined = Halves()
    whole = [*map(joined.feed, pieces), joined.flush()]
    assert all(text.encode() or not text for text in whole)
    assert joined.held == ""


def test_half_a_character_waits_for_no_more_than_the_next_text() -> None:
    joined = Halves()
    assert joined.feed("ok \ud83d") == "ok "
    assert joined.feed("\ude00 yes") == "😀 yes"
    assert joined.feed("\ud83d") == ""
    assert joined.feed("no") == "\ufffdno"
    assert joined.feed("\udcf0\udc9f\udc98") == ""
    assert joined.feed("\udc80") == "😀"
    assert joined.feed("\udcf0") == ""
    assert joined.flush() == "\ufffd"


def test_infinities_in_a_number_are_none() -> None:
    assert decode_json(b"[1e308, 1e309]") == [1e308, None]
    assert not math.isinf(decode_json(b"[-1e308]")[0])
