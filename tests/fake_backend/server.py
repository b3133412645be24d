"""The server: what comes in is written down, and answered in turn."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, Self, cast

import httptools

from tests.fake_backend.answers import http_error, json_answer, polled
from tests.fake_backend.chat_answers import chat
from tests.fake_backend.native_answers import native
from tests.fake_backend.reply import CHAT, CREATED, RESPONSES, Answer, Reply, Request
from tests.fake_backend.strict import strict_error


def say(text: str) -> Answer:
    """The same words on either POST route."""

    async def answer(reply: Reply) -> None:
        await (native(text) if reply.request.path == RESPONSES else chat(text))(reply)

    return answer


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

    async def wait_for(self, condition: Callable[[Self], bool], timeout_s: float = 30.0) -> None:
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
        await polled()

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

    async def _list_models(self, reply: Reply) -> None:
        data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "fake"} for name in self.models]
        await json_answer({"object": "list", "data": data})(reply)

    async def _list_tags(self, reply: Reply) -> None:
        models = [{"name": name, "model": name, "size": 1, "digest": "", "details": {}} for name in self.models]
        await json_answer({"models": models})(reply)


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
        body, self._body = bytes(self._body), bytearray()
        request = Request(method, path, self._headers, body, self._number)
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
        reply = Reply(request, self.transport, self.writable)
        try:
            await self.backend._answer_for(request)(reply)
            await reply.end()
        except Exception as error:
            self.backend._failures.append(error)
            reply.cut(reset=True)
        if request.outcome == "open":
            request.outcome = "answered"
