"""HTTP/1.1 to one server: kept connections, httptools' C parser, bytes as they come.

    answer = await origin.send("POST", "/v1/chat/completions", body)
    answer.status, answer.headers
    while received := await answer.readany(): …

A library's client costs more than all the rest of a request (aiohttp: about 0.2 ms); this does what a model server
needs and nothing else. What goes wrong is an `OSError`, a `TimeoutError` or a `BadAnswer`. Specification: RFC 9112.
"""

from __future__ import annotations

import asyncio
import base64
import select
import socket
import ssl
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol, cast
from urllib.parse import unquote, urlsplit

import httptools

# Servers close idle connections after 5 s (llama.cpp, uvicorn): let ours go first.
KEPT_S = 4.0
# An answer that nobody reads is not read from its socket past this either.
MOST_UNREAD = 1024 * 1024
# Of bytes that belong to no body: heads, trailers, what stands beside the length of a chunk.
MOST_HEAD = 64 * 1024
MOST_ANSWER = 256 * 1024 * 1024
# Of what a server lists (GET): the largest have some thousands of models, 1 KB each.
MOST_LISTED = 16_000_000


class Receiver(Protocol):
    """Whom an answer is given to as it comes."""

    def data(self, received: bytes) -> None:
        """What a network read held of its body."""
        ...

    def closed(self, error: Exception | None) -> None:
        """It has ended, or failed."""
        ...


class BadAnswer(Exception):
    """What came is no HTTP."""


class OversizedAnswer(BadAnswer):
    """The head, or the whole of what came out, is larger than we take. Its text names which."""


class ConnectTimeout(TimeoutError):
    """No connection in time."""


