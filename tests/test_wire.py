"""The wire (`api/http/protocol.py`), on raw sockets: whoever is answered by it gets, byte for byte, what uvicorn alone
would have sent, and a client that leaves is missed as soon."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import uvicorn
from fastapi import FastAPI

import router
from api.http.connection import MOST_WAITING
from api.http.protocol import Protocol, Wire, wire_of
from api.http.silence import KEEPALIVE_S
from core.config_checks import parse_config
from tests.conftest import Clock, Server
from tests.fake_backend import DONE, FakeBackend, chat, chunk, cut, http_error, stall, steps, stream, until
from tests.fake_backend import Answer as BackendAnswer
from tests.stream_grammar import check_stream, parse_sse
from tests.turns import SOON_S, Json, eventually, soon, text_of

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

WAYS: dict[str, Any] = {"wire": Protocol, "uvicorn": "httptools"}
both_ways = pytest.mark.parametrize("way", WAYS)
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
KEY = "Authorization: Bearer secret"
TOO_MUCH = 80 * 1024  # for max_body_mb, and for what uvicorn reads ahead


# ── servers and clients ──────────────────────────────────────────────────────────────────────────────────────────────


def made(backend: FakeBackend, **settings: Any) -> FastAPI:
    endpoints = [{"url": f"{backend.url}/v1", "kind": "openai-chat"}]
    settings = {"endpoints": endpoints, "database": {"url": "sqlite://"}, "background": {"drain_s": 0.2}, **settings}
    settings.setdefault("models_refresh_s", 86_400)
    return router.create_app(parse_config({"api_key": "secret", **settings}))


@dataclass
class Site:
    """An application behind a server."""

    app: FastAPI
    server: Server
    port: int

    async def connect(self, limit: int = 2**20) -> Line:
        return Line(*await asyncio.open_connection("127.0.0.1", self.port, limit=limit))

    async def is_idle(self, backend: FakeBackend) -> None:
        pool = self.app.state.pool
        await eventually(lambda: not any(e.in_flight for e in pool.endpoints.values()), "no slot is taken")
        assert not pool.line, "somebody still waits"
        await backend.wait_for(lambda b: b.in_flight == 0)


@asynccontextmanager
async def served(
    app: Any, way: str, behind: Any = None, graceful_s: float = 2, keep_alive_s: float = 5
) -> AsyncIterator[Site]:
    """`app`, which runs already, or what stands before it (`behind`), on uvicorn with one of the two protocols."""
    options = {"lifespan": "off", "log_level": "error", "timeout_graceful_shutdown": graceful_s, "interface": "asgi3"}
    options["timeout_keep_alive"] = keep_alive_s
    server = Server(uvicorn.Config(behind or app, http=WAYS[way], **options))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await eventually(lambda: server.started or serving.done(), "the server has started")
        try:
            yield Site(app, server, listener.getsockname()[1])
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
async def app(backend: FakeBackend) -> AsyncIterator[FastAPI]:
    app = made(backend)
    async with app.router.lifespan_context(app):
        yield app


@dataclass
class Answer:
    """An HTTP answer as it came. `is_whole` unless the connection ended first."""

    version: str
    status: int
    headers: list[tuple[str, str]]
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = True

    @property
    def json(self) -> Json:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Json]:
        return [event for _, event in parse_sse(bytes(self.body))]

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Line:
    """A client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *packets: bytes) -> None:
        for packet in packets:
            self.writer.write(packet)
            await self.writer.drain()
            await asyncio.sleep(0.003)  # The next one comes apart from it.

    async def head(self) -> Answer:
        async with soon():
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        version, status, _ = lines[0].split(" ", 2)
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines[1:])]
        return Answer(version, int(status), headers)

    async def answer(self) -> Answer:
        """The next answer, to its end."""
        answer = await self.head()
        try:
            async with soon():
                if answer.header("transfer-encoding") == "chunked":
                    while chunk := await self.chunk():
                        answer.body += chunk
                elif answer.status != 100:
                    answer.body += await self.reader.readexactly(int(answer.header("content-length")))
        except asyncio.IncompleteReadError:
            answer.is_whole = False
        return answer

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def until(self, wanted: bytes) -> bytes:
        """What comes until this is in it."""
        seen = b""
        async with soon():
            while wanted not in seen:
                piece = await self.reader.read(2**16)
                assert piece, f"the connection ended before {wanted!r}: {seen!r}"
                seen += piece
        return seen

    async def is_closed(self) -> bool:
        """Whether the server closes it, and says nothing more."""
        async with soon():
            assert await self.reader.read() == b"", "something comes behind the answer"
        return True

    async def leave(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


def asks(
    body: Any, *, path: str = RESPONSES, headers: tuple[str, ...] = (KEY,), version: str = "1.1"
) -> tuple[bytes, bytes]:
    """Head and body of a request."""
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Length: {len(data)}", *headers, "", ""]
    return "\r\n".join(lines).encode(), data


def ask(body: Any, **more: Any) -> bytes:
    """A request in one packet."""
    return b"".join(asks(body, **more))


def chunked(body: Json, size: int) -> bytes:
    """A request that does not say how long it is."""
    data = orjson.dumps(body)
    head = f"POST {RESPONSES} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n{KEY}\r\n\r\n".encode()
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def response(**params: Any) -> Json:
    return {"model": "test-model", "input": "Say something.", **params}


def completion(**params: Any) -> Json:
    return {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}], **params}


