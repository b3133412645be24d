"""What becomes of events: made as dicts, made as the frames of an SSE stream, or not made at all. It is the same story
each time."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BackendCut, BackendError
from requests.chat import decode_chunk
from requests.deltas import DeltaFrames, renumbered
from requests.events import ResponseBuilder
from requests.native_events import NativeEvent, NativeRun, parse_head
from requests.open_items import STREAMED_PARTS
from requests.responses import chat_message_to_output_items
from requests.sse import SSEDecoder, frame, frames, only_data
from requests.tools import ToolBook
from tests.fake_backend.answers import sse
from tests.stream_grammar import parse_sse
from tests.streams import Json, builder, call, calls, chunk, ends, refuses, says, thinks
from tests.test_laws import completions, law, some_text, streams, texts
from tests.translated import EMISSIONS, alone, chat_translator, listed, native_translator

ID = re.compile(r"\b(msg|rs|fc|ctc|call)_[0-9a-f]{32}\b")
TIME = re.compile(r'"completed_at":\d+')


def as_events(events: list[Any]) -> list[Json]:
    """The events, read back from the wire."""
    return [event for _, event in parse_sse(frames(events))]


def bare(value: Any) -> Any:
    """The same without what differs from time to time: random ids by the order in which they come, and the second."""
    seen: dict[str, str] = {}
    text = ID.sub(lambda id: seen.setdefault(id[0], f"{id[1]}_{len(seen)}"), orjson.dumps(value).decode())
    return orjson.loads(TIME.sub('"completed_at":0', text))


def fed(made: ResponseBuilder, chunks: list[Json], cuts: list[int]) -> list[Any]:
    """What a builder emits for chunks that come in reads of these sizes; a size of 0 is a chunk that has come alone."""
    events: list[Any] = made.begin()
    translator = chat_translator(made)
    left = [orjson.dumps(chunk) for chunk in chunks]
    for size in [*cuts, len(left)]:
        if size == 0 and left:
            events += listed(translator.feed(b"data: %b\n\n" % left.pop(0)))
        else:
            batch, left = left[:size], left[size:]
            events += listed(translator.take([decode_chunk(data) for data in batch]))
    return events


def end(made: ResponseBuilder, ending: str) -> list[Any]:
    """The last events."""
    if ending == "cancelled":
        made.cancel()
        return [made.end()]
    return [*(made.fail(BackendCut("x")) if ending == "failed" else made.finish()), made.end()]


@st.composite
def asked(draw: st.DrawFn) -> dict[str, Any]:
    """What a client may ask for that changes the story."""
    return {
        "reasoning": {"summary": "auto"} if draw(st.booleans()) else None,
        "one_call": draw(st.booleans()),
        "allowed": draw(st.sampled_from([None, frozenset({"f"}), frozenset()])),
        "custom": draw(st.booleans()),
        "seal": draw(st.sampled_from([None, str.upper])),
        "tags": draw(st.booleans()),
    }


def ready(emits: str, asked: dict[str, Any]) -> ResponseBuilder:
    """A builder for such a request."""
    resource = builder(reasoning=asked["reasoning"]).response
    made = ResponseBuilder(resource, EMISSIONS[emits], seal=asked["seal"])
    kind = "custom" if asked["custom"] else "function"
    book = ToolBook.of([{"type": kind, "name": "f"}, {"type": "function", "name": "g"}], [])
    made.offer(book, allowed=asked["allowed"], one_call=asked["one_call"])
    if asked["tags"]:
        made.expect_think_tags()
    return made


tagged = st.lists(
    st.sampled_from(["<thi", "nk>", "<think>", "Hm", " ", "\n\n", "</", "think>", "</think>"]).map(says), max_size=8
)
# Mostly plain deltas, and between them what only looks like one.
mixed = st.builds(
    lambda delta, more, usage: chunk(delta, **more) | usage,
    st.fixed_dictionaries(
        {},
        optional={
            "content": texts,
            "reasoning_content": texts,
            "refusal": texts,
            "tool_calls": st.just([call(0, "c1", "f", "{}")]),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "logprobs": st.just({"content": [{"token": "p", "logprob": -1}]}),
            "finish_reason": st.sampled_from(["stop", "length"]),
        },
    ),
    st.sampled_from([{}, {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}]),
)
plain = some_text.map(says) | some_text.map(thinks)
mixtures = st.lists(plain | mixed | some_text.map(refuses), max_size=12)
WAYS = ["events", "frames", "nothing"]
endings = st.sampled_from(["finished", "failed", "cancelled"])


@law
@given(streams() | mixtures, tagged, asked(), st.lists(st.integers(0, 4), max_size=12), endings)
def test_frames_hold_what_events_hold_and_so_does_the_end(
    chunks: list[Json], before: list[Json], asked: dict[str, Any], cuts: list[int], ending: str
) -> None:
    stories = {}
    for emits in WAYS:
        made = ready(emits, asked)
        middle = fed(made, [*before, *chunks], cuts)
        assert emits != "nothing" or not middle, "where nobody listens there are no events"
        stories[emits] = [*middle, *end(made, ending)]
    assert bare(as_events(stories["frames"])) == bare(as_events(stories["events"]))
    at_the_end = [bare(events[-1]["response"]) for events in stories.values()]
    assert at_the_end[1:] == at_the_end[:-1]


@law
@given(streams() | mixtures, asked(), st.lists(st.integers(0, 4), max_size=12), st.sets(st.integers(0, 12)), endings)
def test_keepalives_anywhere_change_nothing_but_numbers(
    chunks: list[Json], asked: dict[str, Any], cuts: list[int], silences: set[int], ending: str
) -> None:
    for emits in WAYS[:2]:
        quiet, kept_alive = ready(emits, asked), ready(emits, asked)
        expected = as_events([*fed(quiet, chunks, cuts), *end(quiet, ending)])
        assert kept_alive.keep_alive() == [], "it has not begun"
        events: list[Any] = kept_alive.begin()
        left = list(chunks)
        for place, size in enumerate([*cuts, len(left)]):
            if place in silences:
                events += kept_alive.keep_alive()
            count = size or 1
            events += fed(kept_alive, left[:count], [0] if size == 0 else [])
            left = left[count:]
        ended = end(kept_alive, ending)
        assert kept_alive.keep_alive() == [], "its last events have their numbers"
        events = as_events([*events, *ended])
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert len(events) > len(expected) or not silences & set(range(len(cuts) + 1))
        spoken = [{**event, "sequence_number": 0} for event in events if event["type"] != "keepalive"]
        assert bare(spoken) == bare([{**event, "sequence_number": 0} for event in expected])


@law
@given(completions(), asked())
def test_a_whole_answer_is_the_same_whether_it_is_emitted_or_not(
    given_: tuple[Json, list[Json]], asked: dict[str, Any]
) -> None:
    choice = given_[0]["choices"][0]
    stories = {}
    for emits in WAYS:
        made = ready(emits, asked)
        items = chat_message_to_output_items(choice["message"])
        middle = [
            *made.begin(),
            *made.completion(items, finish_reason=choice["finish_reason"], usage=given_[0]["usage"]),
        ]
        assert emits != "nothing" or not middle, "where nobody listens there are no events"
        stories[emits] = [*middle, made.end()]
    assert bare(as_events(stories["frames"])) == bare(as_events(stories["events"]))
    at_the_end = [bare(events[-1]["response"]) for events in stories.values()]
    assert at_the_end[1:] == at_the_end[:-1]


def test_nearly_all_of_a_stream_is_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, the laws above would hold of a shortcut that nobody takes."""
    made_as_events: list[str] = []
    for say in (says, thinks):
        made_as_events.clear()
        monkeypatch.setattr("requests.sse.frame", lambda event: made_as_events.append(event["type"]) or frame(event))
        made = builder(emits="frames")
        events = [*fed(made, [say(f"word{n} ") for n in range(50)], [1] * 10 + [0] * 10), *end(made, "finished")]
        assert len([type for type in made_as_events if type.endswith(".delta")]) == 1
        monkeypatch.undo()
        assert len([event for event in as_events(events) if event["type"].endswith(".delta")]) == 50


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
    "text and an end": chunk({"content": "x"}, finish_reason="stop"),
    "text and usage": says("x") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}},
    "text and a call": chunk({"content": "x", "tool_calls": [call(0, "c1", "f", "{}")]}),
    "text and a refusal": chunk({"content": "x", "refusal": "y"}),
}
THOUGHTS = {
    "text": says("x"),
    "both": NOT_PLAIN["both"],
    "a thought and an end": thinks("x") | {"choices": [thinks("x")["choices"][0] | {"finish_reason": "stop"}]},
    "a thought and a call": chunk({"reasoning_content": "x", "tool_calls": [call(0, "c1", "f", "{}")]}),
}


