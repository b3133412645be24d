"""SSE frames, in and out: WHATWG HTML, section 9.2, and what real servers make of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest

from requests.sse import KEEPALIVE, SSEDecoder, frame, frames
from tests.stream_grammar import parse_sse

Json = dict[str, Any]

# What a server sent, and the data in it.
SENT: dict[str, tuple[bytes, list[bytes]]] = {
    "nothing": (b"", []),
    "an event": (b'data: {"a":1}\n\n', [b'{"a":1}']),
    "events": (b"data: 1\n\ndata: 2\n\ndata: [DONE]\n\n", [b"1", b"2", b"[DONE]"]),
    "without the space": (b"data:1\n\n", [b"1"]),
    "only one space belongs to the field": (b"data:  1 \n\n", [b" 1 "]),
    "several blank lines": (b"\n\ndata: 1\n\n\n\ndata: 2\n\n", [b"1", b"2"]),
    "data on several lines": (b"data: {\ndata: }\n\n", [b"{\n}"]),
    "an empty line of data among others": (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
    "no data at all is no event": (b"data:\n\ndata: 1\n\ndata: \n\n", [b"1"]),
    "CRLF": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
    "CR": (b"data: 1\r\rdata: 2\r\r", [b"1", b"2"]),
    "line ends of all kinds": (b"data: a\r\ndata: b\rdata: c\n\ndata: 2\r\n\n", [b"a\nb\nc", b"2"]),
    "a byte order mark": (b"\xef\xbb\xbfdata: 1\n\n", [b"1"]),
    "a byte order mark in the middle is no field": (b"data: 1\n\n\xef\xbb\xbfdata: 2\n\n", [b"1"]),
    "comments": (b": ping\n\ndata: 1\n:\n: and more\n\n:data: 2\n\n", [b"1"]),
    "other fields": (b"id: 7\nevent: x\nretry: 5\nmoon: full\ndata: 1\n\n", [b"1"]),
    "an event without data": (b"event: x\n\ndata: 1\n\n", [b"1"]),
    "what only begins like data": (b"database: 1\ndata\n\n", []),
    "the last blank line is missing": (b"data: 1\n\ndata: 2\n", [b"1", b"2"]),
    "the last line has no end": (b"data: 1\n\ndata: 2", [b"1", b"2"]),
    "an error in place of data, as llama.cpp has sent it": (
        b'data: 1\n\nerror: {"code":500,"message":"x"}\n\n',
        [b"1", b'{"error":{"code":500,"message":"x"}}'],
    ),
    "UTF-8": ("data: grüße 🎉\n\n".encode(), ["grüße 🎉".encode()]),
    "separators that are line ends in Python alone": (
        "data: a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b\n\n".encode(),
        ["a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029b".encode()],
    ),
}


def decoded(*reads: bytes) -> list[bytes]:
    """The data in what these network reads held, to the end of the stream."""
    decoder = SSEDecoder()
    return [data for read in reads for data in decoder.feed(read)] + decoder.flush()


@pytest.mark.parametrize(("sent", "data"), SENT.values(), ids=SENT)
def test_a_stream_holds_its_data(sent: bytes, data: list[bytes]) -> None:
    assert decoded(sent) == data


@pytest.mark.parametrize(("sent", "data"), SENT.values(), ids=SENT)
def test_a_stream_holds_the_same_data_however_the_network_cut_it(sent: bytes, data: list[bytes]) -> None:
    assert decoded(*(sent[n : n + 1] for n in range(len(sent)))) == data, "byte by byte"
    for cut in range(len(sent) + 1):
        assert decoded(sent[:cut], sent[cut:]) == data, f"cut behind {sent[:cut]!r}"
        assert decoded(sent[:cut], b"", sent[cut:]) == data, f"an empty read behind {sent[:cut]!r}"


def test_an_event_leaves_the_decoder_with_its_blank_line() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(b"data: 1\n") == []
    assert decoder.feed(b"\n") == [b"1"], "nothing is held back: a token that arrived is on its way"
    assert decoder.feed(b"data: 2\n\ndata: 3\n\nda") == [b"2", b"3"]
    assert decoder.feed(b"ta: 4\r\n\r\n") == [b"4"]
    assert decoder.flush() == []


# ── out ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

EVENTS: list[Json] = [
    {"type": "response.created", "sequence_number": 0, "response": {"id": "resp_1"}},
    {"type": "response.output_text.delta", "sequence_number": 1, "delta": "line\nend\r\n\n and \u2028 grüße 🎉"},
    {"type": "response.completed", "sequence_number": 2, "response": {"id": "resp_1", "usage": None}},
]


def test_a_frame_names_its_event_and_ends_in_a_blank_line() -> None:
    sent = b'event: response.x\ndata: {"type":"response.x","sequence_number":0}\n\n'
    assert frame({"type": "response.x", "sequence_number": 0}) == sent


def test_a_frame_has_two_lines_whatever_its_text() -> None:
    for event in EVENTS:
        sent = frame(event)
        assert sent.count(b"\n") == 3, "a line end inside of the data"
        assert b"\r" not in sent


def test_frames_are_the_frames_of_their_events_in_one_write() -> None:
    assert frames(EVENTS) == b"".join(frame(event) for event in EVENTS)
    assert frames([]) == b""


def test_what_is_sent_can_be_read() -> None:
    sent = frames(EVENTS)
    assert parse_sse(sent) == [(event["type"], event) for event in EVENTS]
    assert [orjson.loads(data) for data in decoded(sent)] == EVENTS


def test_a_keepalive_is_a_comment_and_disturbs_nothing() -> None:
    assert KEEPALIVE.startswith(b":")
    sent = KEEPALIVE.join([b"", *map(frame, EVENTS), b""])
    assert parse_sse(sent) == parse_sse(frames(EVENTS))
    numbers = [orjson.loads(data)["sequence_number"] for data in decoded(sent)]
    assert all(after == before + 1 for before, after in pairwise(numbers))
