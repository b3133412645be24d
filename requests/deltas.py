"""Frames without events: of a thousand tokens nothing differs but a number and a text, so all else is made once.

A chat chunk, and the frame of its delta. What stands between the bars is cut out of the one and put into the other:

    data: {…"delta":{"content":"|  word |"},"finish_reason":null}]}⏎⏎
    └──── head, learnt ────────┘ spelled └──── tail, learnt ──────┘
    event: response.output_text.delta⏎data: {…"sequence_number":| 17 |,…"delta":"|  word |","logprobs":[]}⏎⏎
    └──── start ────────────────────────────────────────────────┘      └ between ┘        └ end ─────────┘

    DeltaFrames   makes them: out of one such read (`relay`), of one text (`one`), of many at once (`of`)
    framed        the frames of events that another server has made; `renumbered` with our numbers

A token wakes the process from sleep, and everything is cold then: what counts is how much different code and memory it
touches. To parse the chunk, make a dict of the event and encode that takes three times as long as to cut and join
bytes.
"""

from __future__ import annotations

from typing import Any

import orjson

from requests.reads import NOTHING_LIKE_IT
from requests.sse import frame


class DeltaFrames:
    """The frames of the deltas of one part: of a thousand tokens nothing differs but a number and a text, so all else
    is made once, out of `event`, the first of them. `around` is what the chunks that they come in have around their
    text, since the event with the number `learns_at`."""

    __slots__ = ("_between", "_end", "_start", "around", "learns_at")

    def __init__(self, event: dict[str, Any]) -> None:
        sample = frame({**event, "sequence_number": _NUMBER, "delta": ""})
        self._start, _, rest = sample.partition(b"%d" % _NUMBER)
        between, key, end = rest.partition(b'"delta":')
        self._between, self._end = between + key + b'"', end.removeprefix(b'"')
        self.around = NOTHING_LIKE_IT
        self.learns_at = 0

    def relay(self, number: int, received: bytes, deltas: list[str]) -> bytes | None:
        """The frame of the delta in a read that holds one chunk, out of the middle of the bytes: if nothing else
        differs from the chunk that `around` was learnt from, and nothing in the text is escaped, or should be. It is
        put behind the `deltas`. None for any other read."""
        head, tail = self.around
        if not received.startswith(head) or not received.endswith(tail):
            return None
        spelled = received[len(head) : -len(tail)]
        try:
            delta = spelled.decode()
        except UnicodeDecodeError:
            return None
        if not delta or '"' in delta or "\\" in delta or not delta.isprintable():
            return None
        deltas.append(delta)
        return b"%b%d%b%b%b" % (self._start, number, self._between, spelled, self._end)

    def one(self, number: int, delta: str) -> bytes:
        """`frame` of the event with this number and delta."""
        return b"%b%d%b%b%b" % (self._start, number, self._between, orjson.dumps(delta)[1:-1], self._end)

    def of(self, number: int, deltas: list[bytes]) -> bytes:
        """`frames` of the event with each of the deltas, which are spelled as JSON has them, without quotes; the first
        has this number. Every piece is put in its place with all of its kind: nothing is done for each delta alone."""
        count = len(deltas)
        pieces = [self._end + self._start] * (4 * count)
        pieces[0] = self._start
        pieces[1::4] = _numbers(number, count)
        pieces[2::4] = [self._between] * count
        pieces[3::4] = deltas
        pieces.append(self._end)
        return b"".join(pieces)


def _numbers(start: int, count: int) -> list[bytes]:
    """So many numbers, from this one on."""
    if start + count <= len(_FIRST_NUMBERS):
        return _FIRST_NUMBERS[start : start + count]
    return [b"%d" % number for number in range(start, start + count)]


# Nearly all events have one of these.
_FIRST_NUMBERS = [b"%d" % number for number in range(2000)]


def framed(type: str, datas: list[bytes]) -> bytes | None:
    """The frames of some events of one type, by their data. None if one of these has more lines than one."""
    start = b"event: %b\ndata: " % type.encode()
    frames = b"%b%b\n\n" % (start, (b"\n\n" + start).join(datas))
    return frames if frames.count(b"\n") == 3 * len(datas) else None


def renumbered(data: bytes, number: int) -> bytes | None:
    """The data of an event that another server has made, with a sequence number of ours; None if it has none of its
    own. The key cannot be a part of a text in there: a quote in a string has a backslash before it."""
    start, key, rest = data.partition(b'"sequence_number":')
    value = rest.lstrip(b" ")
    behind = value.lstrip(b"0123456789")
    if len(behind) == len(value) or behind[:1] not in (b",", b"}"):
        return None
    return b"%b%b%d%b" % (start, key, number, behind)


# Stands for a sequence number, which comes before all that is not ours in a frame.
_NUMBER = 1234567890
