"""What arrives of an answer leaves in the same turn of the event loop: the same frames, however the bytes are cut and
however slowly they are read, or an honest end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.errors import ANY_SERVER
from backends.wire.relay import LAST_READ_S, Relay, pump
from core.errors import APIError, BackendCut
from requests.chat_translator import ChatTranslator
from requests.events import ResponseBuilder
from requests.native_translator import NativeTranslator
from requests.passing import PassedThrough
from requests.translator import Translator
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, call, chat, cut, native_events, reasoning
from tests.fake_backend.answers import sse
from tests.stream_grammar import check_stream, fold, parse_sse
from tests.streams import builder, ends, says
from tests.test_emitting import bare
from tests.test_laws import law, streams
from tests.translated import Written
from tests.turns import eventually, open_stream, text_of, turn

WORDS = " ".join(f"word{number}" for number in range(200))


class FakeAnswer:
    """An answer whose bytes a test gives to its receiver."""

    def __init__(self) -> None:
        self.receiver: Any = None
        self.is_paused = False
        self.closed: list[float] = []

    def deliver_to(self, receiver: Any) -> None:
        self.receiver = receiver

    def pause(self) -> None:
        assert not self.is_paused, "paused twice"
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def close(self, rest_s: float = 0.0) -> None:
        self.receiver = None
        self.closed.append(rest_s)


class Story:
    """A relay on its way, in front of a fake answer."""

    def __init__(self, feed: Any) -> None:
        self.out = Written()
        self.answer = FakeAnswer()
        self.relay = Relay(self.answer, feed, self.out)  # type: ignore[arg-type]

    async def begin(self) -> None:
        self.task = asyncio.create_task(self.relay.run())
        await asyncio.sleep(0)

    def give(self, piece: bytes) -> None:
        """A network read. None comes while the socket is paused, or when it is closed."""
        assert not self.answer.is_paused
        if self.answer.receiver is not None:
            self.answer.receiver.data(piece)

    def end(self, error: Exception | None = None) -> None:
        if self.answer.receiver is not None:
            self.answer.receiver.closed(error)

    async def outcome(self) -> BaseException | None:
        (result,) = await asyncio.gather(self.task, return_exceptions=True)
        return result


def native_stream() -> bytes:
    events = native_events(reasoning("Hm."), "Hello you, naïve 🦙", call("f"))
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)


def translators(kind: str) -> tuple[ResponseBuilder, Translator[Any]]:
    made = builder(emits="frames")
    return made, (ChatTranslator if kind == "chat" else NativeTranslator)(made, ANY_SERVER)


def cut_at(sent: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({at % len(sent) for at in cuts} - {0})
    return [sent[start:end] for start, end in zip([0, *places], [*places, len(sent)], strict=True)]


def kept(made: ResponseBuilder) -> Any:
    if not made.ended:
        made.finish()
    return bare(made.response)


def run(story: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(story)


chat_bytes = streams().map(lambda chunks: b"".join([*map(sse, [*chunks, ends()]), b"data: [DONE]\n\n"]))
sent_by = st.one_of(st.tuples(st.just("chat"), chat_bytes), st.tuples(st.just("native"), st.just(native_stream())))
cuts = st.lists(st.integers(0, 10_000), max_size=30)


async def relayed(kind: str, pieces: list[bytes], full: set[int] = frozenset()) -> tuple[list[Any], Any]:  # type: ignore[assignment]
    """The events that leave, and what is kept. The client has no room behind the reads that are `full`."""
    made, translator = translators(kind)
    story = Story(translator)
    await story.begin()
    for place, piece in enumerate(pieces):
        written = len(story.out)
        story.out.has_room = place not in full
        story.give(piece)
        if place in full and len(story.out) > written:
            assert story.answer.is_paused, "its socket is read from, though there is no room"
            await asyncio.sleep(0)
            assert len(story.out) <= written + 1, "more than what one read held waits for the client"
            story.out.drain()
        assert not story.answer.is_paused
    story.end()
    assert await story.outcome() is None
    assert story.answer.closed == [LAST_READ_S], "its connection cannot be used again"
    return [event for _, event in parse_sse(b"".join(story.out))], kept(made)


@law
@given(sent_by, cuts)
def test_any_cut_of_the_bytes_gives_the_same_frames(sent: tuple[str, bytes], at: list[int]) -> None:
    kind, data = sent
    once, kept_once = run(relayed(kind, [data]))
    events, kept_cut = run(relayed(kind, cut_at(data, at)))
    assert bare(events) == bare(once)
    assert kept_cut == kept_once


@law
@given(sent_by, cuts, st.sets(st.integers(0, 30)))
def test_any_speed_of_the_reader_gives_the_same_frames(sent: tuple[str, bytes], at: list[int], full: set[int]) -> None:
    """And no more than what one read held waits for it: its backend is not read from meanwhile."""
    kind, data = sent
    pieces = cut_at(data, at)
    quick, kept_quick = run(relayed(kind, pieces))
    slow, kept_slow = run(relayed(kind, pieces, full))
    assert bare(slow) == bare(quick)
    assert kept_slow == kept_quick


@law
@given(sent_by, cuts, st.integers(0, 30))
def test_any_moment_of_leaving_cuts_the_answer_and_nothing_leaves_behind_it(
    sent: tuple[str, bytes], at: list[int], leaves_at: int
) -> None:
    kind, data = sent
    pieces = cut_at(data, at)

    async def leaving() -> None:
        _, translator = translators(kind)
        story = Story(translator)
        await story.begin()
        for piece in pieces[:leaves_at]:
            story.give(piece)
        is_whole = translator.is_done
        story.task.cancel()
        outcome = await story.outcome()
        written = len(story.out)
        for piece in pieces[leaves_at:]:
            story.give(piece)
        story.end()
        assert len(story.out) == written
        assert is_whole or isinstance(outcome, asyncio.CancelledError)
        assert story.answer.closed == [LAST_READ_S if is_whole else 0.0]
        assert story.answer.receiver is None, "it holds the relay, which holds the response"

    run(leaving())


@law
@given(sent_by, cuts, st.integers(0, 30), st.sampled_from([None, ConnectionResetError("x")]))
def test_an_answer_that_breaks_off_is_an_error_and_the_beginning_of_the_whole_one(
    sent: tuple[str, bytes], at: list[int], breaks_at: int, how: Exception | None
) -> None:
    kind, data = sent
    pieces = cut_at(data, at)
    whole, _ = run(relayed(kind, pieces))

    async def broken() -> None:
        _, translator = translators(kind)
        story = Story(translator)
        await story.begin()
        for piece in pieces[:breaks_at]:
            story.give(piece)
        ended = translator.ended
        story.end(how)
        outcome = await story.outcome()
        assert (outcome is None) if ended else isinstance(outcome, APIError)
        events = [event for _, event in parse_sse(b"".join(story.out))]
        if not ended or how is None:
            assert bare(events)[: len(events)] == bare(whole)[: len(events)]

    run(broken())


async def test_a_receiver_that_fails_is_given_nothing_more() -> None:
    class Faulty(PassedThrough):
        def feed(self, received: bytes) -> bytes:
            given.append(received)
            raise RuntimeError("a fault of ours")

    given: list[bytes] = []
    story = Story(Faulty())
    await story.begin()
    for piece in (b"a", b"b"):
        story.give(piece)
    assert str(await story.outcome()) == "a fault of ours"
    assert given == [b"a"]


async def test_what_is_behind_the_end_leaves_at_once_and_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.wire.relay.SETTLED_S", 0.001)
    monkeypatch.setattr("backends.wire.relay.GRACE_S", 0.002)
    made, translator = translators("chat")
    story = Story(translator)
    await story.begin()
    story.give(sse(says("Hello")) + sse(ends()))
    assert await story.outcome() is None
    events = [event for _, event in parse_sse(b"".join(story.out))]
    assert events[-1]["type"] == "response.output_item.done", "it was closed, though its usage may still come"
    assert made.finish() == []


async def test_bytes_that_go_on_are_what_came() -> None:
    story = Story(PassedThrough())
    await story.begin()
    for piece in (b"a", b"bc"):
        story.give(piece)
    story.end()
    assert await story.outcome() is None
    assert story.out == [b"a", b"bc"]
    story = Story(PassedThrough())
    await story.begin()
    story.end(ConnectionResetError("x"))
    assert isinstance(await story.outcome(), BackendCut | APIError)


async def test_who_gives_pieces_waits_for_room() -> None:
    """As an SDK's stream does, which cannot be paused otherwise."""
    out = Written()
    out.has_room = False
    asked: list[int] = []

    async def pieces() -> AsyncIterator[int]:
        for number in range(3):
            asked.append(number)
            yield number

    feed = PassedThrough()
    pumping = asyncio.create_task(pump(pieces(), lambda number: feed.feed(b"%d" % number), feed, out))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (asked, out) == ([0], [b"0"])
    out.drain()
    await pumping
    assert out == [b"0", b"1", b"2"]