@pytest.mark.parametrize(
    ("begun", "given_"),
    [(says, given_) for given_ in NOT_PLAIN.values()] + [(thinks, given_) for given_ in THOUGHTS.values()],
    ids=[*NOT_PLAIN, *(f"{name} in a thought" for name in THOUGHTS)],
)
def test_what_is_not_plain_is_left_alone(begun: Callable[[str], Json], given_: Json) -> None:
    made = builder(emits="frames")
    translator = chat_translator(made)
    translator.feed(sse(begun("Hello")))
    for word in (" there", ", you"):  # The first is parsed, the second is like the first.
        assert alone(translator, sse(begun(word))), "what is plain is none"
        before = made.sequence_number
        with contextlib.suppress(BackendError):  # An error is raised, which is not plain either.
            assert alone(translator, sse(given_)) is None
        assert made.sequence_number == before, "something has happened"


LOGPROBS = {"content": [{"token": "p", "logprob": -1.0}]}
STORIES: dict[str, list[Json]] = {
    "plain text behind log probabilities": [chunk({"content": "a"}, logprobs=LOGPROBS), says("b"), says("c")],
    "log probabilities in the second part": [
        says("a"),
        says("b"),
        refuses("c"),
        chunk({"content": "d"}, logprobs=LOGPROBS),
        says("e"),
    ],
    "log probabilities of each token": [
        chunk({"content": "a"}, logprobs=LOGPROBS),
        chunk({"content": "b"}, logprobs=LOGPROBS),
    ],
    "a thought behind half a tag": [says("<think>Hm</th"), thinks("a"), thinks("b")],
    "a part in a part": [says("a"), says("b"), refuses("c"), refuses("d"), says("e"), says("f")],
}


