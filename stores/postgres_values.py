"""Values as PostgreSQL takes and gives them, in its binary form.

text      UTF-8. It has no NUL, and no half of a character: a text with one of these is kept as \\x01 and its
          hexadecimal digits
bytea     the bytes
bigint    eight bytes
x[]       a header, and each value behind its length
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from struct import Struct

Scalar = str | bytes | int | float | None
Parameter = Scalar | Sequence[Scalar]

# The number of dimensions, whether there are nulls, the type, how many there are, and the first index.
_HEADER = Struct("!iiiii").pack
_EMPTY = Struct("!iii").pack
_LENGTH = Struct("!i").pack
_INTEGER = Struct("!q")
_FLOAT = Struct("!d")
_NULL = _LENGTH(-1)
_ESCAPE = "\x01"


def encode_text(text: str) -> bytes:
    """A text of any characters, as a text of the database."""
    if "\0" not in text and text[:1] != _ESCAPE:
        try:
            return text.encode()
        except UnicodeEncodeError:
            pass
    return f"{_ESCAPE}{text.encode(errors='surrogatepass').hex()}".encode()


def decode_text(value: bytes) -> str:
    """The text that `encode_text` was given."""
    text = value.decode()
    return bytes.fromhex(text[1:]).decode(errors="surrogatepass") if text[:1] == _ESCAPE else text


def decode_integer(value: bytes) -> int:
    """The number in a `bigint`."""
    number: int = _INTEGER.unpack(value)[0]
    return number


def decode_float(value: bytes) -> float:
    """The number in a `float8`."""
    number: float = _FLOAT.unpack(value)[0]
    return number


def encode_parameters(sql: str, values: Sequence[Parameter]) -> list[bytes | None]:
    """The values of a statement, of the types that it gives them (`$1::text`, `$2::bytea[]`). Raises `TypeError` for
    one of another type."""
    return [encode(value) for encode, value in zip(_encoders(sql), values, strict=True)]


@cache
def _encoders(sql: str) -> list[Callable[[object], bytes | None]]:
    types = {int(number): (type_, bool(array)) for number, type_, array in _PARAMETER.findall(sql)}
    assert sorted(types) == [*range(1, len(types) + 1)], f"a parameter without a type: {sql}"
    return [_of_array(type_) if is_array else _SCALARS[type_] for _, (type_, is_array) in sorted(types.items())]


def _of_array(type_: str) -> Callable[[object], bytes]:
    number, encode = _NUMBERS[type_], _SCALARS[type_]

    def encode_array(values: object) -> bytes:
        if not isinstance(values, list | tuple):
            raise _wrong(values)
        if not values:
            return _EMPTY(0, 0, number)
        parts = [_HEADER(1, 1, number, len(values), 1)]
        for value in values:
            encoded = encode(value)
            parts += (_NULL,) if encoded is None else (_LENGTH(len(encoded)), encoded)
        return b"".join(parts)

    return encode_array


def _text(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _wrong(value)
    return encode_text(value)


def _bytea(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    raise _wrong(value)


def _bigint(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, int):
        raise _wrong(value)
    return _INTEGER.pack(value)


def _float(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise _wrong(value)
    return _FLOAT.pack(value)


def _wrong(value: object) -> TypeError:
    return TypeError(f"{type(value).__name__} is no value of this type of the database")


_PARAMETER = re.compile(r"\$(\d+)::(text|bytea|bigint|float8)(\[\])?")
_SCALARS: dict[str, Callable[[object], bytes | None]] = {
    "text": _text,
    "bytea": _bytea,
    "bigint": _bigint,
    "float8": _float,
}
_NUMBERS = {"text": 25, "bytea": 17, "bigint": 20, "float8": 701}