STREAM = {"stream": True}


def gated(gate: asyncio.Event, text: str) -> BackendAnswer:
    """A stream that says the second half of `text` when the test opens the gate."""
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    end = chunk({}, finish_reason="stop") + DONE
    return stream(chunk({"content": first}), until(gate), chunk({"content": second}), end)


# ── the same answer ──────────────────────────────────────────────────────────────────────────────────────────────────

READ = None
Step = bytes | None
CLOSE = (KEY, "Connection: close")
EXPECT = (KEY, "Expect: 100-continue")
EVIL = {"tools": [{"type": "mcp", "server_label": "a\r\nx-evil: 1", "server_url": "http://x"}]}
LONG = "x" * TOO_MUCH

# What a client does, and the statuses that it gets. READ takes an answer.
TALKS: dict[str, tuple[list[Step], list[int]]] = {
    "a response": ([ask(response()), READ], [200]),
    "a stream": ([ask(response(**STREAM)), READ], [200]),
    "a stream that hides its lengths": (
        [ask(response(**STREAM, stream_options={"include_obfuscation": True})), READ],
        [200],
    ),
    "chat": ([ask(completion(), path=CHAT), READ], [200]),
    "a chat stream": ([ask(completion(**STREAM), path=CHAT), READ], [200]),
    "a background response": ([ask(response(background=True)), READ], [200]),
    "a wrong parameter": ([ask(response(temperature=9)), READ], [400]),
    "no JSON": ([ask(b"{"), READ], [400]),
    "nothing": ([ask(b""), READ], [400]),
    "chat without a model": ([ask({"messages": []}, path=CHAT), READ], [400]),
    "no such model": ([ask(response(model="x")), READ], [400]),
    "no such model to stream": ([ask(completion(model="x", **STREAM), path=CHAT), READ], [404]),
    "no such path": ([ask(response(), path="/v1/nothing"), READ], [404]),
    "no key": ([ask(response(), headers=()), READ], [401]),
    "a wrong key, then the right one": (
        [ask(response(), headers=("Authorization: Bearer x",)), READ, ask(response()), READ],
        [401, 200],
    ),
    "a tool that is no header": ([ask(response(**EVIL)), READ], [200]),
    "a tool that is no header, streamed": ([ask(response(**EVIL, **STREAM)), READ], [200]),
    "HTTP/1.0": ([ask(response(), version="1.0"), READ], [200]),
    "close": ([ask(response(), headers=CLOSE), READ], [200]),
    "a stream and close": ([ask(response(**STREAM), headers=CLOSE), READ], [200]),
    "an error and close": ([ask(response(temperature=9), headers=CLOSE), READ], [400]),
    "expects to go on": ([asks(response(), headers=EXPECT)[0], READ, asks(response())[1], READ], [100, 200]),
    "expects to go on, and does": ([ask(response(**STREAM), headers=EXPECT), READ, READ], [100, 200]),
    "expects without a key": ([asks(response(), headers=EXPECT[1:])[0], READ], [401]),
    "expects too much": ([asks(response(input=LONG), headers=EXPECT)[0], READ], [413]),
    "a head and a body": ([*asks(response()), READ], [200]),
    "byte by byte, nearly": ([ask(response())[at : at + 16] for at in range(0, 200, 16)] + [READ], [200]),
    "in chunks": ([chunked(response(), 16), READ], [200]),
    "in chunks in packets": (
        [chunked(response(**STREAM), 16)[:150], chunked(response(**STREAM), 16)[150:], READ],
        [200],
    ),
    "as much as may be": ([ask(response(input="x" * 40_000)), READ], [200]),
    "too much": ([ask(response(input=LONG)), READ], [413]),
    "too much by its word": ([asks(response(input=LONG))[0], READ], [413]),
    "too much, in chunks": ([chunked(response(input=LONG), 10_000), READ], [413]),
    "too much, then a response": ([ask(response(input=LONG)), READ, ask(response()), READ], [413, 200]),
    "five in a row": (
        [ask(response()), READ, ask(response(**STREAM)), READ] * 2 + [ask(completion(**STREAM), path=CHAT), READ],
        [200] * 5,
    ),
    "two in one packet": ([ask(response()) * 2, READ, READ], [200] * 2),
    "a stream and a response in one packet": ([ask(response(**STREAM)) + ask(response()), READ, READ], [200] * 2),
    "three, and close": ([ask(response()) * 2 + ask(response(), headers=CLOSE), READ, READ, READ], [200] * 3),
    "an error and a stream in one packet": ([ask(b"{") + ask(response(**STREAM)), READ, READ], [400, 200]),
}