# ── with sockets ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_task_is_woken_for_a_token(
    served: Running, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a read holds has left when the callback of its socket returns."""
    from backends.wire.http1 import Connection

    left: list[int] = []
    received = Connection.data_received

    def data_received(self: Connection, data: bytes) -> None:
        before = sum(map(len, written))
        received(self, data)
        if b'"word' in data:
            left.append(sum(map(len, written)) - before)

    from api.http.protocol import Wire

    written: list[bytes] = []
    write = Wire.write
    monkeypatch.setattr(Wire, "write", lambda self, body: written.append(body) or write(self, body))
    monkeypatch.setattr(Connection, "data_received", data_received)
    backend.script(chat(reasoning("Hm. Let me think."), WORDS, delay_s=0.001))
    async with open_stream(served.http) as events:
        seen = await events.rest()
    check_stream(seen)
    assert fold(seen) == seen[-1]["response"]
    assert text_of(seen[-1]["response"]) == WORDS
    assert left
    assert all(left), "a read was kept for later"


async def test_a_chat_stream_leaves_as_it_comes(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(WORDS, delay_s=0.001))
    ask = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    stream = await served.openai.chat.completions.create(**ask)
    said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert said == WORDS


async def test_what_fails_in_the_middle_fails_as_ever(served: Running, backend: FakeBackend) -> None:
    backend.script(chat(WORDS, delay_s=0.001, then=cut()))
    async with open_stream(served.http) as events:
        seen = await events.rest()
    check_stream(seen)
    assert seen[-1]["type"] == "response.failed"
    assert seen[-1]["response"]["error"]["code"] == "server_error"
    assert served.in_flight() == 0


@pytest.mark.parametrize("way", ["the wire", "ASGI"])
async def test_a_client_that_reads_slowly_gets_all_in_order(
    backend: FakeBackend, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the sockets between hold: the backend waits, and what was under way comes first."""
    if way == "ASGI":
        monkeypatch.setattr("api.http.replies.wire_of", lambda scope: None)
    long = " ".join(f"{number:06d}" * 20 for number in range(12_000))
    backend.script(chat(long))
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
        address = urlsplit(running.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**16)
        body = orjson.dumps(turn(stream=True))
        head = f"POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await asyncio.sleep(0.5)
        received = bytearray()
        while piece := await reader.read(2**16):
            received += piece
        writer.close()
        await eventually(lambda: running.in_flight() == 0, "the slot is free")
    seen = [event for _, event in parse_sse(dechunked(bytes(received)))]
    check_stream(seen)
    assert text_of(seen[-1]["response"]) == long


def dechunked(answer: bytes) -> bytes:
    """The body of an HTTP answer in chunks."""
    at = answer.index(b"\r\n\r\n") + 4
    body = bytearray()
    while at < len(answer):
        end = answer.index(b"\r\n", at)
        size = int(answer[at:end], 16)
        body += answer[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return bytes(body)
