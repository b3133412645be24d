"""What becomes of events: made as dicts, made as the frames of an SSE stream, or not made at all. It is the same story each time."""

from __future__ import annotations

import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.chat import decode_chunk, decode_read
from requests.events import ResponseBuilder
from requests.responses import chat_message_to_output_items
from requests.sse import DeltaFrames, SSEDecoder, frame, frames, renumbered
from tests.stream_grammar import parse_sse
from tests.streams import Json, builder, call, calls, chunk, ends, says, thinks
from tests.test_laws import law, streams, texts

ID = re.compile(r"\b(msg|rs|fc|ctc|call)_[0-9a-f]{32}\b")
TIME = re.compile(r'"completed_at":\d+')
SUMMARY = {"reasoning": {"summary": "auto"}}


def told(events: list[Any]) -> list[Json]:
    """The events, read back from the wire."""
    return [event for _, event in parse_sse(frames(events))]


def bare(value: Any) -> Any:
    """The same without what differs from time to time: random ids by the order in which they come, and the second."""
    seen: dict[str, str] = {}
    text = ID.sub(lambda id: seen.setdefault(id[0], f"{id[1]}_{len(seen)}"), orjson.dumps(value).decode())
    return orjson.loads(TIME.sub('"completed_at":0', text))


def fed(made: ResponseBuilder, chunks: list[Json], cuts: list[int]) -> list[Any]:
    """What a builder tells of chunks that come in reads of these sizes; a size of 0 is a chunk that has come alone."""
    events: list[Any] = made.begin()
    left = [orjson.dumps(chunk) for chunk in chunks]
    for size in [*cuts, len(left)]:
        if size == 0 and left:
            data = left.pop(0)
            alone = made.frame_of(data)
            events += made.chunks([decode_chunk(data)]) if alone is None else [alone]
        else:
            batch, left = left[:size], left[size:]
            events += made.chunks([decode_chunk(data) for data in batch])
    return [*events, *made.finish(), made.end()]


@law
@given(streams(), st.lists(st.integers(0, 4), max_size=12), st.booleans(), st.booleans())
def test_frames_tell_what_events_tell_and_so_does_the_end(
    chunks: list[Json], cuts: list[int], summarized: bool, tags: bool
) -> None:
    stories = {}
    for telling in ("events", "frames", "nothing"):
        made = builder(**(SUMMARY if summarized else {}))
        made.telling = telling
        if tags:
            made.expect_think_tags()
        stories[telling] = fed(made, chunks, cuts)
    assert bare(told(stories["frames"])) == bare(told(stories["events"]))
    assert len(stories["nothing"]) == 1, "where nobody listens there is no event but the last"
    told_at_the_end = [bare(events[-1]["response"]) for events in stories.values()]
    assert told_at_the_end[1:] == told_at_the_end[:-1]


@law
@given(texts, texts, st.lists(st.sampled_from(["a", "b"]), max_size=2), st.sampled_from(["stop", "length"]))
def test_a_whole_answer_is_the_same_whether_it_is_told_or_not(
    text: str, thought: str, names: list[str], reason: str
) -> None:
    called = [{"id": f"c{n}", "function": {"name": name, "arguments": "{}"}} for n, name in enumerate(names)]
    message = {"content": text, "reasoning_content": thought, "tool_calls": called}
    ends_of = []
    for telling in ("events", "frames", "nothing"):
        made = builder()
        made.telling = telling
        made.begin()
        made.completion(chat_message_to_output_items(message), finish_reason=reason, usage=None)
        ends_of.append(bare(made.end()["response"]))
    assert ends_of[1:] == ends_of[:-1]


def test_nearly_all_of_a_stream_is_frames() -> None:
    """Without that, the laws above would hold of a shortcut that nobody takes."""
    for say in (says, thinks):
        made = builder()
        made.telling = "frames"
        events = fed(made, [say(f"word{n} ") for n in range(50)], [1] * 10 + [0] * 10)
        assert sum(event.count(b"\n\n") for event in events if isinstance(event, bytes)) == 49
        assert len(told(events)) == 49 + len([event for event in events if isinstance(event, dict)])


NOT_PLAIN = {
    "an end": ends(),
    "usage": {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}},
    "a thought": thinks("hm"),
    "log probabilities": chunk({"content": "x"}, logprobs={"content": []}),
    "a call": calls(call(0, "c1", "f", "{}")),
    "both": chunk({"content": "x", "reasoning_content": "y"}),
    "another choice": {"choices": [{"index": 1, "delta": {"content": "x"}}]},
    "two choices": {"choices": [{"index": 0, "delta": {"content": "x"}}, {"index": 1, "delta": {"content": "y"}}]},
    "parts": chunk({"content": [{"type": "text", "text": "x"}]}),
    "nothing": chunk({"content": ""}),
    "an error": {"error": {"message": "no"}, "choices": [{"index": 0, "delta": {"content": "x"}}]},
    "no chunk": {"choices": "x"},
}