class Origin:
    """A server. `headers` go with every request; `close()` ends all connections. There is no limit to their number:
    whoever uses this has one of its own. An answer may have `max_answer_bytes`, unpacked."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_timeout_s: float = 5.0,
        first_byte_timeout_s: float = 600.0,
        read_timeout_s: float = 600.0,
        max_answer_bytes: int = MOST_ANSWER,
    ) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._connect_timeout_s = connect_timeout_s
        self.first_byte_timeout_s = first_byte_timeout_s
        self.read_timeout_s = read_timeout_s
        self.max_answer_bytes = max_answer_bytes
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        lines = {"Host": parts.netloc.rpartition("@")[2], **headers}
        if parts.username and "Authorization" not in lines:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            lines["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"
        for name, value in lines.items():
            if "\r" in name + value or "\n" in name + value:
                raise ValueError(f"The header {name!r} holds a line end.")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("latin-1", "replace")

    async def send(self, method: str, target: str, body: bytes = b"", lines: bytes = b"") -> Answer:
        """The answer to a request, as soon as its head is there; `lines` are headers of its own. Nothing is sent twice:
        a server that drops a request may have begun to answer it. But a GET changes nothing, and is sent once more
        where a kept connection failed."""
        content = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if method == "POST" else b""
        request = b"%b %b HTTP/1.1\r\n%b%b%b\r\n%b" % (
            method.encode(),
            target.encode(),
            self._head,
            lines,
            content,
            body,
        )
        max_bytes = self.max_answer_bytes if method != "GET" else min(self.max_answer_bytes, MOST_LISTED)
        if (kept := self._kept()) is not None:
            try:
                return await _begun(kept.send(request, max_bytes))
            except ConnectionError:
                if method != "GET":
                    raise
        return await _begun((await self._connect()).send(request, max_bytes))

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def answering(self) -> int:
        """How many answers are under way."""
        return sum(connection.is_answering for connection in self._open)

    def give_up(self) -> None:
        """The server is lost: whoever waits for the first byte of an answer shall wait no longer."""
        for connection in list(self._open):
            connection.give_up()

    async def close(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for connection in list(self._open):
            connection.abort()
        # One turn of the loop, in which the sockets are closed.
        await asyncio.sleep(0)

    def _kept(self) -> Connection | None:
        """A connection from before, if one is still good."""
        while self._idle:
            connection = self._idle.pop()
            if connection.silent_s() < KEPT_S and connection.is_usable():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._ssl
                )
        except TimeoutError as error:
            raise ConnectTimeout from error
        except UnicodeError:  # A name that cannot be one.
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        return connection

    # Called by the connections.

    def opened(self, connection: Connection) -> None:
        """A connection is open."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """A connection is closed."""
        self._open.discard(connection)

    def kept(self, connection: Connection) -> None:
        """A connection is free for the next request."""
        self._idle.append(connection)
        if self._idle_timer is None:
            self._idle_timer = connection.loop.call_later(KEPT_S, self._close_idle)

    def _close_idle(self) -> None:
        """Closes the connections that nobody has used for a while. The one that was used last is the last of them."""
        self._idle_timer = None
        while self._idle and (self._idle[0].silent_s() >= KEPT_S or not self._idle[0].is_open):
            self._idle.popleft().abort()
        if self._idle:
            oldest = self._idle[0]
            self._idle_timer = oldest.loop.call_later(KEPT_S - oldest.silent_s(), self._close_idle)


async def _begun(answer: Answer) -> Answer:
    """The answer, once its head is there."""
    try:
        await answer.begun()
    except BaseException:
        answer.close()
        raise
    return answer


class Connection(asyncio.Protocol):
    """A connection, on which requests go one after the other."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._check_every_s = min(origin.first_byte_timeout_s, origin.read_timeout_s)
        self.loop = asyncio.get_running_loop()
        self._answer: Answer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._poll: Any = None
        self._parser: httptools.HttpResponseParser | None = None
        self.is_open = False
        self.seen = self._sent = 0.0

    @property
    def is_answering(self) -> bool:
        """Whether an answer is under way."""
        return self._answer is not None

    def silent_s(self) -> float:
        """For how long nothing has come."""
        return self.loop.time() - self.seen

    @property
    def parser(self) -> httptools.HttpResponseParser:
        """The parser of the answer that is under way."""
        assert self._parser is not None
        return self._parser

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.Transport, transport)
        if hasattr(select, "poll") and (raw := transport.get_extra_info("socket")) is not None:
            self._poll = select.poll()
            self._poll.register(raw.fileno(), select.POLLIN)
        self.is_open = True
        self._origin.opened(self)

    def is_usable(self) -> bool:
        """Whether a request may be written to it. A server that has closed it may have announced it since the loop last
        looked."""
        return self.is_open and not (self._poll is not None and self._poll.poll(0))

    def send(self, request: bytes, max_bytes: int) -> Answer:
        """Sends a request; its answer will come."""
        answer = self._answer = Answer(self, max_bytes)
        self._parser = httptools.HttpResponseParser(answer)
        self.seen = self._sent = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self._check_every_s, self._check)
        self._transport.write(request)
        return answer

    def data_received(self, data: bytes) -> None:
        """Bytes of the server: parsed, and the reader of the answer woken."""
        answer = self._answer
        if answer is None:  # Nobody asked.
            self.abort()
            return
        self.seen = self.loop.time()
        received = answer.received
        try:
            self._parser.feed_data(data)  # type: ignore[union-attr]  # there is an answer, so there is one
        except httptools.HttpParserError as error:
            answer.fail(answer.wrong or BadAnswer(str(error)))
            self.abort()
            return
        if answer.is_whole:
            self._answer = None
            if answer.keeps_connection and self.is_open:
                self._origin.kept(self)
            else:
                self.abort()
        elif answer.received == received:  # Nothing of a body: the parser keeps what it is.
            answer.head_size += len(data)
            if answer.head_size > MOST_HEAD:
                answer.fail(OversizedAnswer(HEAD_TOO_LARGE))
                self.abort()
                return
        answer.wake()

    def pause(self) -> None:
        """Reads no more from the socket for now."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """Reads from the socket again."""
        if self.is_open:
            self.seen = self.loop.time()  # It was not silent: nobody listened.
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed: an answer that is under way ends or fails."""
        self.is_open = False
        self._origin.closed(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (answer := self._answer) is not None:
            self._answer = None
            answer.cut(error)
        # It has the answer, which has us, who have what could not be sent.
        self._parser = None

    def abort_answer(self, answer: Answer) -> None:
        """Ends it at once, if this answer is under way."""
        if self._answer is answer:
            self.abort()

    def abort(self) -> None:
        """Ends it at once, whatever was under way."""
        if self.is_open:
            self.is_open = False
            answer, self._answer = self._answer, None
            if answer is not None:
                answer.cut(ConnectionAbortedError("The connection was closed here."))
            self._transport.abort()

    def _check(self) -> None:
        """Whether the server is silent for too long. One timer a connection, not one a read: most never matter."""
        self._timer = None
        if self._answer is None:
            return
        if self._answer.is_paused:  # It is the client that reads nothing.
            self.seen = self.loop.time()
        if self._answer.has_body:
            left_s = self.seen + self._origin.read_timeout_s - self.loop.time()
        else:
            left_s = self._sent + self._origin.first_byte_timeout_s - self.loop.time()
        if left_s > 0:
            self._timer = self.loop.call_later(min(left_s, self._check_every_s), self._check)
        else:
            self._time_out()

    def give_up(self) -> None:
        """The server is lost: an answer without a first byte fails with `TimeoutError`."""
        if self._answer is not None and not self._answer.has_body:
            self._time_out()

    def _time_out(self) -> None:
        assert self._answer is not None
        self._answer.fail(TimeoutError("The server is silent."))
        self.abort()


LISTING_TOO_LARGE = f"it is larger than {MOST_LISTED // 1_000_000} MB"
HEAD_TOO_LARGE = f"its head has more than {MOST_HEAD // 1024} KB"


class Answer:
    """An answer that is arriving. `headers` are by their names in lower case. It is read by whoever awaits it, or given
    to a `receiver` as it comes: to wake a task takes longer than to read a token."""

    # What most answers leave as it is stands here: to set each for every answer takes longer.
    receiver: Receiver | None = None
    is_whole = keeps_connection = False
    # How much of a body has come out, and of it how much its reader has taken.
    received = taken = head_size = status = 0
    # What is wrong with what came.
    wrong: BadAnswer | None = None
    _error: Exception | None = None
    _waiter: asyncio.Future[None] | None = None
    _decompressor: Any = None
    _has_begun = is_paused = False

    def __init__(self, connection: Connection, max_bytes: int = MOST_ANSWER) -> None:
        self._connection = connection
        self._max_bytes = max_bytes
        self._chunks: list[bytes] = []
        self.headers: dict[str, str] = {}

    # ── what its reader asks ─────────────────────────────────────────────────────────────────────────────────────────

    async def begun(self) -> None:
        """Waits for its head."""
        while not self._has_begun:
            await self._more()

    async def readany(self) -> bytes:
        """What has arrived since, or b"" at its end."""
        while not self._chunks:
            if self.is_whole and self._error is None:
                return b""
            await self._more()
        return self._taken()

    async def read(self, limit: int = -1) -> bytes:
        """All of it, or no more than about `limit`."""
        if self.is_whole:
            return self._taken()
        parts: list[bytes] = []
        size = 0
        while (limit < 0 or size < limit) and (received := await self.readany()):
            parts.append(received)
            size += len(received)
        return b"".join(parts)

    @property
    def has_body(self) -> bool:
        """Whether something of its body has come out."""
        return self.received > 0

    @property
    def at_eof(self) -> bool:
        """Whether all of it has been read."""
        return self.is_whole and not self._chunks

    def deliver_to(self, receiver: Receiver) -> None:
        """From now on `receiver` is given what arrives, at once, and what is there already."""
        self.receiver = receiver
        if self.received - self.taken > MOST_UNREAD:
            self._connection.resume()
        self.wake()
        if self._error is not None:
            self.fail(self._error)

    def pause(self) -> None:
        """Its receiver has no room: no more is read from the socket, until `resume`."""
        if not self.is_whole and not self.is_paused:
            self.is_paused = True
            self._connection.pause()

    def resume(self) -> None:
        """There is room again."""
        if self.is_paused:
            self.is_paused = False
            self._connection.resume()

    def close(self, rest_s: float = 0.0) -> None:
        """Its reader is done. One that has not ended yet is cut: that aborts the server's work. One whose words have
        ended may end within `rest_s`, and leaves a connection that can be used again."""
        self.receiver = None
        if self.is_whole:
            return
        if rest_s:
            self.taken = self.received
            self.resume()
            self._connection.loop.call_later(rest_s, self.close)
        else:
            self._connection.abort_answer(self)

    def _taken(self) -> bytes:
        """What has arrived."""
        received = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self.received - self.taken > MOST_UNREAD:
            self._connection.resume()
        self.taken = self.received
        return received

    def _more(self) -> asyncio.Future[None]:
        """Until more has arrived. Raises what went wrong instead."""
        if self._error is not None:
            # Not kept, once it has the frames of who reads.
            error, self._error = self._error, ConnectionResetError("The answer had failed before.")
            try:
                raise error
            finally:
                del error
        self._waiter = self._connection.loop.create_future()
        return self._waiter

    # ── what its connection calls ────────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """More has come, or its end: the receiver is given it, or the reader woken."""
        if (receiver := self.receiver) is not None:
            if chunks := self._chunks:
                received = chunks[0] if len(chunks) == 1 else b"".join(chunks)
                chunks.clear()
                receiver.data(received)
            if self.is_whole:
                receiver.closed(None)
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        elif self.received - self.taken > MOST_UNREAD and not self.is_whole:
            self._connection.pause()

    def fail(self, error: Exception) -> None:
        """Raises `error` in its reader, now or as soon as it reads."""
        if self.receiver is not None:
            self.receiver.closed(error)
        else:
            self._error = error
            self.wake()

    def cut(self, error: Exception | None) -> None:
        """The connection ended. That is the end of an answer without a length (RFC 9112, section 6.3), and a failure
        else."""
        has_length = "content-length" in self.headers or "transfer-encoding" in self.headers
        if self._has_begun and not has_length and error is None:
            self.is_whole = True
            self.wake()
        elif self._error is None:
            self.fail(error or ConnectionResetError("The server closed the connection."))

    # ── what the parser calls ────────────────────────────────────────────────────────────────────────────────────────

    def on_status(self, status: bytes) -> None:
        """The words behind the status, which nobody needs."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the answer."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole; one of 100 to 199 is only an announcement. Ends the answer if it is too large."""
        # One that comes in many reads is found out by these.
        if sum(map(len, self.headers.values())) + sum(map(len, self.headers)) > MOST_HEAD:
            self._refuse(HEAD_TOO_LARGE)
        parser = self._connection.parser
        self.status = parser.get_status_code()
        self.keeps_connection = parser.should_keep_alive()
        if self.status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come.
            self.headers.clear()
            return
        self._has_begun = True
        if self.headers.get("content-encoding") in ("gzip", "deflate"):
            # Nobody asked for it. 32: either of the two, by its head.
            self._decompressor = zlib.decompressobj(32 + zlib.MAX_WBITS)

    def on_body(self, data: bytes) -> None:
        """A piece of the body, unpacked if it is compressed."""
        if self._decompressor is not None and not (data := self._unpacked(data)):
            return  # A part of what is packed may give nothing yet.
        self.received += len(data)
        if self.received > self._max_bytes:
            self._chunks.clear()
            is_listing = self._max_bytes == MOST_LISTED
            self._refuse(LISTING_TOO_LARGE if is_listing else "it is larger than the router takes (max_answer_mb)")
        self._chunks.append(data)

    def _unpacked(self, data: bytes) -> bytes:
        try:
            # A byte more than there is room for shows that there is more.
            unpacked: bytes = self._decompressor.decompress(data, self._max_bytes - self.received + 1)
        except zlib.error as error:
            raise BadAnswer(str(error)) from None
        return unpacked

    def _refuse(self, why: str) -> NoReturn:
        self.wrong = OversizedAnswer(why)
        raise OversizedAnswer(why)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self.is_whole = self._has_begun
