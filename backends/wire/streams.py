"""Streamed answers of backends: what each network read held, in one go where that can be.

ChatStream     chat chunks, and runs of them
NativeStream    events of a server that speaks Responses, and runs of them
RawAnswer      bytes, as they come
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

from backends.wire.errors import ANY_SERVER, ServerErrors, json_or_none, raise_named
from backends.wire.http1 import LEFT, Answer, BadAnswer
from core.errors import BackendCut, BackendError, TooManyRequests
from core.json import decode_json, decode_json_halves
from requests.bounded_json import has_too_many_values
from requests.chat import DecodeError, decode_chunk, is_error, means_error
from requests.chat_types import ChatChunk
from requests.endings import ends_answer
from requests.native_events import ENDS, LIFECYCLE, WHOLE, NativeEvent, NativeRun, parse_head, pieces_in
from requests.reads import Run, decode_read
from requests.sse import SSEDecoder
from requests.thoughts import thought_in

T = TypeVar("T")

# What ends a stream of chat chunks.
DONE = b"[DONE]"
# How long what belongs to an answer may come behind its end: the usage; and behind that [DONE], and the end of the HTTP
# body, for which no client has to wait, but which leave a connection that can be used again.
GRACE_S = 2.0
DONE_S = 0.5
LAST_READ_S = 0.05
# So long behind the end nothing of the answer itself is expected any more.
SETTLED_S = 0.1

# Pieces, and what is wrong behind them.
Read = tuple[list[T], BackendError | TooManyRequests | None]


class WayOut(Protocol):
    """Where an answer may leave as it arrives (`api.http.replies.Express`)."""

    write: Callable[[list[Any]], None] | None
    send: Callable[[bytes], bool] | None

    def close(self) -> None: ...


class BackendStream(ABC, Generic[T]):
    """An SSE answer. `batches()` gives what each network read held, and an empty one where the answer has ended a
    moment ago and more may come behind that; iterating gives the pieces one by one. `errors` names those that are in
    it."""

    # Nothing but [DONE] is missing; since when that is waited for, and whether the empty batch was given.
    _is_counted = False
    _ended_at = 0.0
    _is_settled = False

    def __init__(self, answer: Answer, errors: ServerErrors = ANY_SERVER, begins: bytes = b"") -> None:
        """`begins` is what was read of it already."""
        self._answer = answer
        self.errors = errors
        self._begins = begins
        self._decoder = SSEDecoder()
        self._left: Read[T] = ([], None)
        # The answer is whole; and its end was passed on.
        self._ended = self._done = False
        self._first: list[T] | None = None
        self._rest: AsyncGenerator[list[T]] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the answer, by their names in lower case."""
        return self._answer.headers

    @property
    def is_done(self) -> bool:
        """Whether it has come to its end: the last event, or [DONE]."""
        return self._done

    def __aiter__(self) -> AsyncIterator[T]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[T]:
        async for batch in self.batches():
            for piece in batch:
                yield piece

    async def prime(self) -> None:
        """Waits for the first pieces. Raises what is wrong with them, or with the backend."""
        self._rest = self._batches()
        self._first = await anext(self._rest)

    def batches(self) -> AsyncGenerator[list[T]]:
        """What one read of the backend held, together; read by read."""
        return self._batches() if self._rest is None else self._primed(self._rest)

    async def _primed(self, rest: AsyncGenerator[list[T]]) -> AsyncGenerator[list[T]]:
        async with aclosing(rest):
            if self._first is not None:
                yield self._first
            async for batch in rest:
                yield batch

    def shortcut(
        self,
        express: WayOut,
        events_of: Callable[[list[T]], list[Any]],
        frame_of: Callable[[bytes], bytes | None],
    ) -> None:
        """From now on, what arrives in the middle of the answer while its reader waits for it leaves by the `express`,
        as what `events_of` makes of its pieces, and the reader is not woken. `frame_of` is asked first, for a read that
        begins with an event, and may leave it to `events_of`."""
        decoder = self._decoder

        def tap(received: bytes) -> bool:
            send = express.send
            if send is not None and decoder.is_between_events and (frame := frame_of(received)) is not None:
                if not send(frame):
                    express.close()
                return True
            pieces, error = self._left = self._pieces_in(received)
            if error is not None or self._ended:
                return False
            if not pieces:
                return True
            if (write := express.write) is None:
                return False
            if events := events_of(pieces):
                write(events)
            return True

        self._answer.tap = tap

    async def _batches(self) -> AsyncGenerator[list[T]]:
        nothing = True
        try:
            while not self._done:
                try:
                    if self._begins or self._ended:
                        received = await self._late_read()
                    else:
                        received = await self._answer.readany()
                except Exception as error:
                    if self._ended:
                        break
                    raise_named(error, begun=not nothing)
                if received is None:
                    yield []
                    continue
                if received is LEFT:
                    batch, wrong = self._left
                else:
                    batch, wrong = self._pieces_in(received) if received else self._read(self._decoder.flush())
                if wrong is not None and nothing and not any(map(self._matters, batch)):
                    raise wrong  # Nobody has got anything yet: another server may be asked.
                if batch:
                    nothing = False
                    yield batch
                if wrong:
                    raise wrong
                if not received:
                    break
            if self._done and not self._answer.at_eof:
                await self._last_read()
            if nothing:
                raise BackendError("The backend's answer is empty.", code="backend_empty_answer")
            if not self._ended:
                raise self._cut()
        finally:
            self._answer.close()

    async def _late_read(self) -> bytes | None:
        """What was read already; or what comes behind the end, and before [DONE]: that is not waited for as long as for
        the answer. None, once, a moment behind the end. Raises `TimeoutError` in the end."""
        if self._begins:
            begins, self._begins = self._begins, b""
            return begins
        now = asyncio.get_running_loop().time()
        # Since the end, whatever has come meanwhile: some servers send comments for ever.
        self._ended_at = self._ended_at or now
        grace_s = DONE_S if self._is_counted else GRACE_S
        try:
            async with asyncio.timeout_at(self._ended_at + (grace_s if self._is_settled else SETTLED_S)):
                return await self._answer.readany()
        except TimeoutError:
            if self._is_settled:
                raise
            self._is_settled = True
            return None

    async def _last_read(self) -> None:
        """The end of the HTTP body comes right behind that of the answer. Read, it leaves a connection that can be used
        again."""
        with contextlib.suppress(BadAnswer, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(LAST_READ_S):
                while await self._answer.readany():
                    pass

    def _cut(self) -> BackendError | TooManyRequests:
        """What is wrong with an answer that has no end."""
        return BackendCut("The backend ended its answer in the middle.")

    async def aclose(self) -> None:
        """Cuts the answer if it has not ended: that aborts the backend's work."""
        self._answer.close()

    def _pieces_in(self, received: bytes) -> Read[T]:
        """The pieces in a network read, and what is wrong behind them. Notes if they are the last."""
        return self._read(self._decoder.feed(received))

    def _read(self, datas: list[bytes]) -> Read[T]:
        """The same in the data of some events."""
        pieces: list[T] = []
        for place, data in enumerate(datas):
            if data[:1] == b"[" and data.strip() == DONE:
                self._ended = self._done = True
                break
            try:
                pieces.append(self._piece(data, place))
            except (BackendError, TooManyRequests) as error:
                if not self._ended:
                    return pieces, error
                self._done = True  # An end stays an end, whatever comes behind it.
            if self._done:
                break
        return pieces, None

    @abstractmethod
    def _matters(self, piece: T) -> bool:
        """Whether a client gets anything of a piece but that the answer has begun."""

    @abstractmethod
    def _piece(self, data: bytes, place: int) -> T:
        """The piece in `data`, which has this place in the read. Notes in `_ended` whether the answer is whole with it.
        Raises when it is an error."""


class ChatStream(BackendStream[ChatChunk | Run]):
    """The chunks of a streamed chat completion."""

    _has_choices = False
    # What came in place of a chunk.
    _odd = b""

    def _pieces_in(self, received: bytes) -> Read[ChatChunk | Run]:
        """All in one go, for a server that sends a hundred chunks at once; one by one where that cannot be."""
        read = decode_read(received) if self._decoder.is_between_events else None
        if read is None:
            return super()._pieces_in(received)
        chunks, is_end, self._done = read
        self._ended = self._ended or is_end
        self._has_choices = True
        if self._ended and not self._done and chunks:
            self._is_counted |= type(last := chunks[-1]) is ChatChunk and last.usage is not None
        return chunks, None

    async def _pieces(self) -> AsyncIterator[ChatChunk]:
        async for piece in super()._pieces():
            for chunk in piece.chunks() if isinstance(piece, Run) else (piece,):
                yield chunk

    def _piece(self, data: bytes, place: int) -> ChatChunk:
        try:
            chunk = decode_chunk(data)
        except DecodeError:
            if not _holds_nothing(data):
                raise self.errors.not_an_answer(data) from None
            chunk = ChatChunk()
        if is_error(chunk) or (not chunk.choices and self._decoder.name(place) == "error"):
            raise self.errors.inside(json_or_none(data))
        if chunk.choices:
            self._has_choices = True
            for choice in chunk.choices:
                if choice.finish_reason and ends_answer(choice.finish_reason):
                    self._ended = True
        elif not self._has_choices:
            self._odd = data
        if self._ended and chunk.usage is not None:
            self._is_counted = True
        return chunk

    def _matters(self, piece: ChatChunk | Run) -> bool:
        if isinstance(piece, Run):
            return True
        deltas = [choice.delta or choice.message for choice in piece.choices or ()]
        return any(
            delta and (delta.content or delta.refusal or delta.tool_calls or thought_in(delta)) for delta in deltas
        )

    def _cut(self) -> BackendError | TooManyRequests:
        return self.errors.not_an_answer(self._odd) if self._odd and not self._has_choices else super()._cut()


class NativeStream(BackendStream[NativeEvent | NativeRun]):
    """The events of a native Responses stream."""

    def _read(self, datas: list[bytes]) -> Read[NativeEvent | NativeRun]:
        """All in one go, where that can be."""
        pieces = pieces_in(datas) if len(datas) > 1 else None
        if pieces is None:
            return super()._read(datas)
        self._ended = self._done = pieces[-1].type in ENDS
        return pieces, None

    def _matters(self, piece: NativeEvent | NativeRun) -> bool:
        return piece.type not in LIFECYCLE

    async def _pieces(self) -> AsyncIterator[NativeEvent]:
        async for piece in super()._pieces():
            for event in piece.events() if isinstance(piece, NativeRun) else (piece,):
                yield event

    def _piece(self, data: bytes, place: int) -> NativeEvent:
        try:
            event = NativeEvent(parse_head(data), data)
        except DecodeError:
            event = self._odd_event(data, place)
        if event.type in ENDS:
            self._ended = self._done = True
        return event

    def _odd_event(self, data: bytes, place: int) -> NativeEvent:
        """An event that does not name itself, or is no JSON by the letter; or a whole response in place of events."""
        if has_too_many_values(data):
            raise self.errors.not_an_answer(data)
        try:
            value = decode_json_halves(data)
        except ValueError:
            raise self.errors.not_an_answer(data) from None
        if not isinstance(value, dict):
            value = {"type": "keepalive"}  # As empty as this one.
        if value.get("object") == "response":
            value = {"type": WHOLE, "response": value}
        elif not isinstance(value.get("type"), str):
            if means_error(value.get("error")):
                raise self.errors.inside(value)
            if not (name := self._decoder.name(place)):
                raise self.errors.not_an_answer(data)
            value = {**value, "type": name}
        return NativeEvent.of(value)


def _holds_nothing(data: bytes) -> bool:
    """Whether it is JSON, but no object: there is nothing in it, and it is no reason to end an answer."""
    try:
        return not isinstance(decode_json(data), dict)
    except ValueError:
        return False


class RawAnswer:
    """An answer that goes on as it came. `pieces()` gives what each network read held."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.content_type = answer.headers.get("content-type", "application/json")

    def shortcut(self, take: Callable[[bytes], bool]) -> None:
        """From now on, `take` is offered what arrives while its reader waits for it, and takes it or not."""
        self._answer.tap = lambda received: take(received) or None

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The bytes as they come. Raises `BackendError` where they break off."""
        begun = False
        try:
            while True:
                try:
                    received = await self._answer.readany()
                except Exception as error:
                    raise_named(error, begun=begun)
                if not received:
                    break
                begun = True
                yield received
            if not begun:
                raise BackendError("The backend's answer is empty.", code="backend_empty_answer")
        finally:
            self._answer.close()