async def talk(site: Site, steps: list[Step]) -> list[Answer]:
    """The answers that a client gets. If the last says that it closes the connection, it must; if not, it must not."""
    line = await site.connect()
    answers = []
    for step in steps:
        if step is READ:
            answers.append(await line.answer())
        else:
            await line.send(step)
    if answers[-1].header("connection") == "close":
        assert await line.is_closed()
    else:
        await asyncio.sleep(0.01)
        assert not line.reader.at_eof(), "closed without a word"
    await line.leave()
    return answers


# Headers that are others each time.
EACH_TIMES = ("date", "x-nomyo-wait-ms", "x-request-id")


def bare(answers: list[Answer]) -> list[Any]:
    """What is the same whichever way: all but ids, times, and what is random on purpose."""
    return [
        (
            answer.version,
            answer.status,
            sorted((name, "" if name in EACH_TIMES else value) for name, value in answer.headers),
            answer.is_whole,
            _same(answer.body.decode()),
        )
        for answer in answers
    ]


def _same(text: str) -> str:
    text = re.sub(r"\b(resp|msg)_[0-9a-f]{32}\b", r"\1", text)
    text = re.sub(r'"obfuscation":"[\w-]+"', '"obfuscation":""', text)
    return re.sub(r'"(created_at|completed_at)":\d+', r'"\1":0', text)


@pytest.mark.parametrize(("steps", "statuses"), TALKS.values(), ids=TALKS)
async def test_both_ways_answer_the_same(backend: FakeBackend, steps: list[Step], statuses: list[int]) -> None:
    backend.default = chat("Hello there")
    app = made(backend, max_body_mb=0.05)
    async with app.router.lifespan_context(app), served(app, "wire") as wire, served(app, "uvicorn") as plain:
        ours, theirs = await talk(wire, steps), await talk(plain, steps)
        assert bare(ours) == bare(theirs)
        assert [answer.status for answer in ours] == statuses
        assert all(answer.is_whole for answer in ours)
        assert not any(name == "x-evil" for answer in ours for name, _ in answer.headers)
        await wire.is_idle(backend)


FAILURES = [
    pytest.param(http_error(500, "boom"), 502, marks=pytest.mark.logs("backend_error"), id="an error"),
    pytest.param(http_error(400, "no"), 400, id="a refusal"),
    pytest.param(cut(), 502, marks=pytest.mark.logs("backend_unreachable"), id="a connection that is cut"),
]


@pytest.mark.parametrize("params", [{}, STREAM], ids=["json", "stream"])
@pytest.mark.parametrize(("answer", "status"), FAILURES)
async def test_both_ways_fail_the_same(
    backend: FakeBackend, app: FastAPI, answer: BackendAnswer, status: int, params: Json, short_waits: None
) -> None:
    backend.default = answer
    async with served(app, "wire") as wire, served(app, "uvicorn") as plain:
        for body, path in ((response(**params), RESPONSES), (completion(**params), CHAT)):
            steps: list[Step] = [ask(body, path=path), READ]
            ours, theirs = await talk(wire, steps), await talk(plain, steps)
            assert bare(ours) == bare(theirs)
            assert ours[0].status == status
        await wire.is_idle(backend)


