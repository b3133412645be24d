"""The HTTP client of the backends, against servers that send what a test says, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.wire.http1 import KEPT_S, MOST_UNREAD, BadAnswer, Origin, OversizedAnswer
from backends.wire.relay import NOWHERE, Relay
from requests.passing import PassedThrough
from tests.conftest import Clock
from tests.turns import eventually

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers each request, head and body, with what `handler` writes."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[bytes] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
                )
                request = head + await reader.readexactly(length)
                self.requests.append(request)
                await self.handler(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(handler: Handler | bytes) -> AsyncIterator[Server]:
    if isinstance(handler, bytes):
        sent = handler

        async def handler(request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(sent)

    server = Server(handler)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listening.close()
        for writer in server.writers:
            writer.close()
        await asyncio.sleep(0.01)


@asynccontextmanager
async def origin_of(server: Server, **settings: Any) -> AsyncIterator[Origin]:
    origin = Origin(server.url, {"X-One": "1"}, **settings)
    try:
        yield origin
        assert origin.answering == 0, "an answer is still under way"
    finally:
        await origin.close()


async def read(origin: Origin) -> bytes:
    answer = await origin.send("POST", "/v1/x", b"{}")
    try:
        return await answer.read()
    finally:
        answer.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
ANSWERS = {
    "a length": OK,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
    "chunks and trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    "early news": b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    "gzip, which nobody asked for": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
    % (len(gzip.compress(b"hello")), gzip.compress(b"hello")),
}


@pytest.mark.parametrize("sent", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_an_answer_is_read_however_it_comes(sent: bytes, size: int) -> None:
    async def in_pieces(request: bytes, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(sent), size):
            writer.write(sent[start : start + size])
            await asyncio.sleep(0)

    async with serving(in_pieces) as server, origin_of(server) as origin:
        assert [await read(origin), await read(origin)] == [b"hello", b"hello"]
        assert server.connections == 1, "the connection was not kept"


async def test_the_request_is_what_it_should_be() -> None:
    async with serving(OK) as server, origin_of(server) as origin:
        await read(origin)
        await (await origin.send("GET", "/v1/models?x=1")).read()
    post, get = server.requests
    host = server.url[7:-3].encode()
    assert post.startswith(b"POST /v1/x HTTP/1.1\r\nHost: " + host + b"\r\nX-One: 1\r\n")
    assert post.endswith(b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
    assert get == b"GET /v1/models?x=1 HTTP/1.1\r\nHost: " + host + b"\r\nX-One: 1\r\n\r\n"


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async def until_close(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")
        await writer.drain()
        writer.write(b"lo")
        writer.close()

    async with serving(until_close) as server, origin_of(server) as origin:
        assert [await read(origin), await read(origin)] == [b"hello", b"hello"]
        assert server.connections == 2


async def test_connection_close_is_not_kept() -> None:
    sent = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
    async with serving(sent) as server, origin_of(server) as origin:
        assert [await read(origin), await read(origin)] == [b"hello", b"hello"]
        assert server.connections == 2


BROKEN: dict[str, tuple[bytes, type[Exception]]] = {
    "no HTTP": (b"220 smtp.example.com ESMTP\r\n", BadAnswer),
    "half a head": (b"HTTP/1.1 200 OK\r\nConte", ConnectionError),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", ConnectionError),
    "half a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhel", ConnectionError),
    "a wrong chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhel", BadAnswer),
    "no gzip": (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", BadAnswer),
    "nothing": (b"", ConnectionError),
}


@pytest.mark.parametrize(("sent", "error"), BROKEN.values(), ids=BROKEN)
async def test_what_breaks_off_or_is_none_is_an_error(sent: bytes, error: type[Exception]) -> None:
    async def broken(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        writer.close()

    async with serving(broken) as server, origin_of(server) as origin:
        with pytest.raises(error):
            await read(origin)


async def test_a_kept_connection_that_was_closed_meanwhile_is_not_written_to() -> None:
    async with serving(OK) as server, origin_of(server) as origin:
        await asyncio.gather(*(read(origin) for _ in range(3)))
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0)  # They are closed. Our loop has not looked yet.
        assert origin.connections == 3
        assert await read(origin) == b"hello"
        assert len(server.requests) == 4


async def test_a_post_that_is_dropped_is_never_sent_again_and_a_get_once() -> None:
    """20 kept connections were tried one after the other: a server that falls over a request got it 21 times."""

    async def drops(request: bytes, writer: asyncio.StreamWriter) -> None:
        if b"/x" in request:
            writer.close()
        else:
            writer.write(OK)

    async def read_at(origin: Origin, method: str, target: str) -> bytes:
        answer = await origin.send(method, target, b"{}" if method == "POST" else b"")
        return await answer.read()

    for method, most in (("POST", 1), ("GET", 2)):
        async with serving(drops) as server, origin_of(server) as origin:
            await asyncio.gather(*(read_at(origin, "POST", "/ok") for _ in range(20)))
            with pytest.raises(ConnectionError):
                await read_at(origin, method, "/x")
            assert len([request for request in server.requests if b"/x" in request]) == most


async def test_idle_connections_are_closed_after_a_while(clock: Clock) -> None:
    async with serving(OK) as server, origin_of(server) as origin:
        await asyncio.gather(*(read(origin) for _ in range(50)))
        assert origin.connections == 50
        clock.advance(KEPT_S - 0.5)
        await read(origin)
        clock.advance(1)
        await eventually(lambda: origin.connections == 1, "only what was used since is open")
        clock.advance(KEPT_S)
        await eventually(lambda: origin.connections == 0, "none is open")


def endless(head: bytes, piece: bytes) -> Handler:
    """Writes until nobody reads any more."""

    async def handler(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while piece and not writer.is_closing():
            writer.write(piece)
            await writer.drain()

    return handler


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
ENDLESS_HEADS = {
    "headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-One: 1\r\n" * 1000),
    "one header": endless(b"HTTP/1.1 200 OK\r\nX-One: ", b"x" * 10_000),
    "a status": endless(b"HTTP/1.1 200 ", b"x" * 10_000),
    "early news": endless(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1000),
    "an extension of a chunk": endless(CHUNKED + b"\r\n5;", b"x" * 10_000),
    "trailers": endless(CHUNKED + b"\r\n1\r\nx\r\n0\r\n", b"X-One: 1\r\n" * 1000),
    "one trailer": endless(CHUNKED + b"\r\n1\r\nx\r\n0\r\nX-One: ", b"x" * 10_000),
}


@pytest.mark.parametrize("handler", ENDLESS_HEADS.values(), ids=ENDLESS_HEADS)
async def test_heads_without_end_are_given_up(handler: Handler) -> None:
    async with serving(handler) as server, origin_of(server) as origin:
        with pytest.raises(OversizedAnswer, match="64 KB"):
            await read(origin)
        await eventually(lambda: origin.connections == 0, "its connection is closed")


BOMB = gzip.compress(bytes(50_000_000))
TOO_LARGE = {
    "a length": endless(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 10_000),
    "chunks": endless(CHUNKED + b"\r\n", b"2710\r\n" + b"x" * 10_000 + b"\r\n"),
    "until it closes": endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 10_000),
    "a bomb": endless(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + BOMB, b""),
}


@pytest.mark.parametrize("handler", TOO_LARGE.values(), ids=TOO_LARGE)
async def test_an_answer_without_end_is_given_up_and_a_bomb_before_it_goes_off(handler: Handler) -> None:
    async with serving(handler) as server, origin_of(server, max_answer_bytes=5_000_000) as origin:
        tracemalloc.start()
        try:
            with pytest.raises(OversizedAnswer, match="max_answer_mb"):
                await read(origin)
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()


async def test_an_answer_of_just_the_size_that_is_taken_is_taken() -> None:
    for sent in (OK, ANSWERS["gzip, which nobody asked for"]):
        async with serving(sent) as server:
            async with origin_of(server, max_answer_bytes=5) as origin:
                assert await read(origin) == b"hello"
            async with origin_of(server, max_answer_bytes=4) as origin:
                with pytest.raises(OversizedAnswer):
                    await read(origin)


async def test_nobody_there_is_an_error_at_once() -> None:
    async with serving(OK) as server:
        url = server.url
    origin = Origin(url, {})
    with pytest.raises(ConnectionError):
        await origin.send("GET", "/")
    await origin.close()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", OK[:-2]])
async def test_a_server_that_falls_silent_is_given_up(sent: bytes) -> None:
    async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)

    async with (
        serving(silent) as server,
        origin_of(server, first_byte_timeout_s=0.05, read_timeout_s=0.05) as origin,
    ):
        with pytest.raises(TimeoutError):
            await read(origin)


async def test_who_has_no_byte_yet_can_be_made_to_give_up() -> None:
    async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(OK[:-2] if b"begun" in request else b"")

    async with serving(silent) as server, origin_of(server) as origin:
        begun = await origin.send("POST", "/v1/begun", b"{}")
        assert await begun.readany() == b"hel"
        waiting = asyncio.create_task(read(origin))
        await eventually(lambda: len(server.requests) == 2, "it waits")
        origin.give_up()
        with pytest.raises(TimeoutError):
            await waiting
        assert origin.answering == 1, "an answer that had begun was cut too"
        begun.close()


async def test_an_answer_that_is_cancelled_is_cut() -> None:
    async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        pass

    async with serving(silent) as server, origin_of(server) as origin:
        waiting = asyncio.create_task(read(origin))
        await eventually(lambda: len(server.requests) == 1, "it waits")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: origin.connections == 0, "its connection is closed")


async def test_an_answer_that_nobody_reads_is_not_taken_from_its_socket() -> None:
    size = 64 * MOST_UNREAD

    async def large(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            writer.write(b"x" * MOST_UNREAD)
            await writer.drain()

    async with serving(large) as server, origin_of(server) as origin:
        answer = await origin.send("POST", "/v1/x")
        await asyncio.sleep(0.1)
        assert answer.received - answer.taken < 4 * MOST_UNREAD, "it piles up in our memory"
        assert len(await answer.read()) == size
        answer.close()


async def test_a_receiver_is_given_what_arrives_at_once_and_the_end() -> None:
    go = asyncio.Event()

    async def slow(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        for piece in (b"1\r\nb\r\n", b"1\r\nc\r\n", b"1\r\nd\r\n", b"0\r\n\r\n"):
            await go.wait()
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(slow) as server, origin_of(server) as origin:
        answer = await origin.send("GET", "/v1/x")
        assert await answer.readany() == b"a"
        receiver = Received()
        answer.deliver_to(receiver)
        go.set()
        await receiver.end.wait()
    assert receiver.given == [b"b", b"c", b"d", None]


class Received:
    """Whom an answer is given to; behind its pieces stands what closed it."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.end = asyncio.Event()

    def data(self, received: bytes) -> None:
        self.given.append(received)

    def closed(self, error: Exception | None) -> None:
        self.given.append(error)
        self.end.set()