@pytest.mark.parametrize("cuts", [[], [0] * 9, [1] * 9], ids=["one read", "alone", "read by read"])
@pytest.mark.parametrize("chunks", STORIES.values(), ids=STORIES)
def test_streams_that_were_nearly_wrong(chunks: list[Json], cuts: list[int]) -> None:
    stories = []
    for emits in WAYS:
        made = builder(emits=emits)
        made.expect_think_tags()
        stories.append([*fed(made, chunks, cuts), *end(made, "finished")])
    assert bare(as_events(stories[1])) == bare(as_events(stories[0]))
    assert bare(stories[2][-1]["response"]) == bare(stories[0][-1]["response"])


# Texts that come as they are, and some that do not.
spelled = some_text | st.sampled_from(
    ["word", "é", "🦙", '"', "\\", "\n", "\x7f", "\u2028", "a b", "\N{ZERO WIDTH JOINER}"]
)
servers: st.SearchStrategy[Callable[[Json], bytes]] = st.sampled_from(
    [
        lambda value: b"data: %b\n\n" % orjson.dumps(value),
        lambda value: b"data: %b\n\n" % json.dumps(value).encode(),
        lambda value: b"event: message\ndata: %b\n\n" % orjson.dumps(value),
        # What else is in a chunk may be another each time, or come from the text.
        lambda value: b"data: %b\n\n" % orjson.dumps(value | {"created": value["choices"][0]["delta"].get("content")}),
        lambda value: b"data: %b\n\n" % orjson.dumps({"content": "Hi"} | value),
    ]
)


