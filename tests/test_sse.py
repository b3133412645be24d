"""SSE frames, in and out: WHATWG HTML, section 9.2, and what real servers make of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.sse import KEEPALIVE, OBFUSCATED_TO, SSEDecoder, frame, frames, obfuscated
from tests.conftest import Running
from tests.fake_backend import FakeBackend, call, chat, native, reasoning
from tests.sdk import EVENT_CLASSES, WEATHER_TOOL, collected, wire_events
from tests.stream_grammar import check_stream, fold, parse_sse
from tests.test_laws import law
from tests.turns import URL, stream

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


@law
@given(
    st.lists(
        st.sampled_from(
            [
                b"event: x\ndata: {}\n\n",
                b"event: x\ndata: [1]\n\n",
                b"data: {}\n\n",
                b"data: 1\ndata: 2\n\n",
                b"event: x\n\n",
                b"event: \ndata: 3\n\n",
                b"event: y\ndata:\n\n",
                b"event: y\ndata: 4\nid: 1\n\n",
                b"data: event: x\n\n",
                b"\n",
            ]
        ),
        max_size=8,
    )
)
def test_a_read_of_many_events_holds_what_its_lines_hold(events: list[bytes]) -> None:
    """The quick way for a read that is regular, and the way for any other."""
    sent = b"".join(events)
    assert decoded(sent) == decoded(*(sent[n : n + 1] for n in range(len(sent))))


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


# ── deltas that do not show how long they are ────────────────────────────────────────────────────────────────────────

HIDDEN: Json = {"stream_options": {"include_obfuscation": True}}


def check_hidden(events: list[Json]) -> None:
    """Every delta is padded, and nothing else is."""
    for event in events:
        if "delta" not in event:
            assert "obfuscation" not in event, f"{event['type']} has nothing to hide"
            continue
        padding = event["obfuscation"]
        assert isinstance(padding, str)
        assert padding, f"nothing hides {event['delta']!r}"
        assert (len(event["delta"]) + len(padding)) % OBFUSCATED_TO == 0, f"{event['delta']!r} shows how long it is"
    assert any("delta" in event for event in events), "there was nothing to hide"


def bare(events: list[Json]) -> list[Json]:
    return [{key: value for key, value in event.items() if key != "obfuscation"} for event in events]


@given(st.text())
def test_a_delta_is_padded_to_a_multiple(delta: str) -> None:
    event = {"type": "response.output_text.delta", "sequence_number": 1, "delta": delta}
    hidden = obfuscated([event])
    check_hidden(hidden)
    assert bare(hidden) == [event]
    assert "obfuscation" not in event, "the event itself is stored, and is not to be touched"


def test_only_texts_are_hidden() -> None:
    odd: list[Json] = [{"type": "x", "delta": {"a": 1}}, {"type": "x", "delta": None}, {"type": "x"}]
    assert obfuscated(odd) == odd
    assert obfuscated([]) == []


def test_no_two_deltas_are_hidden_alike() -> None:
    events = obfuscated([{"type": "x", "delta": "a"}] * 20)
    assert len({event["obfuscation"] for event in events}) == 20


SAID = ("Hello there, " + "a" * 15 + " " + "b" * 16, call("get_weather", {"city": "Paris"}))


async def test_a_stream_hides_its_deltas_where_the_client_asks(served: Running, backend: FakeBackend) -> None:
    backend.script(*[chat(reasoning("Hm, so."), *SAID)] * 4)
    hidden = await wire_events(served, tools=[WEATHER_TOOL], **HIDDEN)
    check_hidden(hidden)
    check_stream(hidden)
    assert fold(hidden) == hidden[-1]["response"]
    for event in hidden:
        EVENT_CLASSES[event["type"]].model_validate(event, strict=True)
    for more in ({}, {"stream_options": None}, {"stream_options": {"include_obfuscation": False}}):
        events = await wire_events(served, tools=[WEATHER_TOOL], **more)
        assert [event["type"] for event in events] == [event["type"] for event in hidden]
        assert events == bare(events), "padding that nobody asked for"
    assert all("obfuscation" not in str(turn.json) for turn in backend.turns), "it concerns us alone"


@pytest.mark.parametrize("background", [False, True], ids=["", "background"])
async def test_what_is_kept_is_not_padded_and_is_read_either_way(
    background: bool, served: Running, backend: FakeBackend
) -> None:
    backend.script(chat(*SAID))
    live = await stream(served.http, background=background, **HIDDEN)
    check_hidden(live)
    at = f"{URL}/{live[-1]['response']['id']}"
    assert "obfuscation" not in (await served.http.get(at)).text

    async def again(**params: Any) -> list[Json]:
        answer = await served.http.get(at, params={"stream": "true", **params})
        assert answer.status_code == 200, answer.text
        return [event for _, event in parse_sse(answer.content)]

    plain = await again()
    assert plain == bare(plain), "the padding was kept"
    assert await again(include_obfuscation="false") == plain
    hidden = await again(include_obfuscation="true")
    check_hidden(hidden)
    assert bare(hidden) == plain
    assert bare(await again(include_obfuscation="true", starting_after=4)) == plain[5:]
    if background:
        assert bare(live) == plain


async def test_padding_is_chosen_by_whoever_reads(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(*SAID))
    live = await stream(served.http, background=True, **HIDDEN)
    response_id = live[0]["response"]["id"]
    async with served.http.stream("GET", f"{URL}/{response_id}", params={"stream": "true"}) as answer:
        events = [event for _, event in parse_sse(await answer.aread())]
    assert events == bare(events)


async def test_the_sdk_asks_for_padding_and_sees_it(served: Running, backend: FakeBackend) -> None:
    backend.script(chat("Hello there."))
    options: Any = HIDDEN["stream_options"]
    live = await collected(
        await served.openai.responses.create(model="test-model", input="Hi", stream=True, stream_options=options)
    )
    check_hidden([event.to_dict() for event in live])
    again = await served.openai.responses.retrieve(live[-1].response.id, stream=True, include_obfuscation=True)
    check_hidden([event.to_dict() async for event in again])


async def test_the_deltas_of_a_native_backend_are_hidden_too(served_natively: Running, backend: FakeBackend) -> None:
    backend.script(native("Hello there."))
    check_hidden(await wire_events(served_natively, **HIDDEN))
    assert backend.turns[-1].json["stream_options"] == HIDDEN["stream_options"]
