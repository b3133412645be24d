"""JSON that clients and models write: strictly JSON, bounded in depth, and read where only half a character is wrong
with it."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson

from core.errors import InvalidRequest

# orjson writes 254 levels and reads 1024. What comes in is put into other JSON here, which makes it a few levels
# deeper.
MAX_DEPTH = 200
READ_DEPTH = 1024
# What is no longer has no room for brackets enough.
SHALLOW = 2 * MAX_DEPTH
# To count the brackets of a short text costs next to nothing, of a long one more than to wrap it.
SHORT = 8192
# Inside so many levels more, orjson itself refuses what is too deep.
_OPEN, _CLOSE = (bracket * (READ_DEPTH - MAX_DEPTH) for bracket in (b"[", b"]"))

# Integers of any size stay integers. orjson, by which longer texts are read, makes floats of those beyond 64 bits.
_read = msgspec.json.Decoder().decode

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


def decode_bounded(text: bytes, what: str = "body") -> Any:
    """JSON as Python has it. Raises `TooDeep` past `MAX_DEPTH` levels, `InvalidRequest` for what is no JSON; `what` it
    is, for the message."""
    try:
        return _decode(text, what)
    except orjson.JSONDecodeError as error:
        if (mended := mend(text)) is not None:
            return decode_bounded(mended, what)
        problem = f"is not JSON: {error}" if text.strip() else "is empty"
        raise InvalidRequest(f"The {what} {problem}.", code="invalid_json") from None


def check_depth(text: bytes, what: str = "body") -> None:
    """Raises `TooDeep` past `MAX_DEPTH` levels, and nothing else."""
    if _may_be_deep(text):
        try:
            _decode(text, what)
        except orjson.JSONDecodeError:
            return


def _decode(text: bytes, what: str) -> Any:
    if len(text) <= SHALLOW or not _may_be_deep(text):
        try:
            return _read(text)
        except (msgspec.MsgspecError, ValueError):  # orjson names the place that is wrong.
            return orjson.loads(text)
    try:
        value = orjson.loads(b"".join((_OPEN, text, _CLOSE)))
    except orjson.JSONDecodeError:
        try:
            orjson.loads(text)
        except orjson.JSONDecodeError as error:
            if "depth limit" not in error.msg:
                raise
        raise TooDeep(what) from None
    for _ in range(len(_OPEN) // 8):
        ((((((((value,),),),),),),),) = value
    return value


def _may_be_deep(text: bytes) -> bool:
    """Whether a text has brackets enough to be too deep."""
    return len(text) > SHORT or text.count(b"[") + text.count(b"{") > MAX_DEPTH


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