@law
@given(st.lists(spelled.map(says) | spelled.map(thinks) | mixed, max_size=30), servers)
def test_chunks_that_come_alone_give_what_they_give_together(
    chunks: list[Json], server: Callable[[Json], bytes]
) -> None:
    """Each in a read of its own, and whatever was learnt from the one before it."""
    slow, quick = builder(), builder(emits="frames")
    slowly, quickly = chat_translator(slow), chat_translator(quick)
    events, frames = slow.begin(), quick.begin()
    for one in chunks:
        chunk = [decode_chunk(orjson.dumps(one))]
        events += listed(slowly.take(chunk))
        by_itself = alone(quickly, server(one))
        frames += listed(quickly.take(chunk)) if by_itself is None else [by_itself]
    assert bare(as_events([*frames, *end(quick, "finished")])) == bare(as_events([*events, *end(slow, "finished")]))


@pytest.mark.parametrize("say", [says, thinks])
def test_a_token_like_the_one_before_it_is_not_parsed(
    say: Callable[[str], Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without that, the law above would hold of a shortcut that nobody takes."""
    parsed = []
    monkeypatch.setattr("requests.chat_translator.parse_chunk", lambda data: parsed.append(data) or decode_chunk(data))
    translator = chat_translator(builder(emits="frames"))
    translator.take([decode_chunk(orjson.dumps(say("Hello")))])
    for number in range(50):
        assert alone(translator, sse(say(f" é{number}") | {"created": number // 25}))
    assert len(parsed) < 25, "after a change, what is around the text is learnt again"
    parsed.clear()
    for number in range(50):
        assert alone(translator, sse(say("x") | {"obfuscation": "x" * number}))
    assert len(parsed) < 65, "what is never the same is not learnt again and again"


@pytest.mark.parametrize(
    "text", [b"\xe9", b"\xf0\x9f", b"a\nb", b"\x00", b"\x1b", b'a","b', rb"\ud83d", rb"\x", b"a\\"]
)
def test_what_is_no_json_is_not_relayed(text: bytes) -> None:
    translator = chat_translator(builder(emits="frames"))
    translator.take([decode_chunk(orjson.dumps(says("Hello")))])
    assert alone(translator, sse(says(" there")))
    with contextlib.suppress(BackendError):
        assert alone(translator, sse(says("MARK")).replace(b"MARK", text)) is None


# ── the bytes ────────────────────────────────────────────────────────────────────────────────────────────────────────


numbers = st.integers(0, 2**53)


@law
@given(numbers, st.lists(texts, min_size=1, max_size=4), st.sampled_from(sorted(STREAMED_PARTS)), texts, numbers)
def test_a_frame_of_a_delta_is_the_frame_of_its_event(
    number: int, deltas: list[str], part: str, id: str, index: int
) -> None:
    """Whatever else the event holds, also a number and a key that look like ours."""
    where = "summary_index" if part == "summary_text" else "content_index"
    event: Json = {
        "type": f"{STREAMED_PARTS[part][0]}.delta",
        "sequence_number": 7,
        "item_id": f'{id}"delta":1234567890',
    }
    event |= {"output_index": 1234567890, where: index, "delta": "first"}
    event |= {"logprobs": []} if part == "output_text" else {}
    made = DeltaFrames(event)
    wanted = [frame({**event, "sequence_number": number + n, "delta": delta}) for n, delta in enumerate(deltas)]
    assert made.one(number, deltas[0]) == wanted[0]
    assert made.of(number, [orjson.dumps(delta)[1:-1] for delta in deltas]) == b"".join(wanted)


@law
@given(st.integers(0, 10**9), st.integers(0, 10**9), texts)
def test_another_servers_event_gets_our_number_and_nothing_else(theirs: int, ours: int, text: str) -> None:
    text += '"sequence_number":12,'
    event = {"type": "response.output_text.delta", "sequence_number": theirs, "item_id": text, "delta": text}
    for data in (
        orjson.dumps(event),
        orjson.dumps(event).replace(b'":', b'": ').replace(b'"sequence_number": ', b'"sequence_number":'),
    ):
        made = renumbered(data, ours)
        assert made is not None
        assert orjson.loads(made) == orjson.loads(data) | {"sequence_number": ours}
    last = {"type": "x.delta", "delta": text, "sequence_number": theirs}
    made = renumbered(orjson.dumps(last), ours)
    assert made is not None
    assert orjson.loads(made) == last | {"sequence_number": ours}
    assert renumbered(orjson.dumps({"delta": text}), ours) is None


MESSAGE: Json = {"type": "message", "id": "msg_1", "status": "in_progress", "role": "assistant", "content": []}
OPENING: list[Json] = [
    {"type": "response.output_item.added", "sequence_number": 2, "output_index": 0, "item": MESSAGE},
    {
        "type": "response.content_part.added",
        "sequence_number": 3,
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
    },
]


def delta_of(text: str, number: Any, **changes: Any) -> Json:
    where = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    return {
        "type": "response.output_text.delta",
        "sequence_number": number,
        **where,
        "delta": text,
        "logprobs": [],
        **changes,
    }


def opened(emits: str) -> ResponseBuilder:
    """A builder for the answer of a server that speaks Responses, whose text has begun: five events."""
    made = builder(emits=emits)
    made.begin()
    for event in [*OPENING, delta_of("begins", 4)]:
        made.adopt(event)
    return made


def without_keys(event: Json, left_out: list[str]) -> Json:
    return {key: value for key, value in event.items() if key not in left_out}


DELTA_KEYS = ["sequence_number", "item_id", "output_index", "content_index", "delta", "logprobs"]


@law
@given(
    st.permutations(["type", *DELTA_KEYS]),
    numbers | st.sampled_from([5, 5, 5, None, -1, 1.5, "7", {"sequence_number": 1}]),
    texts,
    st.lists(st.sampled_from(DELTA_KEYS), max_size=2),
    st.sampled_from([b"", b"event: response.output_text.delta\n", b"event: another\n"]),
    st.sampled_from([orjson.dumps, lambda event: json.dumps(event).encode()]),
)
def test_what_is_relayed_is_what_would_be_adopted(
    keys: list[str], number: Any, text: str, left_out: list[str], name: bytes, encode: Callable[[Json], bytes]
) -> None:
    """The event of another server, however it is spelled."""
    values = delta_of(text, number)
    event = without_keys({key: values[key] for key in keys}, left_out)
    slow, quick = opened("events"), opened("frames")
    relayed = alone(native_translator(quick), name + b"data: %b\n\n" % encode(event))
    assert as_events([relayed] if relayed is not None else quick.adopt(event)) == as_events(slow.adopt(event))
    assert quick.sequence_number == slow.sequence_number
    assert kept(quick) == kept(slow)


def kept(made: ResponseBuilder) -> list[Json]:
    """What would be kept of the answer if it broke off now."""
    made.fail(BackendCut("x"))
    output: list[Json] = made.response["output"]
    return output


@law
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*["response.output_text.delta"] * 4, "y.delta", "x.done"]),
            st.sampled_from([1, 1, 1, 1, 1, 1, 2, 0, -1, 0.5, None]),
            texts,
            st.sampled_from([{}, {}, {}, {}, {"item_id": "another"}, {"logprobs": None}, {"delta": None}]),
        ),
        max_size=12,
    ),
    st.integers(3, 6),
    st.sampled_from([b"", b"event: %b\n"]),
    st.sampled_from([orjson.dumps, lambda event: json.dumps(event).encode()]),
    st.sampled_from(["frames", "events"]),
)
def test_a_read_of_relayed_events_is_as_if_each_had_come_alone(
    drawn: list[tuple[str, Any, str, Json]],
    first: int,
    name: bytes,
    encode: Callable[[Json], bytes],
    emits: str,
) -> None:
    """Whether their numbers are ours, others, go on, or are none."""
    events: list[Json] = []
    number: Any = first
    for type, step, text, changes in drawn:
        events.append(delta_of(text, number if step else None, type=type, **changes))
        number += step or 1
    read = b"".join((name and name % event["type"].encode()) + b"data: %b\n\n" % encode(event) for event in events)
    slow, quick = opened("events"), opened(emits)
    translator = native_translator(quick)
    made = listed(translator.take(*translator._pieces_in(read)))
    assert translator.failure is None
    assert as_events(made) == as_events([made for event in events for made in slow.adopt(event)])
    assert quick.sequence_number == slow.sequence_number
    assert kept(quick) == kept(slow)


def test_a_burst_of_relayed_events_is_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that, the law above would hold of a shortcut that nobody takes."""
    events = [delta_of(f"{n}", 5 + n) for n in range(50)]
    read = b"".join(frame(event) for event in events)
    quick = opened("frames")
    monkeypatch.setattr("requests.native_translator.renumbered", None)
    translator = native_translator(quick)
    [run], _ = translator._pieces_in(read)
    assert isinstance(run, NativeRun)
    assert translator.take([run]) == read


def test_an_event_of_several_lines_is_not_relayed() -> None:
    """Its lines would not be data."""
    for number in (5, 9):
        data = orjson.dumps(delta_of("x", number)).replace(b',"', b',\n"', 1)
        output = native_translator(opened("frames")).take([NativeEvent(parse_head(data), data)])
        assert as_events(listed(output)) == [delta_of("x", 5)]
        assert isinstance(output, bytes)
        assert output.count(b"\n") == 3, "it was relayed"


@pytest.mark.parametrize(
    ("received", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data: {}\n\ndata: {}\n\n", None),
        (b"data: {}\n", None),
        (b"data: {}\r\n\r\n", None),
        (b": ping\n\n", None),
        (b"event: x\ndata: {}\n\n", b"{}"),
        (b"event: x\nid: 1\ndata: {}\n\n", None),
        (b"event: x\n\n", None),
        (b"event: x\ndata: {}\n\ndata: {}\n\n", None),
    ],
)
def test_an_event_that_comes_alone(received: bytes, data: bytes | None) -> None:
    assert only_data(received) == data
    assert data is None or SSEDecoder().feed(received) == [data]


@law
@given(
    st.lists(
        st.sampled_from([b"data: {}\n\n", b"event: x\ndata: 1\n\n", b": ping\n\n", b"data: a\r\n\r\n", b"data:\n\n"]),
        max_size=4,
    ),
    st.integers(0, 60),
)
def test_between_events_nothing_is_left_of_what_came(events: list[bytes], cut: int) -> None:
    """So whatever comes next can be read by itself."""
    whole = b"data: the first\n\n" + b"".join(events)
    decoder = SSEDecoder()
    decoder.feed(whole[:cut])
    fresh = SSEDecoder()
    fresh.feed(b"data: the first\n\n")
    if decoder.is_between_events:
        assert decoder.feed(whole[cut:]) == fresh.feed(whole[cut:])
    else:
        assert decoder.feed(b"\n\n") or decoder.is_between_events


@pytest.mark.parametrize("start", [b"data: x", b"data: x\n", b"event: x", b"\xef\xbb", b"data: x\r", b":"])
def test_in_an_event_something_is_left(start: bytes) -> None:
    decoder = SSEDecoder()
    decoder.feed(start)
    assert not decoder.is_between_events
    decoder.feed(b"\n\n")
    assert decoder.is_between_events