@pytest.mark.parametrize("ends", [False, True], ids=["and more comes", "and the end comes"])
async def test_a_receiver_that_fails_is_given_nothing_more(ends: bool) -> None:
    go = asyncio.Event()

    async def slow(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await go.wait()
        writer.write(b"1\r\nb\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n" if ends else b"1\r\nc\r\n")
        await writer.drain()

    class Faulty(PassedThrough):
        def feed(self, received: bytes) -> bytes:
            given.append(received)
            if received == b"b":
                raise RuntimeError("a fault of ours")
            go.set()
            return received

    given: list[bytes] = []
    async with serving(slow) as server, origin_of(server) as origin:
        answer = await origin.send("GET", "/v1/x")
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await Relay(answer, Faulty(), NOWHERE).run()
    assert given == [b"a", b"b"]


def test_a_header_cannot_smuggle_in_another() -> None:
    with pytest.raises(ValueError, match="X-Two"):
        Origin("http://x/v1", {"X-Two": "2\r\nX-Three: 3"})


async def test_who_still_reads_when_all_is_closed_gets_an_error() -> None:
    async def silent(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhel")

    async with serving(silent) as server, origin_of(server) as origin:
        answer = await origin.send("GET", "/v1/x")
        assert await answer.readany() == b"hel"
        reading = asyncio.create_task(answer.readany())
        await asyncio.sleep(0)
        await origin.close()
        with pytest.raises(ConnectionError):
            await reading