@pytest.mark.logs("broke off")
@both_ways
async def test_half_a_body_does_not_look_like_a_whole_one(backend: FakeBackend, app: FastAPI, way: str) -> None:
    """An answer that is passed on, and breaks off: its client sees a connection that ends in the middle."""
    backend.default = stream(b'{"choices": [', cut(), headers={"Content-Type": "application/json"})
    async with served(app, way) as site:
        line = await site.connect()
        await line.send(ask(completion(), path=CHAT))
        answer = await line.answer()
        assert (answer.status, answer.is_whole, bytes(answer.body)) == (200, False, b'{"choices": [')
        await site.is_idle(backend)
        await line.leave()


@both_ways
async def test_answers_come_in_the_order_of_their_requests(backend: FakeBackend, app: FastAPI, way: str) -> None:
    """Also where the first takes long, and the second would have been done before it."""
    gate = asyncio.Event()
    backend.script(gated(gate, "first"), chat("second"))
    async with served(app, way) as site:
        line = await site.connect()
        await line.send(ask(response(**STREAM)) + ask(response()))
        await backend.wait_for(lambda b: b.in_flight == 1)
        assert len(backend.turns) == 1, "the second was not to begin before the first has ended"
        gate.set()
        first, second = await line.answer(), await line.answer()
        check_stream(first.events)
        assert text_of(first.events[-1]["response"]) == "first"
        assert text_of(second.json) == "second"
        await line.leave()


# ── who leaves ───────────────────────────────────────────────────────────────────────────────────────────────────────

HALF = chat("Hello there", then=stall())
# What is asked, what the backend does, and what the client has read when it leaves.
LEAVING: dict[str, tuple[bytes, BackendAnswer, bytes]] = {
    "JSON": (ask(response()), stall(), b""),
    "JSON that has begun": (ask(response()), HALF, b""),
    "before a stream": (ask(response(**STREAM)), stall(), b""),
    "in a stream": (ask(response(**STREAM)), HALF, b" there"),
    "chat": (ask(completion(), path=CHAT), stall(), b""),
    "before a chat stream": (ask(completion(**STREAM), path=CHAT), stall(), b""),
    "in a chat stream": (ask(completion(**STREAM), path=CHAT), HALF, b" there"),
    "JSON for a long question": (ask(response(input=LONG)), stall(), b""),
    "in a stream for a long question": (ask(response(input=LONG, **STREAM)), HALF, b" there"),
    "chat for a long question": (ask(completion(user=LONG), path=CHAT), stall(), b""),
    "a question in chunks": (chunked(response(input=LONG), 10_000), stall(), b""),
    "what it expected to go on with": (ask(response(), headers=EXPECT), stall(), b"100 Continue"),
}


@both_ways
@pytest.mark.parametrize(("asked", "does", "read"), LEAVING.values(), ids=LEAVING)
async def test_who_leaves_is_missed(
    backend: FakeBackend, app: FastAPI, way: str, asked: bytes, does: BackendAnswer, read: bytes
) -> None:
    backend.default = does
    async with served(app, way) as site:
        line = await site.connect()
        await line.send(asked)
        await backend.wait_for(lambda b: b.in_flight == 1)
        await line.until(read)
        await line.leave()
        await backend.wait_for(lambda b: b.aborts == 1)
        await site.is_idle(backend)


