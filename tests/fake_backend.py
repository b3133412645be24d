"""A model backend on a real socket that answers exactly what a test tells it to, byte for byte.

    async with FakeBackend() as backend:
        backend.script(http_error(503), chat(reasoning("Hm."), "Hello"))   # one answer a turn, in this order
        ...
        assert backend.turns[-1].json["model"] == "test-model"
        await backend.wait_for(lambda b: b.aborts == 1)

An answer is an async function of a `Reply`. Answers are made of steps: a step is bytes (one write, one HTTP chunk)
or an answer again, so `chat("Hel", then=cut())` and `stream(b"data: {", stall())` read as what happens.
When the client leaves, the answer is cancelled: `stall()` needs no end.
"""

import asyncio
import re
import socket
import struct
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.client import responses as phrases
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import httptools
import orjson

if TYPE_CHECKING:
    from tests.fixtures import Exchange

Json = dict[str, Any]
Answer = Callable[["Reply"], Awaitable[None]]
Step = bytes | Answer

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
SSE_HEADERS = {"Content-Type": "text/event-stream"}
JSON_HEADERS = {"Content-Type": "application/json"}
DONE = b"data: [DONE]\n\n"
CREATED = 1_700_000_000


# ── the server ───────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Request:
    """One request as it arrived (header names in lower case), and what became of it.

    `outcome` is open, then answered; cut when we closed the connection; aborted when the client did so first.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    outcome: Literal["open", "answered", "cut", "aborted"] = "open"

    @property
    def json(self) -> Json:
        return orjson.loads(self.body)

    @property
    def is_turn(self) -> bool:
        return self.method == "POST" and self.path in (CHAT, RESPONSES)


class FakeBackend:
    """The server. `routes` maps "GET /path" to an answer; the two POST routes take theirs from the script."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.models = ["test-model"]
        self.default: Answer = say("Hello from the fake backend.")
        self.routes: dict[str, Answer] = {
            "GET /v1/models": self._list_models,
            "GET /api/tags": self._list_tags,
            "GET /health": json_answer({"status": "ok"}),
        }
        self.requests: list[Request] = []
        self.connections = 0
        self._script: deque[Answer] = deque()
        self._open: set[_Connection] = set()
        self._failures: list[Exception] = []
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._port = 0

    # What a test says and asks.

    def script(self, *answers: Answer) -> None:
        """Queue one answer for each of the next turns. When none is left, `default` answers."""
        self._script.extend(answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def turns(self) -> list[Request]:
        """The requests to the two POST routes: what a router's own look at /v1/models does not disturb."""
        return [request for request in self.requests if request.is_turn]

    @property
    def in_flight(self) -> int:
        return sum(request.outcome == "open" for request in self.turns)

    @property
    def aborts(self) -> int:
        """Turns whose client closed the connection before our answer was complete."""
        return sum(request.outcome == "aborted" for request in self.turns)

    @property
    def unused(self) -> int:
        """Scripted answers that nobody came for."""
        return len(self._script)

    async def wait_for(self, condition: Callable[[Self], bool], timeout_s: float = 5.0) -> None:
        """Wait until the condition holds. It is asked again whenever something changed here."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition(self):
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"it did not become true in {timeout_s} s; {self!r}") from None

    def drop_idle(self) -> None:
        """Close the connections that wait for their next request, as servers do after their keep-alive time.

        A client that sends at once, before its loop has looked, sends into a closed connection.
        """
        for connection in list(self._open):
            if connection.is_idle:
                connection.transport.close()

    # Its life.

    async def start(self, port: int | None = None) -> None:
        """Listen; after a `stop()`, on the same port again."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self._port if port is None else port
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and drop the open ones."""
        if self._server is not None:
            self._server.close()
        tasks = [connection.drop() for connection in list(self._open)]
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)
        # Transports close in the loop's next turn; a client on this loop then knows it as well.
        while self._open:
            await self._changed.wait()
        await _polled()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()
        if self._failures:
            raise self._failures[0]

    def __repr__(self) -> str:
        outcomes = [f"{request.method} {request.path} {request.outcome}" for request in self.requests]
        return f"<FakeBackend {self.url} {self.connections} connections, {outcomes}>"

    # What happens to a request.

    def _changes(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _answer_for(self, request: Request) -> Answer:
        if not request.is_turn:
            return self.routes.get(f"{request.method} {request.path}", http_error(404, "File Not Found"))
        if self.strict and request.path == CHAT and (problem := strict_error(request.json)):
            return http_error(400, problem)
        return self._script.popleft() if self._script else self.default

    async def _list_models(self, reply: "Reply") -> None:
        data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "fake"} for name in self.models]
        await json_answer({"object": "list", "data": data})(reply)

    async def _list_tags(self, reply: "Reply") -> None:
        models = [{"name": name, "model": name, "size": 1, "digest": "", "details": {}} for name in self.models]
        await json_answer({"models": models})(reply)


class Reply:
    """The wire under one answer: the request, and the bytes that go back."""

    def __init__(self, request: Request, connection: "_Connection") -> None:
        self.request = request
        self._connection = connection
        self._framing: Literal["none yet", "chunked", "length"] = "none yet"
        self._keep_alive = request.headers.get("connection", "").lower() != "close"
        self.is_over = False

    async def start(
        self, status: int = 200, headers: dict[str, str] | None = None, *, length: int | None = None
    ) -> None:
        """Send the head. Without a length the body is chunked, and each write is one chunk."""
        headers = dict(headers or {})
        if length is None:
            self._framing = "chunked"
            headers["Transfer-Encoding"] = "chunked"
        else:
            self._framing = "length"
            headers["Content-Length"] = str(length)
        if not self._keep_alive:
            headers["Connection"] = "close"
        elif headers.get("Connection", "").lower() == "close":
            self._keep_alive = False
        fields = [f"{name}: {value}" for name, value in headers.items()]
        head = [f"HTTP/1.1 {status} {phrases.get(status, 'Unknown')}", *fields, "", ""]
        await self.raw("\r\n".join(head).encode())

    async def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if data:
            await self.raw(_framed(data) if self._framing == "chunked" else data)

    async def end(self, data: bytes = b"") -> None:
        """Complete the body; a last piece leaves in the same write as the terminating chunk."""
        if self.is_over:
            return
        if self._framing == "none yet":
            raise RuntimeError("the answer sent nothing: use cut(), stall() or empty() if that is meant")
        if self._framing == "chunked":
            await self.raw((_framed(data) if data else b"") + b"0\r\n\r\n")
        else:
            await self.write(data)
        self.is_over = True
        if not self._keep_alive:
            self._connection.transport.close()

    async def raw(self, data: bytes) -> None:
        """Send bytes as they are, with no framing."""
        if self.is_over:
            raise RuntimeError("the answer went on after its end")
        self._connection.transport.write(data)
        await self._connection.writable.wait()

    def cut(self, *, reset: bool = False) -> None:
        """Close the connection where we are: in an orderly way (FIN), or with a reset (RST)."""
        self.is_over = True
        self.request.outcome = "cut"
        transport = self._connection.transport
        if not reset:
            transport.close()
            return
        # To linger for zero seconds is to throw away what is unsent and to send RST.
        linger = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()


class _Connection(asyncio.Protocol):
    """One client connection: requests are parsed by httptools and answered in turn, by one task at a time."""

    transport: asyncio.Transport

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.writable = asyncio.Event()
        self.writable.set()
        self._parser = httptools.HttpRequestParser(self)
        self._unanswered: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return not self._unanswered

    def drop(self) -> "asyncio.Task[None] | None":
        """Close at once, and give back the task that is to be waited for."""
        self.transport.abort()
        self._give_up("cut")
        return self._task

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.backend.connections += 1
        self._number = self.backend.connections
        self.backend._open.add(self)
        self.backend._changes()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.close()

    def eof_received(self) -> None:
        self._give_up("aborted")

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up("aborted")
        self.backend._open.discard(self)
        self.backend._changes()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    # httptools calls these.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        path = self._url.decode().split("?")[0]
        method = self._parser.get_method().decode()
        request = Request(method, path, self._headers, bytes(self._body), self._number)
        self.backend.requests.append(request)
        self._unanswered.append(request)
        if len(self._unanswered) == 1:
            self._task = asyncio.get_running_loop().create_task(self._answer_all())
        self.backend._changes()

    # And these are ours.

    def _give_up(self, outcome: Literal["cut", "aborted"]) -> None:
        for request in self._unanswered:
            if request.outcome == "open":
                request.outcome = outcome
        if self._task is not None:
            self._task.cancel()
        self.backend._changes()

    async def _answer_all(self) -> None:
        while self._unanswered:
            await self._answer(self._unanswered[0])
            self._unanswered.popleft()
            self.backend._changes()

    async def _answer(self, request: Request) -> None:
        reply = Reply(request, self)
        try:
            await self.backend._answer_for(request)(reply)
            await reply.end()
        except Exception as error:
            self.backend._failures.append(error)
            reply.cut(reset=True)
        if request.outcome == "open":
            request.outcome = "answered"


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


# ── steps ────────────────────────────────────────────────────────────────────


def stall() -> Answer:
    """Nothing more, until the client leaves. Alone, it stalls before the headers."""

    async def answer(reply: Reply) -> None:
        await asyncio.Event().wait()

    return answer


def until(event: asyncio.Event) -> Answer:
    """Go on when the test sets the event."""

    async def answer(reply: Reply) -> None:
        await event.wait()

    return answer


def pause(seconds: float) -> Answer:
    async def answer(reply: Reply) -> None:
        await asyncio.sleep(seconds)

    return answer


def cut(*, reset: bool = False) -> Answer:
    """Close the connection, without the rest of the body. Alone, before the first byte."""

    async def answer(reply: Reply) -> None:
        reply.cut(reset=reset)

    return answer


def steps(*parts: Step) -> Answer:
    """One after another, as in `steps(pause(0.1), chat("late"))`."""

    async def answer(reply: Reply) -> None:
        await _run(reply, parts)

    return answer


async def _run(reply: Reply, parts: Iterable[Step], delay_s: float = 0.0) -> None:
    for part in parts:
        if callable(part):
            await part(reply)
        else:
            await reply.write(part)
            # A client on this loop reads each write by itself.
            await (asyncio.sleep(delay_s) if delay_s else _polled())


async def _polled() -> None:
    """Let the loop look at its sockets. Once is too little: it runs us again before it looks."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


# ── answers ──────────────────────────────────────────────────────────────────


def stream(*parts: Step, delay_s: float = 0.0, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An event stream of exactly these writes. `stream()` is an empty one."""

    async def answer(reply: Reply) -> None:
        await reply.start(status, headers or SSE_HEADERS)
        last = parts[-1] if parts else b""
        if callable(last):
            await _run(reply, parts, delay_s)
        else:
            await _run(reply, parts[:-1], delay_s)
            # In one write: a client that stops reading at [DONE] has still read a complete answer.
            await reply.end(last)

    return answer


def json_answer(
    body: Any, *, status: int = 200, headers: dict[str, str] | None = None, then: Step | None = None
) -> Answer:
    """One JSON body. With `then`, only its first half, and then that step."""
    data = orjson.dumps(body)

    async def answer(reply: Reply) -> None:
        await reply.start(status, JSON_HEADERS | (headers or {}), length=len(data))
        await (reply.end(data) if then is None else _run(reply, [data[: len(data) // 2], then]))

    return answer


def http_error(
    status: int,
    message: str = "the fake backend refuses",
    *,
    type: str = "invalid_request_error",
    code: Any = None,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """An error status with OpenAI's error object, or with any other body."""
    if body is None:
        error = {"message": message, "type": type, "param": None, "code": code}
        return json_answer({"error": error}, status=status, headers=headers)

    async def answer(reply: Reply) -> None:
        await reply.start(status, {"Content-Type": "text/plain"} | (headers or {}), length=len(body))
        await reply.end(body)

    return answer


def empty(status: int = 200) -> Answer:
    """A status and no body at all."""

    async def answer(reply: Reply) -> None:
        await reply.start(status, length=0)

    return answer


def replay(exchange: "Exchange", *, size: int | None = None, delay_s: float = 0.0, then: Step | None = None) -> Answer:
    """A recorded answer: a stream goes frame by frame, or in writes of `size` bytes; `then` follows the last one."""
    headers = {
        name: value
        for name, value in exchange.headers.items()
        if name not in ("content-length", "transfer-encoding", "connection", "keep-alive")
    }
    if exchange.is_stream:
        writes = frames(exchange.body) if size is None else pieces(exchange.body, size)
        ending = [] if then is None else [then]
        return stream(*writes, *ending, delay_s=delay_s, status=exchange.status, headers=headers)

    async def answer(reply: Reply) -> None:
        await reply.start(exchange.status, headers, length=len(exchange.body))
        await reply.end(exchange.body)

    return answer


def say(text: str) -> Answer:
    """The same words on either POST route."""

    async def answer(reply: Reply) -> None:
        await (native(text) if reply.request.path == RESPONSES else chat(text))(reply)

    return answer


# ── bytes ────────────────────────────────────────────────────────────────────


def sse(data: Any, event: str | None = None) -> bytes:
    """One frame."""
    name = f"event: {event}\n".encode() if event else b""
    return name + b"data: " + orjson.dumps(data) + b"\n\n"


def sse_error(message: str = "the fake backend broke", *, code: Any = 500, type: str = "server_error") -> bytes:
    """The frame that a server sends when it fails in the middle of a stream."""
    return sse({"error": {"message": message, "type": type, "code": code}})


def chunk(delta: Json | None = None, *, model: str = "test-model", **choice_or_top: Any) -> bytes:
    """One chat chunk as a frame; finish_reason and logprobs go into its choice, the rest (usage) beside it.

    Without a delta there is no choice, as in the chunk that carries the usage.
    """
    choice = {"index": 0, "delta": delta, "finish_reason": choice_or_top.pop("finish_reason", None)}
    if (logprobs := choice_or_top.pop("logprobs", None)) is not None:
        choice["logprobs"] = logprobs
    return sse(
        {
            "id": "chatcmpl-fake",
            "object": "chat.completion.chunk",
            "created": CREATED,
            "model": model,
            "choices": [] if delta is None else [choice],
            **choice_or_top,
        }
    )


def pieces(data: bytes, size: int) -> list[bytes]:
    """The data in writes of `size` bytes: across frames, lines and UTF-8 characters."""
    return [data[i : i + size] for i in range(0, len(data), size)]


def frames(data: bytes) -> list[bytes]:
    """A recorded event stream, frame by frame."""
    return [part for part in re.split(rb"(?<=\n\n)", data) if part]


def tokens(text: str) -> list[str]:
    """Words with the space before them; they join to the text."""
    return re.findall(r"\s*\S+|\s+$", text)


# ── what a model says ────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Text:
    """Something said in words, under the delta's key for it."""

    text: str
    key: str = "content"
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. `fragments` is the number of deltas for its arguments; 0 sends the whole call in one delta."""

    name: str
    arguments: str
    id: str | None = None
    index: int | None = None
    fragments: int = 3


@dataclass(frozen=True, slots=True)
class Interleaved:
    parts: "tuple[str | Text | Call, ...]"


Part = str | Text | Call | Interleaved


def reasoning(text: str, key: str = "reasoning_content") -> Text:
    """`key` is reasoning_content (llama.cpp, DeepSeek), or reasoning (Ollama, vLLM, OpenRouter)."""
    return Text(text, key)


def refusal(text: str) -> Text:
    return Text(text, "refusal")


def with_logprobs(text: str) -> Text:
    return Text(text, logprobs=True)


def call(
    name: str,
    arguments: Json | str = "{}",
    *,
    id: str | None = None,
    index: int | None = None,
    fragments: int = 3,
) -> Call:
    """A tool call; `id` and `index` follow from its place when they are not given."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    return Call(name, text, id, index, fragments)


def interleaved(*parts: str | Text | Call) -> Interleaved:
    """Said at the same time: a delta of each in turn."""
    return Interleaved(parts)


def chat_usage(
    prompt: int = 7, completion: int = 3, *, cached: int | None = None, reasoning: int | None = None
) -> Json:
    """A chat usage; a detail object is in it when its number is given."""
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def chat(
    *parts: Part,
    finish_reason: str | None = None,
    usage: Json | None = chat_usage(),  # noqa: B008 (only read)
    delay_s: float = 0.0,
    then: Step | None = None,
    as_stream: bool | None = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """A chat completion: chunks when the request asks for a stream, one JSON body when not.

    finish_reason   tool_calls or stop, if it is not given
    usage           in a stream it is sent when the request includes it; None sends it never
    then            happens after the last delta, instead of finish_reason, usage and [DONE]
    as_stream       True or False to answer in that form whatever the request asked for
    """
    numbered = list(_numbered(parts))
    finish = finish_reason or ("tool_calls" if any(isinstance(p, Call) for p in _flat(numbered)) else "stop")

    async def answer(reply: Reply) -> None:
        request = reply.request.json
        model = request.get("model") or "test-model"
        if not (request.get("stream") if as_stream is None else as_stream):
            body = _completion(_flat(numbered), model, finish, usage)
            await json_answer(body, headers=headers, then=then)(reply)
            return
        opening = chunk({"role": "assistant", "content": ""}, model=model)
        said = [chunk(delta, model=model, logprobs=lp) for part in numbered for delta, lp in _deltas(part)]
        ending: list[Step] = [chunk({}, model=model, finish_reason=finish)]
        if usage and (request.get("stream_options") or {}).get("include_usage"):
            ending.append(chunk(model=model, usage=usage))
        ending.append(DONE)
        writes = [opening, *said, *(ending if then is None else [then])]
        await stream(*writes, delay_s=delay_s, headers=SSE_HEADERS | (headers or {}))(reply)

    return answer


def _numbered(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts as objects, their calls with index and id."""
    count = 0

    def number(part: str | Text | Call) -> Text | Call:
        nonlocal count
        if isinstance(part, str):
            return Text(part)
        if isinstance(part, Text):
            return part
        count += 1
        index = count - 1 if part.index is None else part.index
        return Call(part.name, part.arguments, part.id or f"call_{count}", index, part.fragments)

    for part in parts:
        if isinstance(part, Interleaved):
            yield Interleaved(tuple(number(inner) for inner in part.parts))
        else:
            yield number(part)


def _flat(parts: Iterable[Part]) -> list[Text | Call]:
    flat: list[Any] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Interleaved) else [part])
    return flat


def _deltas(part: Part) -> list[tuple[Json, Json | None]]:
    """(delta, logprobs) for each chunk that the part makes."""
    if isinstance(part, Interleaved):
        rounds = zip_longest(*(_deltas(inner) for inner in part.parts))
        return [delta for round_ in rounds for delta in round_ if delta is not None]
    if isinstance(part, Text):
        return [
            ({part.key: token}, {"content": [_logprob(token)], "refusal": None} if part.logprobs else None)
            for token in tokens(part.text)
        ]
    assert isinstance(part, Call)
    function = {"name": part.name, "arguments": "" if part.fragments else part.arguments}
    first = {"index": part.index, "id": part.id, "type": "function", "function": function}
    rest = [{"index": part.index, "function": {"arguments": piece}} for piece in _fragments(part)]
    return [({"tool_calls": [delta]}, None) for delta in (first, *rest)]


def _fragments(part: Call) -> list[str]:
    if not part.fragments:
        return []
    size = -(-len(part.arguments) // part.fragments) or 1
    return [part.arguments[i : i + size] for i in range(0, len(part.arguments), size)]


def _logprob(token: str) -> Json:
    best = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    return best | {"top_logprobs": [best]}


def _completion(parts: list[Text | Call], model: str, finish_reason: str, usage: Json | None) -> Json:
    message: Json = {"role": "assistant", "content": None}
    logprobs: list[Json] = []
    for part in parts:
        if isinstance(part, Text):
            message[part.key] = (message.get(part.key) or "") + part.text
            logprobs += [_logprob(token) for token in tokens(part.text)] if part.logprobs else []
        else:
            function = {"name": part.name, "arguments": part.arguments}
            calls = message.setdefault("tool_calls", [])
            calls.append({"id": part.id, "type": "function", "function": function})
    choice: Json = {"index": 0, "message": message, "finish_reason": finish_reason}
    if logprobs:
        choice["logprobs"] = {"content": logprobs, "refusal": None}
    completion = {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
    }
    return completion if usage is None else completion | {"usage": usage}


# ── a backend that speaks Responses itself ───────────────────────────────────


def responses_usage(input: int = 7, output: int = 3, *, cached: int = 0, reasoning: int = 0) -> Json:
    return {
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": input + output,
    }


def native(
    *parts: Part,
    incomplete: str | None = None,
    usage: Json | None = responses_usage(),  # noqa: B008 (only read)
    delay_s: float = 0.0,
    then: Step | None = None,
    as_stream: bool | None = None,
) -> Answer:
    """A Responses answer, as OpenAI gives it: events when the request asks for a stream, one JSON body when not.

    `incomplete` is the reason for a response that ended early; `then` happens after the last delta.
    """

    async def answer(reply: Reply) -> None:
        request = reply.request.json
        events = native_events(*parts, request=request, incomplete=incomplete, usage=usage)
        if request.get("stream") if as_stream is None else as_stream:
            if then is not None:
                last = max(i for i, event in enumerate(events) if event["type"].endswith(".delta"))
                events = events[: last + 1]
            await event_stream(events, delay_s=delay_s, then=then)(reply)
        else:
            await json_answer(events[-1]["response"], then=then)(reply)

    return answer


def event_stream(events: Iterable[Json], *, delay_s: float = 0.0, then: Step | None = None) -> Answer:
    """These events as `event:` and `data:` frames, one write each, then the step."""
    ending = [] if then is None else [then]
    return stream(*(sse(event, event["type"]) for event in events), *ending, delay_s=delay_s)


def native_events(
    *parts: Part,
    request: Json | None = None,
    response_id: str = "resp_native",
    incomplete: str | None = None,
    usage: Json | None = responses_usage(),  # noqa: B008 (only read)
) -> list[Json]:
    """The events of a whole response: one output item a part, one after another."""
    emit = _Events(response_id, request or {})
    emit.lifecycle("response.created", "in_progress")
    emit.lifecycle("response.in_progress", "in_progress")
    flat = _flat(_numbered(parts))
    for part in flat:
        status = "incomplete" if incomplete and part is flat[-1] else "completed"
        if isinstance(part, Call):
            emit.call(part, status)
        elif part.key in ("content", "refusal"):
            emit.message(part, status)
        else:
            emit.reasoning(part)
    if incomplete:
        emit.lifecycle("response.incomplete", "incomplete", usage, incomplete_details={"reason": incomplete})
    else:
        emit.lifecycle("response.completed", "completed", usage, completed_at=CREATED + 1)
    return emit.events


@dataclass(slots=True)
class _Events:
    """Writes events down, each with its number."""

    response_id: str
    request: Json
    events: list[Json] = field(default_factory=list)
    output: list[Json] = field(default_factory=list)

    def lifecycle(self, type: str, status: str, usage: Json | None = None, **fields: Any) -> None:
        echo = {key: self.request[key] for key in _ECHO if self.request.get(key) is not None}
        response = {**_ECHO, **echo, "id": self.response_id, "object": "response", "created_at": CREATED}
        response |= {"status": status, "completed_at": None, "error": None, "incomplete_details": None}
        response |= {"output": list(self.output), "usage": usage, **fields}
        self._emit(type, response=response)

    def message(self, said: Text, status: str) -> None:
        kind, key = ("refusal", "refusal") if said.key == "refusal" else ("output_text", "text")
        item: Json = {"id": self._id("msg"), "type": "message", "role": "assistant", "content": []}
        zero: Json = {"type": kind, key: ""} | ({"annotations": [], "logprobs": []} if key == "text" else {})
        logprobs = [_logprob(token) for token in tokens(said.text)] if said.logprobs else []
        part = zero | {key: said.text} | ({"logprobs": logprobs} if key == "text" else {})
        self._added(item | {"status": "in_progress"})
        at = {"item_id": item["id"], "output_index": len(self.output), "content_index": 0}
        self._emit("response.content_part.added", **at, part=zero)
        for n, token in enumerate(tokens(said.text)):
            extra = {"logprobs": logprobs[n : n + 1]} if key == "text" else {}
            self._emit(f"response.{kind}.delta", **at, delta=token, **extra)
        extra = {"logprobs": logprobs} if key == "text" else {}
        self._emit(f"response.{kind}.done", **at, **{key: said.text}, **extra)
        self._emit("response.content_part.done", **at, part=part)
        self._done(item | {"status": status, "content": [part]})

    def reasoning(self, thought: Text) -> None:
        item: Json = {"id": self._id("rs"), "type": "reasoning", "summary": []}
        part = {"type": "reasoning_text", "text": thought.text}
        self._added(item | {"content": []})
        at = {"item_id": item["id"], "output_index": len(self.output), "content_index": 0}
        self._emit("response.content_part.added", **at, part=part | {"text": ""})
        for token in tokens(thought.text):
            self._emit("response.reasoning_text.delta", **at, delta=token)
        self._emit("response.reasoning_text.done", **at, text=thought.text)
        self._emit("response.content_part.done", **at, part=part)
        self._done(item | {"content": [part]})

    def call(self, part: Call, status: str) -> None:
        item = {"id": self._id("fc"), "type": "function_call", "call_id": part.id, "name": part.name}
        self._added(item | {"arguments": "", "status": "in_progress"})
        at = {"item_id": item["id"], "output_index": len(self.output)}
        for fragment in _fragments(part) or [part.arguments]:
            self._emit("response.function_call_arguments.delta", **at, delta=fragment)
        self._emit("response.function_call_arguments.done", **at, arguments=part.arguments)
        self._done(item | {"arguments": part.arguments, "status": status})

    def _id(self, prefix: str) -> str:
        return f"{prefix}_native{len(self.output)}"

    def _added(self, item: Json) -> None:
        self._emit("response.output_item.added", output_index=len(self.output), item=item)

    def _done(self, item: Json) -> None:
        self._emit("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)

    def _emit(self, type: str, **fields: Any) -> None:
        self.events.append({"type": type, "sequence_number": len(self.events), **fields})


_ECHO: Json = {
    "model": "test-model",
    "previous_response_id": None,
    "instructions": None,
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "text"}},
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_logprobs": 0,
    "temperature": 1.0,
    "reasoning": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "store": True,
    "background": False,
    "service_tier": "default",
    "metadata": {},
    "safety_identifier": None,
    "prompt_cache_key": None,
}


# ── what strict chat servers refuse ──────────────────────────────────────────

_ROLES = ("system", "developer", "user", "assistant", "tool")
_PARTS = {
    "text": "text",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "refusal": "refusal",
}


def strict_error(request: Json) -> str | None:
    """What is wrong with a chat request, as the strictest of the servers see it; None if nothing is."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        return "'messages' must be an array with at least one message"
    unanswered: set[str] = set()
    for number, message in enumerate(messages):
        problem = _turn_error(message, unanswered) or _content_error(message) or _tool_calls_error(message)
        if problem:
            return f"messages[{number}]: {problem}"
        unanswered |= {tool_call["id"] for tool_call in message.get("tool_calls", [])}
    if unanswered:
        return f"tool calls without an answer: {sorted(unanswered)}"
    return _tools_error(request)


def _turn_error(message: Json, unanswered: set[str]) -> str | None:
    """Strikes the tool call that the message answers off `unanswered`."""
    role = message.get("role")
    if role not in _ROLES:
        return f"unknown role {role!r}"
    if role == "tool":
        if message.get("tool_call_id") not in unanswered:
            return f"tool_call_id {message.get('tool_call_id')!r} answers no open call of the assistant before it"
        unanswered.remove(message["tool_call_id"])
    elif unanswered:
        return f"tool calls are not answered before it: {sorted(unanswered)}"
    return None


def _content_error(message: Json) -> str | None:
    content = message.get("content")
    if content is None:
        if message["role"] == "assistant" and (message.get("tool_calls") or message.get("refusal")):
            return None
        return "content must not be null"
    if isinstance(content, str):
        return None
    if not isinstance(content, list) or not content:
        return "content must be a string or an array with at least one part"
    for part in content:
        if part.get("type") not in _PARTS:
            return f"unknown content part {part.get('type')!r}"
        if _PARTS[part["type"]] not in part:
            return f"content part {part['type']!r} is empty"
    return None


def _tool_calls_error(message: Json) -> str | None:
    if "tool_calls" not in message:
        return None
    tool_calls = message["tool_calls"]
    if message["role"] != "assistant" or not isinstance(tool_calls, list) or not tool_calls:
        return "tool_calls must be an array with at least one call, in an assistant message"
    ids = [tool_call.get("id") for tool_call in tool_calls]
    if len(set(ids)) < len(ids) or not all(isinstance(id, str) and id for id in ids):
        return f"tool calls need ids of their own: {ids}"
    for tool_call in tool_calls:
        function = tool_call.get("function") or {}
        if tool_call.get("type") != "function" or not function.get("name"):
            return f"not a function call: {tool_call}"
        try:
            orjson.loads(function.get("arguments", ""))
        except (orjson.JSONDecodeError, TypeError):
            return f"arguments are not JSON: {function.get('arguments')!r}"
    return None


def _tools_error(request: Json) -> str | None:
    tools = request.get("tools")
    if tools is None:
        alone = [key for key in ("tool_choice", "parallel_tool_calls") if request.get(key) is not None]
        if alone:
            return f"{alone[0]} is only allowed when tools are given"
    elif not isinstance(tools, list) or not tools:
        return "tools must be an array with at least one tool"
    for tool in tools or []:
        if tool.get("type") != "function" or not (tool.get("function") or {}).get("name"):
            return f"not a function tool: {tool}"
    if request.get("stream_options") is not None and not request.get("stream"):
        return "stream_options is only allowed when stream is set"
    return None


async def _serve(port: int) -> None:
    backend = FakeBackend()
    await backend.start(port)
    print(f"the fake backend listens on {backend.url}")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 8001))