@pytest.mark.parametrize("given_", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_is_not_plain_is_left_alone(given_: Json) -> None:
    made = builder()
    made.telling = "frames"
    made.begin()
    made.chunks([decode_chunk(orjson.dumps(says("Hello")))])
    before = made.sequence_number
    assert made.frame_of(orjson.dumps(given_)) is None
    assert made.sequence_number == before, "something has happened"


# ── the bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────


@law
@given(
    st.integers(0, 10**9), st.lists(texts, min_size=1, max_size=4), st.sampled_from(["output_text", "reasoning_text"])
)
def test_a_frame_of_a_delta_is_the_frame_of_its_event(number: int, deltas: list[str], part: str) -> None:
    event: Json = {"type": f"response.{part}.delta", "sequence_number": 7, "item_id": "msg_1", "output_index": 0}
    event |= {"content_index": 0, "delta": "first", "logprobs": []}
    made = DeltaFrames(event)
    wanted = [frame({**event, "sequence_number": number + n, "delta": delta}) for n, delta in enumerate(deltas)]
    assert made.one(number, deltas[0]) == wanted[0]
    assert made.of(number, deltas) == b"".join(wanted)


@law
@given(st.integers(0, 10**9), st.integers(0, 10**9), texts)
def test_another_servers_event_gets_our_number_and_nothing_else(theirs: int, ours: int, text: str) -> None:
    text += '"sequence_number":12,'
    event = {"type": "response.output_text.delta", "sequence_number": theirs, "item_id": text, "delta": text}
    for data in (
        orjson.dumps(event),
        orjson.dumps(event).replace(b'":', b'": ').replace(b'"sequence_number": ', b'"sequence_number":'),
    ):
        made = renumbered(event["type"], data, ours)
        assert made is not None
        [(_, read)] = parse_sse(made)
        assert read["sequence_number"] == ours
        assert read["delta"] == orjson.loads(data)["delta"]
    last = {"type": "x.delta", "delta": text, "sequence_number": theirs}
    made = renumbered("x.delta", orjson.dumps(last), ours)
    assert made is not None
    [(_, read)] = parse_sse(made)
    assert read == last | {"sequence_number": ours}
    assert renumbered("x.delta", orjson.dumps({"delta": text}), ours) is None


@law
@given(st.lists(texts.map(says) | st.just(ends()), min_size=1, max_size=6), st.booleans())
def test_a_read_of_whole_events_is_what_its_events_are(chunks: list[Json], done: bool) -> None:
    datas = [orjson.dumps(chunk) for chunk in chunks]
    received = b"".join(b"data: %b\n\n" % data for data in datas) + (b"data: [DONE]\n\n" if done else b"")
    read = decode_read(received)
    assert read is not None
    assert read[0] == [decode_chunk(data) for data in datas]
    assert read[1] is (done or ends() in chunks)
    assert read[2] is done
    assert SSEDecoder().feed(received) == datas + ([b"[DONE]"] if done else [])


@pytest.mark.parametrize(
    "received",
    [
        b"",
        b"data: {}",
        b"data: {}\n",
        b": hello\n\ndata: {}\n\n",
        b"event: x\ndata: {}\n\n",
        b"data: {}\n\ndata: {}\n",
        b"data: {\ndata: }\n\n",
        b"data: {}\r\n\r\n",
        b"data: {}\n\n\n\n",
        b"data: nothing\n\n",
        b'data: {"error": {"message": "no"}}\n\n',
        b'data: {"object": "error", "message": "no"}\n\n',
        b"data: [DONE]\n\n",
    ],
)
def test_any_other_read_is_read_event_by_event(received: bytes) -> None:
    assert decode_read(received) is None


@pytest.mark.parametrize(
    ("received", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data: {}\n\ndata: {}\n\n", None),
        (b"data: {}\n", None),
        (b"data: {}\r\n\r\n", None),
        (b": ping\n\n", None),
        (b"event: x\ndata: {}\n\n", None),
    ],
)
def test_an_event_that_comes_alone(received: bytes, data: bytes | None) -> None:
    decoder = SSEDecoder()
    assert decoder.only(received) == data
    decoder.feed(b"data: half an ")
    assert decoder.only(b"data: {}\n\n") is None, "the end of another event comes first"
