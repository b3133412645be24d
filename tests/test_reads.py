"""Whole network reads: many chunks at once give what each of them gives alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from requests.chat import decode_chunk
from requests.chat_types import ChatChunk
from requests.events import ResponseBuilder
from requests.reads import SHORTEST_RUN, Run, decode_read
from requests.sse import SSEDecoder
from tests.streams import Json, builder, call, chunk, ends, says, thinks
from tests.test_emitting import as_events, bare, end, mixtures
from tests.test_laws import law, some_text
from tests.translated import chat_translator, listed


def read_of(datas: list[bytes], *, done: bool = False) -> bytes:
    return b"".join(b"data: %b\n\n" % data for data in [*datas, *([b"[DONE]"] if done else [])])


def each(pieces: list[Any]) -> list[ChatChunk]:
    """The chunks, those of runs too."""
    return [one for piece in pieces for one in (piece.chunks() if isinstance(piece, Run) else (piece,))]


def runs(pieces: list[Any]) -> int:
    """How many of the chunks are in runs."""
    return sum(len(piece.texts) for piece in pieces if isinstance(piece, Run))


def emitted_by(chunks: list[Any], emits: str, *, tags: bool = False) -> list[Any]:
    made: ResponseBuilder = builder(emits=emits)
    if tags:
        made.expect_think_tags()
    return [*made.begin(), *listed(chat_translator(made).take(chunks)), *end(made, "finished")]


# How servers write JSON: compactly; with spaces, and nothing but ASCII.
encoders: st.SearchStrategy[Callable[[Json], bytes]] = st.sampled_from(
    [orjson.dumps, lambda value: json.dumps(value).encode()]
)
words = st.lists(some_text, min_size=2, max_size=30)


@st.composite
def regular(draw: st.DrawFn) -> list[Json]:
    """A long answer as servers send it, and around it what is no part of a run."""
    say = draw(
        st.sampled_from([says, thinks, lambda text: chunk({"role": "assistant", "content": text}, logprobs=None)])
    )
    return [*draw(mixtures), *map(say, draw(words)), *draw(mixtures), *draw(st.sampled_from([[], [ends()]]))]


@law
@given(regular(), encoders, st.booleans())
def test_a_read_holds_what_its_events_hold(chunks: list[Json], encode: Callable[[Json], bytes], done: bool) -> None:
    datas = [encode(chunk) for chunk in chunks]
    received = read_of(datas, done=done)
    read = decode_read(received)
    assert read is not None
    assert each(read.chunks) == [decode_chunk(data) for data in datas]
    assert read.is_end is (
        done or any(choice.finish_reason for one in each(read.chunks) for choice in one.choices or ())
    )
    assert read.is_done is done
    assert SSEDecoder().feed(received) == datas + ([b"[DONE]"] if done else [])


@law
@given(regular(), encoders, st.booleans())
def test_a_read_tells_what_its_chunks_tell(chunks: list[Json], encode: Callable[[Json], bytes], tags: bool) -> None:
    datas = [encode(chunk) for chunk in chunks]
    read = decode_read(read_of(datas))
    assert read is not None
    alone = emitted_by([decode_chunk(data) for data in datas], "events", tags=tags)
    for emits in ("events", "frames", "nothing"):
        quickly = emitted_by(read.chunks, emits, tags=tags)
        assert emits == "nothing" or bare(as_events(quickly)) == bare(as_events(alone)), emits
        assert bare(quickly[-1]["response"]) == bare(alone[-1]["response"]), emits


BURST = [chunk({"role": "assistant", "content": ""}), *(says(f" token{n}") for n in range(50)), ends()]


@pytest.mark.parametrize("encode", [orjson.dumps, lambda value: json.dumps(value).encode()], ids=["compact", "spaces"])
@pytest.mark.parametrize("say", [says, thinks])
def test_nearly_all_of_a_burst_is_a_run(say: Callable[[str], Json], encode: Callable[[Json], bytes]) -> None:
    """Without that, the laws above would hold of a shortcut that nobody takes."""
    chunks = [BURST[0], *(say(f" é\n\t\\ token{n}") for n in range(50)), ends()]
    read = decode_read(read_of([encode(one) for one in chunks], done=True))
    assert read is not None
    assert runs(read.chunks) == 49
    assert runs(decode_read(read_of([encode(say("x"))] * (SHORTEST_RUN + 1))).chunks) == SHORTEST_RUN  # type: ignore[union-attr]
    frames = [
        event for event in chat_translator(builder(emits="frames"))._events_of(read.chunks) if type(event) is bytes
    ]
    assert [made.count(b"\n\n") for made in frames] == [49], "the run was emitted one by one"


HEAD, TAIL = b'{"choices":[{"index":0,"delta":{"content":', b"}}]}"


def spelled(*contents: bytes) -> list[bytes]:
    """Chunks with these contents between twenty regular ones."""
    word = b'"word"'
    return [HEAD + content + TAIL for content in (*[word] * 10, *contents, *[word] * 10)]


NEARLY: dict[str, list[bytes]] = {
    "a quote": spelled(rb'"a\"b"'),
    "a quote in the sample": spelled(rb'"a\"b"', rb'"a\"b"'),
    "nothing": spelled(b'""'),
    "null": spelled(b"null"),
    "parts": spelled(b'[{"type":"text","text":"x"}]'),
    "another key": spelled(b'"a","reasoning_content":"b"'),
    "an end": [*spelled(), HEAD + b'"x"},"finish_reason":"stop"}]}', *spelled()],
    "escapes": spelled(rb'"\u00e9\ud83d\ude00\/\n\\"', rb'"\\\\"'),
    "a call": [*spelled(), orjson.dumps(chunk({"tool_calls": [call(0, "c1", "f", "{}")]})), *spelled()],
    "an end in each": [orjson.dumps(says(f"{n}", finish_reason="stop")) for n in range(20)],
    "another choice in each": [b'{"choices":[{"index":1,"delta":{"content":"%d"}}]}' % n for n in range(20)],
    "log probabilities in each": [
        orjson.dumps(chunk({"content": str(n)}, logprobs={"content": [{"token": "x", "logprob": -1}]}))
        for n in range(20)
    ],
    "text elsewhere": [
        b'{"note":{"content":"%d"},"choices":[{"index":0,"delta":{"content":"x"}}]}' % n for n in range(20)
    ],
    "text elsewhere and nowhere else": [b'{"content":"%d","choices":[{"index":0,"delta":{}}]}' % n for n in range(20)],
    "text behind text": [
        b'{"choices":[{"index":0,"delta":{"reasoning_content":"x","content":"%d"}}]}' % n for n in range(20)
    ],
    "usage in each": [
        orjson.dumps(says(f"{n}") | {"usage": {"prompt_tokens": 1, "completion_tokens": n}}) for n in range(20)
    ],
    "usage like it in each": [
        orjson.dumps(says(f"{n}") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}) for n in range(20)
    ],
}


@pytest.mark.parametrize("datas", NEARLY.values(), ids=NEARLY)
def test_what_is_nearly_regular_is_read_as_it_is(datas: list[bytes]) -> None:
    read = decode_read(read_of(datas))
    assert read is not None
    chunks = [decode_chunk(data) for data in datas]
    assert each(read.chunks) == chunks
    alone = emitted_by(chunks, "events")
    assert bare(as_events(emitted_by(read.chunks, "frames"))) == bare(as_events(alone))
    assert bare(emitted_by(read.chunks, "nothing")[-1]["response"]) == bare(alone[-1]["response"])


WRONG: dict[str, list[bytes]] = {
    "a text too many": spelled(b'"a","b"'),
    "texts that only look as many": spelled(b'"a","b"', b'"c', b'd"'),
    "a quote too many": spelled(b'"a"b"'),
    "an open text": spelled(rb'"a\"'),
    "a line end in a text": spelled(b'"a\nb"'),
    "a control character": spelled(b'"a\x01b"'),
    "a bad escape": spelled(rb'"\x"'),
    "half a surrogate pair": spelled(rb'"\ud83d"', rb'"\ude00"'),
    "no UTF-8": spelled(b'"\xe9"'),
    "an error": [*spelled(), b'{"error":{"message":"no"}}', *spelled()],
    "an error in each": [b'{"error":"no","choices":[{"index":0,"delta":{"content":"%d"}}]}' % n for n in range(20)],
    "other lines": [b'id: 1\ndata: {"choices":[{"index":0,"delta":{"content":"%d"}}]}' % n for n in range(20)],
    "carriage returns": [HEAD + b'"x"' + TAIL + b"\r"] * 20,
    "lines in each": [b'{"choices":[{"index":0,\n"delta":{"content":"%d"}}]}' % n for n in range(20)],
    "no chunks": [b'{"choices":"x","content":"%d"}' % n for n in range(20)],
    "cut short": [HEAD + b'"x"' for _ in range(20)],
}


@pytest.mark.parametrize("datas", WRONG.values(), ids=WRONG)
def test_a_read_with_something_wrong_is_read_event_by_event(datas: list[bytes]) -> None:
    assert decode_read(read_of(datas)) is None


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
    ],
)
def test_any_other_read_is_read_event_by_event(received: bytes) -> None:
    assert decode_read(received) is None