@pytest.mark.parametrize("second", [response(input="The second."), response(input=LONG)], ids=["short", "long"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("params", [{}, STREAM], ids=["json", "stream"])
async def test_who_leaves_while_a_second_request_waits_is_missed(
    backend: FakeBackend, app: FastAPI, params: Json, at_once: bool, second: Json
) -> None:
    """By the wire alone: uvicorn tells nobody but the second one."""
    backend.default = HALF if params else stall()
    async with served(app, "wire") as site:
        line = await site.connect()
        await line.send(ask(response(**params)) + (ask(second) if at_once else b""))
        await backend.wait_for(lambda b: b.in_flight == 1)
        if not at_once:
            await line.send(ask(second))
        await line.leave()
        await backend.wait_for(lambda b: b.aborts == 1)
        await site.is_idle(backend)
        assert len(backend.turns) == 1, "the second went to the backend for nobody"


async def test_who_sends_far_ahead_is_held_back_and_gets_all_answers(backend: FakeBackend, app: FastAPI) -> None:
    """Requests that wait are in memory, so there are not as many of them as a client likes."""
    gate, number = asyncio.Event(), 40
    backend.script(gated(gate, "first"))
    async with served(app, "wire") as site:
        line = await site.connect()
        await line.send(ask(response(**STREAM)))
        await backend.wait_for(lambda b: b.in_flight == 1)
        line.writer.write(b"".join(ask(response(input=LONG, metadata={"n": f"{n}"})) for n in range(number)))
        [connection] = site.server.server_state.connections
        await eventually(lambda: connection.flow.read_paused, "the server stops reading")
        await asyncio.sleep(0.05)
        assert connection.flow.read_paused
        waiting = sum(len(cycle.body) for cycle, _ in connection.pipeline)
        assert waiting < MOST_WAITING + 2**18, "more than that and one read"
        gate.set()
        assert text_of((await line.answer()).events[-1]["response"]) == "first"
        answered = [(await line.answer()).json["metadata"]["n"] for _ in range(number)]
        assert answered == [f"{n}" for n in range(number)]
        await line.leave()
        await site.is_idle(backend)


async def test_who_sends_far_ahead_and_leaves_is_missed(
    backend: FakeBackend, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing is read from it any more."""
    monkeypatch.setattr("api.http.connection.LOOK_FOR_END_S", 0.01)
    backend.script(gated(asyncio.Event(), "first"))
    async with served(app, "wire") as site:
        line = await site.connect()
        await line.send(ask(response(**STREAM)))
        await backend.wait_for(lambda b: b.in_flight == 1)
        line.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3000)
        [connection] = site.server.server_state.connections
        await eventually(lambda: connection.flow.read_paused, "the server stops reading")
        await line.leave()
        await backend.wait_for(lambda b: b.aborts == 1)
        await site.is_idle(backend)


@both_ways
async def test_who_left_before_anybody_looked_is_missed(
    backend: FakeBackend, app: FastAPI, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """While its history is read, nobody watches."""
    asked, gate = asyncio.Event(), asyncio.Event()
    get_history = app.state.db.get_history

    async def slow(*given: Any, **more: Any) -> Any:
        asked.set()
        await gate.wait()
        return await get_history(*given, **more)

    backend.script(chat("Hello there"), stall())
    async with served(app, way) as site:
        [first] = await talk(site, [ask(response()), READ])
        monkeypatch.setattr(app.state.db, "get_history", slow)
        line = await site.connect()
        await line.send(ask(response(previous_response_id=first.json["id"])))
        await asyncio.wait_for(asked.wait(), SOON_S)
        await line.leave()
        await eventually(lambda: not site.server.server_state.connections, "the server has seen it leave")
        gate.set()
        await eventually(lambda: not site.server.server_state.tasks, "the request has ended")
        await site.is_idle(backend)


@both_ways
async def test_who_has_its_answer_is_watched_no_more(backend: FakeBackend, app: FastAPI, way: str) -> None:
    """An idle connection holds nothing of the requests before."""
    async with served(app, way) as site:
        line = await site.connect()
        for params in ({}, STREAM):
            await line.send(ask(response(**params)))
            await line.answer()
            await eventually(lambda: not site.server.server_state.tasks, "the request has ended")
            [connection] = site.server.server_state.connections
            assert getattr(connection, "on_left", None) is None
        await line.leave()


@both_ways
async def test_who_left_before_the_last_of_many_is_missed_there(backend: FakeBackend, app: FastAPI, way: str) -> None:
    """What was told of one request is not told of the next on the same connection."""
    backend.script(chat("one"), chat("two"), stall())
    async with served(app, way) as site:
        line = await site.connect()
        for params in ({}, STREAM):
            await line.send(ask(response(**params)))
            assert (await line.answer()).status == 200
        await line.send(ask(response()))
        await backend.wait_for(lambda b: b.in_flight == 1)
        await line.leave()
        await backend.wait_for(lambda b: b.aborts == 1)
        await site.is_idle(backend)


@both_ways
async def test_who_leaves_after_an_answer_disturbs_nobody(backend: FakeBackend, app: FastAPI, way: str) -> None:
    async with served(app, way) as site:
        for params in ({}, STREAM) * 3:
            line = await site.connect()
            await line.send(ask(response(**params)))
            await line.answer()
            await line.leave()
        await site.is_idle(backend)
        assert backend.aborts == 0


@both_ways
async def test_who_reads_slowly_gets_all_in_order(backend: FakeBackend, app: FastAPI, way: str) -> None:
    long = " ".join(f"{number:06d}" * 20 for number in range(6_000))
    backend.script(chat(long))
    async with served(app, way) as site:
        line = await site.connect(limit=2**14)
        await line.send(ask(response(**STREAM)))
        await asyncio.sleep(0.3)
        answer = await line.answer()
        check_stream(answer.events)
        assert text_of(answer.events[-1]["response"]) == long
        await line.leave()
        await site.is_idle(backend)


# ── who stands between ───────────────────────────────────────────────────────────────────────────────────────────────


class Bystander:
    """Stands around an application, and sees what is sent and received."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.sent: list[Json] = []
        self.received: list[Json] = []

    async def sends(self, scope: Any, receive: Any, send: Any) -> None:
        async def seen(message: Json) -> None:
            self.sent.append(message)
            await send(message)

        await self._app(scope, receive, seen)

    async def receives(self, scope: Any, receive: Any, send: Any) -> None:
        async def seen() -> Json:
            self.received.append(await receive())
            return self.received[-1]

        await self._app(scope, seen, send)


@both_ways
async def test_the_wire_is_used_where_there_is_one_and_is_put_down(
    backend: FakeBackend, app: FastAPI, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Without that, the tests above would compare uvicorn with itself. A request that kept its wire would be a
    circle."""
    head, statuses, scopes = Wire._head, [], []

    def noted(self: Wire, status: int, *given: Any) -> bytes:
        statuses.append(status)
        return head(self, status, *given)

    async def keeps_scopes(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await app(scope, receive, send)

    monkeypatch.setattr(Wire, "_head", noted)
    async with served(app, way, keeps_scopes) as site:
        for body, path in (
            (response(), RESPONSES),
            (response(**STREAM), RESPONSES),
            (completion(), CHAT),
            (completion(**STREAM), CHAT),
            (b"{", RESPONSES),
        ):
            await talk(site, [ask(body, path=path), READ])
        await eventually(lambda: not site.server.server_state.tasks, "all requests have ended")
    assert statuses == ([200, 200, 200, 200, 400] if way == "wire" else [])
    assert [wire_of(scope) for scope in scopes] == [None] * 5


@pytest.mark.parametrize("params", [{}, STREAM], ids=["json", "stream"])
async def test_who_stands_before_the_application_sees_all_that_is_sent(
    backend: FakeBackend, app: FastAPI, params: Json
) -> None:
    bystander = Bystander(app)
    async with served(app, "wire", bystander.sends) as site:
        for body, path in (
            (response(**params), RESPONSES),
            (completion(**params), CHAT),
            (response(top_p=9), RESPONSES),
        ):
            [answer] = await talk(site, [ask(body, path=path), READ])
            start, *pieces = bystander.sent
            assert start["type"] == "http.response.start"
            assert start["status"] == answer.status
            assert b"".join(piece.get("body", b"") for piece in pieces) == answer.body
            bystander.sent.clear()


async def test_who_stands_before_the_application_sees_all_that_is_received(backend: FakeBackend, app: FastAPI) -> None:
    """It may want to count it, to log it, or to change it."""
    bystander = Bystander(app)
    async with served(app, "wire", bystander.receives) as site:
        [answer] = await talk(site, [ask(response()), READ])
    assert answer.status == 200
    assert b"".join(message.get("body", b"") for message in bystander.received) == orjson.dumps(response())


@pytest.mark.parametrize("params", [{}, STREAM], ids=["json", "stream"])
async def test_a_middleware_sees_all_that_is_sent(backend: FakeBackend, params: Json) -> None:
    sent: list[Json] = []

    class Middleware:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def seen(message: Json) -> None:
                sent.append(message)
                await send(message)

            await self._app(scope, receive, seen if scope["type"] == "http" else send)

    app = made(backend)
    app.add_middleware(Middleware)
    async with app.router.lifespan_context(app), served(app, "wire") as site:
        [answer] = await talk(site, [ask(response(**params)), READ])
    assert answer.status == 200
    assert b"".join(message.get("body", b"") for message in sent) == answer.body


async def test_both_ways_are_told_of_in_the_access_log(
    backend: FakeBackend, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(re.sub(r"^[\d.]+:\d+", "client", record.getMessage()))

    log = logging.getLogger("uvicorn.access")
    async with served(app, "wire") as wire, served(app, "uvicorn") as plain:
        monkeypatch.setattr(log, "handlers", [Handler()])
        monkeypatch.setattr(log, "level", logging.INFO)
        log.manager._clear_cache()
        told = []
        for site in (wire, plain):
            for body, path in (
                (response(), "/v1/responses?a=b%20c&d"),
                (response(**STREAM), RESPONSES),
                (completion(**STREAM), CHAT),
                (response(temperature=9), RESPONSES),
            ):
                await talk(site, [ask(body, path=path), READ])
            await talk(site, [ask(response(), version="1.0"), READ])
            told.append(lines.copy())
            lines.clear()
    assert told[0] == told[1]
    assert told[0] == [
        'client - "POST /v1/responses?a=b%20c&d HTTP/1.1" 200',
        'client - "POST /v1/responses HTTP/1.1" 200',
        'client - "POST /v1/chat/completions HTTP/1.1" 200',
        'client - "POST /v1/responses HTTP/1.1" 400',
        'client - "POST /v1/responses HTTP/1.0" 200',
    ]


# ── headers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Transport:
    """Notes what is written to it."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closing = lambda: False

    def write(self, data: bytes) -> None:
        self.written += data


def wire() -> tuple[Wire, Transport]:
    transport = Transport()
    cycle: Any = SimpleNamespace(
        transport=transport,
        flow=SimpleNamespace(write_paused=False),
        scope={},
        access_log=False,
        keep_alive=True,
        default_headers=[(b"server", b"us")],
        message_event=asyncio.Event(),
        on_response=lambda: None,
    )
    return Wire(SimpleNamespace(), cycle), transport  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "header", [(b"x-a", b"a%bx-evil: 1"), (b"x-a%bx-evil", b"1"), (b"x-a", b"a%b"), (b"x-a", b"%ba")]
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n", b"\r", b"\n\r", b"\r\n\r\n", b"\n\n"])
async def test_a_header_with_a_line_end_is_never_sent(header: tuple[bytes, bytes], end: bytes) -> None:
    headers = [(b"x-first", b"1"), tuple(part.replace(b"%b", end) for part in header), (b"x-last", b"1")]
    made, transport = wire()
    with pytest.raises(ValueError, match="line end"):
        made.respond(200, headers, b"body")
    made, started = wire()
    with pytest.raises(ValueError, match="line end"):
        made.start(200, headers)
    assert transport.written == started.written == b""


async def test_other_headers_are_sent_as_they_are() -> None:
    made, transport = wire()
    made.respond(200, [(b"x-a", b'caf\xe9; b="c"'), (b"content-length", b"2")], b"ok")
    assert transport.written == b'HTTP/1.1 200 OK\r\nserver: us\r\nx-a: caf\xe9; b="c"\r\ncontent-length: 2\r\n\r\nok'


@pytest.mark.parametrize(
    "way",
    [pytest.param("wire", marks=pytest.mark.logs("failed")), "uvicorn"],
)
@pytest.mark.logs("Exception in ASGI application")
async def test_a_header_with_a_line_end_breaks_the_answer_off(
    backend: FakeBackend, app: FastAPI, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Were one to come so far: no part of it is sent."""
    monkeypatch.setattr("api.turns.turn.Routing.headers", lambda self: {"x-nomyo-a": "a\r\nx-evil: 1"})
    async with served(app, way) as site:
        for params in ({}, STREAM):
            line = await site.connect()
            await line.send(ask(response(**params)))
            if way == "wire" and params:  # A stream that cannot begin is an error like any other.
                assert (await line.answer()).status == 500
            else:
                assert await line.is_closed()
            await line.leave()
        await site.is_idle(backend)


# ── silence ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@both_ways
async def test_a_silent_stream_is_kept_alive(
    backend: FakeBackend, app: FastAPI, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("api.http.silence.KEEPALIVE_S", 0.03)
    gate = asyncio.Event()
    backend.script(gated(gate, "Hello there"))
    async with served(app, way) as site:
        line = await site.connect()
        await line.send(ask(response(**STREAM)))
        assert b"Hello" in await line.until(b"event: keepalive")
        await line.until(b"event: keepalive")
        gate.set()
        rest = await line.until(b"0\r\n\r\n")
        assert b"event: response.completed" in rest
        await line.leave()


@both_ways
async def test_a_stream_that_is_not_silent_holds_no_comments(
    backend: FakeBackend, app: FastAPI, clock: Clock, way: str
) -> None:
    gates = [asyncio.Event() for _ in range(10)]
    words = [step for number, gate in enumerate(gates) for step in (until(gate), chunk({"content": f"word {number} "}))]
    backend.script(
        stream(chunk({"role": "assistant", "content": "Hello "}), *words, chunk({}, finish_reason="stop"), DONE)
    )
    async with served(app, way) as site:
        line = await site.connect()
        await line.send(ask(response(**STREAM)))
        seen = await line.until(b"Hello")
        for number, gate in enumerate(gates):
            clock.advance(KEEPALIVE_S * 2 / 3)
            gate.set()
            seen += await line.until(b"word %d " % number)
        seen += await line.until(b"0\r\n\r\n")
        await line.leave()
    assert b"\n:" not in seen
    assert b"keepalive" not in seen
    assert b"response.completed" in seen


@both_ways
async def test_a_connection_that_nobody_uses_is_closed(
    backend: FakeBackend, app: FastAPI, clock: Clock, way: str
) -> None:
    async with served(app, way, keep_alive_s=60) as site:
        line = await site.connect()
        for _ in range(4):  # Used now and then, it lives longer than its time.
            await line.send(ask(response()))
            assert (await line.answer()).status == 200
            clock.advance(40)
            await asyncio.sleep(0.01)
        assert not line.reader.at_eof(), "it was closed while it was in use"
        clock.advance(40)
        assert await line.is_closed()
        await line.leave()


@both_ways
async def test_a_connection_that_waits_for_its_answer_is_not_idle(
    backend: FakeBackend, app: FastAPI, clock: Clock, way: str
) -> None:
    gate = asyncio.Event()
    async with served(app, way, keep_alive_s=20) as site:
        line = await site.connect()
        await line.send(ask(response()))
        await line.answer()
        backend.script(steps(until(gate), chat("Late.")))
        await line.send(ask(response()))
        await backend.wait_for(lambda b: b.in_flight == 1)
        clock.advance(200)
        await asyncio.sleep(0.01)
        gate.set()
        assert text_of((await line.answer()).json) == "Late."
        head, body = asks(response())
        await line.send(head)
        clock.advance(25)
        await asyncio.sleep(0.01)
        await line.send(body)
        assert (await line.answer()).status == 200, "the half of a request is no silence"
        clock.advance(200)
        assert await line.is_closed()
        await line.leave()


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@both_ways
@pytest.mark.parametrize(
    ("body", "path"), [(response(**STREAM), RESPONSES), (completion(**STREAM), CHAT), (response(), RESPONSES)]
)
async def test_an_answer_that_runs_ends_before_the_server(
    backend: FakeBackend, app: FastAPI, way: str, body: Json, path: str
) -> None:
    gate = asyncio.Event()
    backend.script(gated(gate, "Hello there") if "stream" in body else steps(until(gate), chat("Hello there")))
    async with served(app, way) as site:
        line = await site.connect()
        idle = await site.connect()
        await line.send(ask(body, path=path))
        await backend.wait_for(lambda b: b.in_flight == 1)
        reading = asyncio.create_task(line.answer())
        site.server.should_exit = True
        assert await idle.is_closed(), "a connection on which nothing runs is closed"
        gate.set()
        answer = await reading
        assert (answer.status, answer.is_whole) == (200, True)
        assert await line.is_closed()
        await idle.leave()
        await line.leave()


@pytest.mark.logs("")
@both_ways
async def test_an_answer_that_does_not_end_is_broken_off(backend: FakeBackend, app: FastAPI, way: str) -> None:
    backend.script(HALF)
    async with served(app, way, graceful_s=0) as site:
        line = await site.connect()
        await line.send(ask(response(**STREAM)))
        await line.until(b" there")
    await backend.wait_for(lambda b: b.aborts == 1)
    await site.is_idle(backend)
    await line.leave()
