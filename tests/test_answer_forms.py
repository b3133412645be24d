"""How an answer travels: an event stream or JSON is known by what it is, whatever its header says and whatever was
asked for; and its end is an end, whatever comes behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire import relay
from requests.sse import SSEDecoder, looks_like_sse
from tests.conftest import Clock, Running
from tests.fake_backend import (
    Answer,
    FakeBackend,
    Reply,
    chat_usage,
    chunk,
    cut,
    native_events,
    pause,
    pieces,
    sse,
    stall,
    steps,
    stream,
    until,
)
from tests.stream_grammar import check_stream, fold
from tests.test_laws import law
from tests.turns import create, eventually, open_stream, retrieve, text_of
from tests.turns import stream as streamed

Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"
CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hi"}),
    chunk({"content": " thére"}),
    chunk({}, finish_reason="stop"),
    chunk(usage=chat_usage()),
]
CHAT = b"".join(CHUNKS)
COMPLETION: Json = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi thére"}, "finish_reason": "stop"}],
    "usage": chat_usage(),
}
NATIVE = b"".join(sse(event, event["type"]) for event in native_events("Hi thére"))
RESPONSE: Json = native_events("Hi thére")[-1]["response"]


def lines_of(data: bytes) -> bytes:
    """The events as JSON lines."""
    return b"".join(line[6:] + b"\n" for line in data.split(b"\n") if line.startswith(b"data: {"))


def forms(stream_: bytes, whole: Json) -> dict[str, tuple[dict[str, str], bytes]]:
    """One answer in all its forms: the headers and the body."""
    sse_ = {"Content-Type": "text/event-stream"}
    json_ = {"Content-Type": "application/json"}
    spelled = orjson.dumps(whole)
    return {
        "as it should be": (sse_, stream_ + DONE),
        "a header in other letters": ({"content-type": "Text/Event-Stream;charset=UTF-8"}, stream_ + DONE),
        "a stream that is said to be JSON": (json_, stream_ + DONE),
        "a stream that is said to be HTML": ({"Content-Type": "text/html; charset=utf-8"}, stream_ + DONE),
        "a stream without a header": ({"X-Nothing": "1"}, stream_ + DONE),
        "a stream that begins with a comment, without a header": ({"X-Nothing": "1"}, b": hello\n\n" + stream_),
        "a stream that begins with a BOM, said to be text": ({"Content-Type": "text/plain"}, b"\xef\xbb\xbf" + stream_),
        "values that are no objects among its events": (
            sse_,
            (stream_ + DONE).replace(b"\n\n", b'\n\ndata: null\n\ndata: [1]\n\ndata: "ping"\n\ndata: 0\n\n', 2),
        ),
        "a value that is no object first": (sse_, b"data: null\n\n" + stream_ + DONE),
        "CRLF": (sse_, (stream_ + DONE).replace(b"\n", b"\r\n")),
        "CR": (sse_, (stream_ + DONE).replace(b"\n", b"\r")),
        "CRLF, said to be JSON": (json_, (stream_ + DONE).replace(b"\n", b"\r\n")),
        "no space behind the colon": (
            sse_,
            (stream_ + DONE).replace(b"data: ", b"data:").replace(b"event: ", b"event:"),
        ),
        "comments between": (sse_, stream_.replace(b"\n\n", b"\n\n: ping\n\n:\n\n") + DONE),
        "data of several lines": (sse_, stream_.replace(b',"', b',\ndata: "') + DONE),
        "[DONE] with spaces": (sse_, stream_ + b"data:  [DONE] \n\n"),
        "[DONE], and no line end": (sse_, stream_ + b"data: [DONE] "),
        "no [DONE]": (sse_, stream_),
        "no blank line at the end": (sse_, stream_.rstrip(b"\n")),
        "ids and times to try again": (sse_, stream_.replace(b"data: ", b"id: 7\nretry: 100\ndata: ") + DONE),
        "JSON": (json_, spelled),
        "JSON that is said to be a stream": (sse_, spelled),
        "JSON that is said to be text": ({"Content-Type": "text/plain"}, spelled),
        "JSON without a header": ({"X-Nothing": "1"}, spelled),
        "JSON in other letters": ({"Content-Type": "Application/JSON; Charset=utf-8"}, spelled),
        "JSON behind a BOM": (json_, b"\xef\xbb\xbf" + spelled),
        "JSON behind blank lines": (json_, b"\r\n \n" + spelled + b"\n\n"),
        "JSON of many lines": (json_, orjson.dumps(whole, option=orjson.OPT_INDENT_2)),
        "JSON of many lines that is said to be a stream": (sse_, orjson.dumps(whole, option=orjson.OPT_INDENT_2)),
        "JSON lines": ({"Content-Type": "application/x-ndjson"}, lines_of(stream_)),
        "JSON lines that are said to be JSON": (json_, lines_of(stream_)),
        "JSON lines that are said to be a stream": (sse_, lines_of(stream_)),
        "JSON lines without a header": ({"X-Nothing": "1"}, lines_of(stream_)),
    }


CHAT_FORMS = forms(CHAT, COMPLETION)


def answering(headers: dict[str, str], body: bytes, size: int) -> Answer:
    return stream(*pieces(body, size), headers=headers)


async def said_both_ways(running: Running, backend: FakeBackend, answer: Answer) -> None:
    """What a client gets that wants JSON, and one that wants a stream, is the same, and is kept."""
    backend.script(answer, answer)
    at_once = await create(running.http)
    assert (text_of(at_once), at_once["status"]) == ("Hi thére", "completed")
    events = await streamed(running.http)
    check_stream(events, prefixes=False)
    response = events[-1]["response"]
    assert (text_of(response), response["status"]) == ("Hi thére", "completed")
    assert fold(events) == response
    kept = await retrieve(running.http, response["id"])
    assert {key: kept[key] for key in response} == response
    assert at_once["usage"] == response["usage"]


@pytest.mark.parametrize("size", [7, 100_000], ids=["in pieces", "in one write"])
@pytest.mark.parametrize(("headers", "body"), CHAT_FORMS.values(), ids=CHAT_FORMS)
async def test_a_chat_answer_is_known_by_what_it_is(
    served: Running, backend: FakeBackend, headers: dict[str, str], body: bytes, size: int
) -> None:
    await said_both_ways(served, backend, answering(headers, body, size))


async def test_a_stream_with_a_wrong_header_is_no_slower_to_begin(served: Running, backend: FakeBackend) -> None:
    answer = stream(*CHUNKS[:2], stall(), headers={"Content-Type": "application/json"})
    backend.script(answer)
    body = {"model": "test-model", "input": "Hi", "stream": True}
    async with served.http.stream("POST", "/v1/responses", json=body) as got:
        received = b""
        async for piece in got.aiter_raw():
            received += piece
            if b'"delta":"Hi"' in received:
                break
    await backend.wait_for(lambda b: b.in_flight == 0)


@law
@given(st.sampled_from([CHAT, NATIVE, b"\xef\xbb\xbf: hi\n\n" + CHAT, b"\r\n\r\nevent: x\n"]), st.integers(0, 40))
def test_a_stream_is_known_by_its_first_bytes_or_by_a_few_more(body: bytes, size: int) -> None:
    assert looks_like_sse(body[:size]) in (None, True)
    assert looks_like_sse(body) is True


@pytest.mark.parametrize(
    "begins", [b"{", b" {", b"[", b"<html>", b"dat{", b"\xef\xbb\xbf{", b"Internal Server Error", b"dates"]
)
def test_what_is_no_stream_is_known_too(begins: bytes) -> None:
    assert looks_like_sse(begins) is False


@law
@given(st.data(), st.booleans())
def test_json_lines_are_the_same_in_any_cut(data: st.DataObject, ends: bool) -> None:
    body = lines_of(CHAT) if ends else lines_of(CHAT).rstrip(b"\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    decoder = SSEDecoder()
    got = [
        value
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)
        for value in decoder.feed(body[start:end])
    ]
    assert b"\n".join([*got, *decoder.flush()]) == body.rstrip(b"\n")


@law
@given(
    st.lists(st.sampled_from([b"event: a\ndata: 1\n\n", b"data: 2\n\n", b"event: b\nid: 1\ndata: 3\n\n", b": x\n\n"]))
)
def test_the_name_of_an_event_is_that_before_its_data(events: list[bytes]) -> None:
    names = {b"1": "a", b"2": "", b"3": "b"}
    for size in (1, 5, 1000):
        decoder = SSEDecoder()
        for piece in pieces(b"".join(events), size):
            for place, data in enumerate(decoder.feed(piece)):
                assert decoder.name(place) == names[data]


# ── an end stays an end ──────────────────────────────────────────────────────────────────────────────────────────────

BEHIND: dict[str, list[Any]] = {
    "nothing": [],
    "[DONE] twice": [DONE, DONE],
    "garbage behind [DONE]": [DONE, b"data: {nonsense\n\n"],
    "an error behind [DONE]": [DONE, sse({"error": {"message": "late", "code": 500}})],
    "garbage": [b"data: {nonsense\n\n"],
    "an error": [sse({"error": {"message": "late", "code": 500}})],
    "an error, then [DONE]": [sse({"error": {"message": "late", "code": 500}}), DONE],
    "a ping": [sse({"type": "ping"})],
    "a chunk without choices": [sse({"id": "x", "cost": 0.1})],
    "a cut": [cut()],
    "a reset": [cut(reset=True)],
    "a cut behind [DONE]": [DONE, cut()],
    "silence behind [DONE]": [DONE, stall()],
}


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "in one write"])
@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
async def test_what_comes_behind_the_reason_to_finish_harms_no_answer(
    served: Running, backend: FakeBackend, behind: list[Any], apart: bool
) -> None:
    steps = [*CHUNKS, *behind] if apart else [b"".join([CHAT, *(part for part in behind if isinstance(part, bytes))])]
    steps += [part for part in behind if not isinstance(part, bytes)] if not apart else []
    await said_both_ways(served, backend, stream(*steps))


async def test_a_server_that_never_ends_what_is_finished_is_not_waited_for_for_ever(
    served: Running, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.wire.relay.DONE_S", 0.05)
    await said_both_ways(served, backend, stream(*CHUNKS, stall()))


@pytest.mark.parametrize("is_counted", [True, False], ids=["usage", "no usage"])
async def test_what_is_finished_is_whole_to_its_client_though_the_server_does_not_end_it(
    served: Running, backend: FakeBackend, clock: Clock, is_counted: bool
) -> None:
    backend.script(stream(*(CHUNKS if is_counted else CHUNKS[:-1]), stall()))
    async with open_stream(served.http) as events:
        await events.until("response.output_item.done")
        assert text_of({"output": [events.seen[-1]["item"]]}) == "Hi thére"
        assert served.in_flight() == 1
        clock.advance(relay.DONE_S if is_counted else relay.GRACE_S)
        last = (await events.rest())[-1]
    check_stream(events.seen)
    assert last["response"]["status"] == "completed"
    assert (last["response"]["usage"] is not None) is is_counted
    await eventually(lambda: served.in_flight() == 0, "the slot is back")
    await backend.wait_for(lambda b: b.in_flight == 0)


def called(arguments: str) -> bytes:
    function = {"name": "f", "arguments": arguments}
    return chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})


async def test_usage_that_comes_when_all_is_closed_is_in_the_last_event(served: Running, backend: FakeBackend) -> None:
    closed = asyncio.Event()
    calls = [called("{}"), chunk({}, finish_reason="tool_calls")]
    backend.script(stream(*calls, until(closed), CHUNKS[-1], DONE))
    async with open_stream(served.http, tools=[{"type": "function", "name": "f"}]) as events:
        done = await events.until("response.output_item.done")
        assert (done["item"]["name"], done["item"]["arguments"]) == ("f", "{}")
        closed.set()
        last = (await events.rest())[-1]["response"]
    check_stream(events.seen)
    assert last["usage"]["output_tokens"] == chat_usage()["completion_tokens"]
    assert last["output"] == [done["item"]]


async def test_comments_behind_the_end_keep_no_answer_open(
    served: Running, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.wire.relay.GRACE_S", 0.2)

    async def comment_for_ever(reply: Reply) -> None:
        while not reply.is_over:
            await steps(b": processing\n\n", pause(0.01))(reply)

    await said_both_ways(served, backend, steps(stream(*CHUNKS[:-1]), comment_for_ever))


async def test_what_its_server_gave_up_and_does_not_end_fails_and_closes_nothing(
    served: Running, backend: FakeBackend
) -> None:
    backend.script(stream(called('{"a"'), chunk({}, finish_reason="abort"), stall()))
    events = await streamed(served.http, tools=[{"type": "function", "name": "f"}])
    check_stream(events)
    assert events[-1]["type"] == "response.failed"
    assert not [event for event in events if event["type"].endswith(".done")]
    await eventually(lambda: served.in_flight() == 0, "the slot is back")


async def test_usage_that_comes_late_is_waited_for(served: Running, backend: FakeBackend) -> None:
    backend.script(stream(*CHUNKS[:-1], pause(0.1), CHUNKS[-1], DONE))
    response = (await streamed(served.http))[-1]["response"]
    assert response["usage"] is not None


@pytest.mark.parametrize(
    "data", [{"message": "The model has crashed."}, {"error": {"message": "The model has crashed."}}]
)
async def test_an_event_that_is_called_an_error_is_one(served: Running, backend: FakeBackend, data: Json) -> None:
    answer = stream(*CHUNKS[:2], sse(data, "error"))
    backend.script(answer, answer)
    last = (await streamed(served.http))[-1]
    assert last["type"] == "response.failed"
    assert "crashed" in last["response"]["error"]["message"]
    body = {"model": "test-model", "input": "Hi"}
    refused = await served.http.post("/v1/responses", json=body)
    assert refused.status_code == 502
    assert "crashed" in refused.json()["error"]["message"]


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource"])
async def test_an_answer_that_its_server_gave_up_has_failed(served: Running, backend: FakeBackend, reason: str) -> None:
    given_up = stream(CHUNKS[1], chunk({}, finish_reason=reason), DONE)
    backend.script(given_up, given_up)
    events = await streamed(served.http)
    check_stream(events)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert text_of(events[-1]["response"]) == "Hi"
    answer = await served.http.post("/v1/responses", json={"model": "test-model", "input": "Hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "backend_gave_up")


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_a_native_answer_ends_with_its_mark_where_it_has_no_other_end(
    size: int, served_natively: Running, backend: FakeBackend
) -> None:
    *events, _ = native_events("Hi thére")
    body = b"".join(sse(event, event["type"]) for event in events)
    for form in (body, body.replace(b"\n", b"\r\n")):
        answer = answering({"Content-Type": "text/event-stream"}, form + DONE, size)
        backend.script(answer, answer)
        response = await create(served_natively.http)
        assert (text_of(response), response["status"]) == ("Hi thére", "completed")
        streamed_events = await streamed(served_natively.http)
        check_stream(streamed_events, prefixes=False)
        assert fold(streamed_events) == streamed_events[-1]["response"]
        assert streamed_events[-1]["response"]["status"] == "completed"
    # Half an item is no answer.
    half = b"".join(sse(event, event["type"]) for event in events[:-1])
    backend.script(answering({"Content-Type": "text/event-stream"}, half + DONE, size))
    assert (await streamed(served_natively.http))[-1]["type"] == "response.failed"
