"""JSON that clients and models write: strictly JSON, bounded in depth, and read where only half a character is wrong
with it."""

from __future__ import annotations

import gc
import re
from typing import Any

import msgspec
import orjson

from core.errors import InvalidRequest
from core.json import decode_json

# orjson writes 254 levels, and what comes in is put into other JSON here, which makes it a few levels deeper.
MAX_DEPTH = 200
# What is no longer has no room for brackets enough.
SHALLOW = 2 * MAX_DEPTH
# To count the brackets of a short text takes less time than to look at what was read, of a long one more.
SHORT = 8192

# Integers of any size stay integers, where orjson makes floats of those beyond 64 bits.
_read = msgspec.json.Decoder().decode

# There may be so many values for each item that there may be: an item has ten, or some parts.
MAX_ITEMS, VALUES_PER_ITEM = 10_000, 25
# What is no longer has no room for more.
LARGE = 2 * VALUES_PER_ITEM * MAX_ITEMS
# What an answer with the log probabilities of some thousand tokens holds; of more, gigabytes would be made.
MOST_ANSWERED = 2_000_000
# It is looked at in pieces: of most that hold too much, the first is enough.
PIECE = 1024 * 1024

BOM = b"\xef\xbb\xbf"
# Every escape, so that a backslash behind a backslash begins none: a pair of surrogates, half of one, any other.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


class TooDeep(InvalidRequest):
    code = "invalid_json"

    def __init__(self, what: str = "body") -> None:
        super().__init__(f"The {what} is nested too deeply: {MAX_DEPTH} levels are the limit.")


class TooManyValues(InvalidRequest):
    code = "too_many_values"

    def __init__(self, most: int, what: str) -> None:
        super().__init__(f"The {what} holds more than {most} values.")


def check_values(text: bytes, what: str = "body", max_items: int = MAX_ITEMS) -> None:
    """Raises `TooManyValues` for far more values than so many items hold, before anything is made of a text: empty
    lists would take forty times its room, and seconds."""
    most = VALUES_PER_ITEM * max_items
    if len(text) > LARGE and _begun_in(text) >= most and values_in(text, most) > most:
        raise TooManyValues(most, what)


def has_too_many_values(answer: bytes) -> bool:
    """Whether the JSON of an answer holds far more values than any does."""
    return len(answer) > 2 * MOST_ANSWERED and values_in(answer, MOST_ANSWERED) > MOST_ANSWERED


def values_in(text: bytes, most: int) -> int:
    """How many values JSON holds, its empty lists and objects twice; counted no further than past `most`."""
    count, begin, is_inside = 1, 0, False
    while begin < len(text) and count <= most:
        piece = text[begin : begin + PIECE]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # An escape is not cut in two.
            piece = text[begin : begin + PIECE + 1]
        begin += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        # Every second one is inside of a string.
        count += _begun_in(b"".join(parts[is_inside::2]))
        is_inside ^= len(parts) % 2 == 0
    return count


def _begun_in(text: bytes) -> int:
    """How many values begin behind the first one, if none of it is in a string."""
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def decode_bounded(text: bytes, what: str = "body", max_items: int = MAX_ITEMS) -> Any:
    """JSON as Python has it. Raises `TooDeep` past `MAX_DEPTH` levels, `TooManyValues` for far more than so many items
    hold, `InvalidRequest` for what is no JSON; `what` it is, for the message."""
    if len(text) > LARGE:
        check_values(text, what, max_items)
    try:
        return _decode(text, what)
    except orjson.JSONDecodeError as error:
        if (mended := mend(text)) is not None:
            return decode_bounded(mended, what, max_items)
        problem = f"is not JSON: {error}" if text.strip() else "is empty"
        raise InvalidRequest(f"The {what} {problem}.", code="invalid_json") from None


def check_bounds(text: bytes, what: str = "body", max_items: int = MAX_ITEMS) -> None:
    """Raises `TooDeep` and `TooManyValues` as `decode_bounded` does, and nothing else."""
    check_values(text, what, max_items)
    if _may_be_deep(text):
        try:
            _decode(text, what)
        except orjson.JSONDecodeError:
            return


def _decode(text: bytes, what: str) -> Any:
    try:
        value = _read(text)
    except RecursionError:
        raise TooDeep(what) from None
    except (msgspec.MsgspecError, ValueError):
        value = orjson.loads(text)  # It names the place that is wrong.
    if _may_be_deep(text) and _is_deep(value):
        raise TooDeep(what)
    return value


def _may_be_deep(text: bytes) -> bool:
    """Whether a text has brackets enough to be too deep."""
    length = len(text)
    return length > SHALLOW and (length > SHORT or text.count(b"[") + text.count(b"{") > MAX_DEPTH)


def _is_deep(value: object) -> bool:
    """Whether a JSON value has more than `MAX_DEPTH` levels of lists and objects. Level by level, and none of it in
    Python: what has nothing inside that has an inside, the garbage collector does not track."""
    level = [value]
    for _ in range(MAX_DEPTH - 1):
        level = [*filter(gc.is_tracked, gc.get_referents(*level))]
        if not level:
            return False
    return any(isinstance(inner, dict | list) for inner in gc.get_referents(*level))


def mend(text: bytes) -> bytes | None:
    """A text without what makes it no JSON although all the rest of it can be read: a byte order mark in front, halves
    of surrogate pairs. These are what is left of an emoji where somebody has cut a text in two: joined to their other
    half, else U+FFFD. None where nothing of that kind is wrong with it."""
    mended = text.removeprefix(BOM)
    if b"\\ud" in mended or b"\\uD" in mended:
        mended = _ESCAPE.sub(lambda escape: rb"\ufffd" if escape["half"] else escape[0], mended)
    if b"\xed" in mended:
        try:
            units = mended.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass")
        except UnicodeDecodeError:
            return None
        mended = units.decode("utf-16-le", "replace").encode()
    return None if mended == text else mended


def json_or_none(body: bytes) -> Any:
    """The value that a body holds as JSON, or None, also where it holds far too many."""
    if has_too_many_values(body):
        return None
    try:
        return decode_json(body)
    except ValueError:
        return None
