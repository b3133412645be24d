"""JSON as servers and clients really send it.

    decode_json(data)   quickly where it is JSON; else as Python's own module reads it, and mended
    encode_json(value)  quickly where the fast encoder takes it; else slowly, with integers of any size
    whole_text(text)    characters whose halves are side by side are joined, other halves become U+FFFD
    Halves              the same for a text that arrives in pieces

RFC 8259 leaves it open what becomes of large numbers and of half a surrogate pair: integers stay integers here, and no
half of a character reaches anybody.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
import orjson

# An object, whose values may be anything that JSON has.
Json = dict[str, Any]

TOO_DEEP = "The JSON is nested too deep."

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode

_HALF = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# Bytes that are no UTF-8, as Python's `surrogateescape` spells them: 0x80 is U+DC80.
_BYTES = re.compile("[\udc80-\udcff]+")
# What may still become a character: the first half of a pair, or the first bytes of a sequence.
_BEGUN = re.compile(
    "(?<![\ud800-\udbff])(?:[\ud800-\udbff]|[\udcc2-\udcf4]|[\udce0-\udcf4][\udc80-\udcbf]|[\udcf0-\udcf4][\udc80-\udcbf]{2})\\Z"
)


def decode_json(data: bytes | str) -> Any:
    """The value in `data`. Python's NaN and infinities, and numbers too large for a float, are None; a byte order mark,
    bytes that are no UTF-8 and control characters in a text are forgiven. Raises `ValueError` for what is not JSON, and
    for what is nested too deep."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = decode_json_halves(data)
    try:
        return whole_value(value)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def decode_json_halves(data: bytes | str) -> Any:
    """`decode_json`, the slow way, and with halves of characters left as they are: for texts that go on elsewhere."""
    text = data.decode(errors="surrogateescape") if isinstance(data, bytes) else data
    try:
        return _READER.decode(text.removeprefix("\ufeff").strip())
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def encode_json(value: object) -> bytes:
    """The value as JSON, in UTF-8. Raises `ValueError` for what is nested too deep."""
    try:
        return orjson.dumps(value)
    except TypeError:  # Integers of more than 64 bits, more than 254 levels, half a character.
        pass
    try:
        try:
            return _encode(value)
        except UnicodeError:
            return _encode(whole_value(value))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def whole_value(value: object) -> Any:
    """The JSON value with all its texts whole."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        return [whole_value(inner) for inner in value]
    if isinstance(value, dict):
        return {whole_text(key): whole_value(inner) for key, inner in value.items()}
    return value


def whole_text(text: str) -> str:
    """The text as UTF-8 can have it."""
    if _HALF.search(text) is None:
        return text
    text = _PAIR.sub(_joined, text)
    text = _BYTES.sub(lambda found: found[0].encode(errors="surrogateescape").decode(errors="replace"), text)
    return _HALF.sub("\ufffd", text)


class Halves:
    """Joins the characters of a text that is cut within them: `feed` gives what is whole, `flush` what never became
    so."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = ""

    def feed(self, text: str) -> str:
        """The text as far as its characters are whole; what has only begun is held."""
        text = self.held + text
        begun = _BEGUN.search(text)
        end = begun.start() if begun else len(text)
        self.held = text[end:]
        return whole_text(text[:end])

    def flush(self) -> str:
        """What is held, when no more comes: U+FFFD for what is no character by itself."""
        held, self.held = self.held, ""
        return whole_text(held)


def has_half(text: str) -> bool:
    """Whether there is half a character in the text."""
    return _HALF.search(text) is not None


def _joined(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16", "surrogatepass").decode("utf-16")


def _integer(digits: str) -> int | None:
    try:
        return int(digits)
    except ValueError:  # Python reads no more than 4,300 digits.
        return None


def _number(spelled: str) -> float | None:
    number = float(spelled)
    return number if math.isfinite(number) else None


_READER = json.JSONDecoder(strict=False, parse_int=_integer, parse_float=_number, parse_constant=lambda _: None)
