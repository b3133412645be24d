"""Streamed answers of backends: what each network read held, in one go where that can be.

ChatStream     chat chunks, and runs of them
NativeStream    events of a server that speaks Responses, and runs of them
RawAnswer      bytes, as they come
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar, cast

from backends.wire.errors import ANY_SERVER, ServerErrors, json_or_none, raise_named
from backends.wire.http1 import LEFT, Answer, BadAnswer
from core.errors import BackendCut, BackendError, TooManyRequests
from requests.chat import ChatChunk, DecodeError, EventHead, decode_chunk, parse_head, parse_heads
from requests.reads import Run, decode_read
from requests.sse import SSEDecoder

T = TypeVar("T")

# What ends a stream of chat chunks.
DONE = b"[DONE]"

# Pieces, and what is wrong behind them.
Read = tuple[list[T], BackendError | TooManyRequests | None]


class WayOut(Protocol):
    """Where an answer may leave as it arrives (`api.http.replies.Express`)."""

    write: Callable[[list[Any]], None] | None
    send: Callable[[bytes], bool] | None

    def close(self) -> None: ...


class BackendStream(ABC, Generic[T]):
    """An SSE answer. `batches()` gives what each network read held; iterating gives the pieces one by one. `errors` names those that
    are in it."""

    def __init__(self, answer: Answer, errors: ServerErrors = ANY_SERVER) -> None:
        self._answer = answer
        self.errors = errors
        self._decoder = SSEDecoder()
        self._left: Read[T] = ([], None)
        # The answer is whole; and its end was told.
        self._ended = self._done = False
        self._first: list[T] | None = None
        self._rest: AsyncGenerator[list[T]] | None = None

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
        """From now on, what arrives in the middle of the answer while its reader waits for it leaves by the `express`, as what
        `events_of` makes of its pieces, and the reader is not woken. `frame_of` is asked first, for a read that begins with an event, and
        may leave it to `events_of`."""
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
                    received = await self._answer.readany()
                except Exception as error:
                    raise_named(error, begun=not nothing)
                if received is LEFT:
                    batch, wrong = self._left
                else:
                    batch, wrong = self._pieces_in(received) if received else self._read(self._decoder.flush())
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
                raise BackendCut("The backend ended its answer in the middle.")
        finally:
            self._answer.close()

    async def _last_read(self) -> None:
        """The end of the HTTP body comes right behind [DONE]. Read, it leaves a connection that can be used again."""
        with contextlib.suppress(BadAnswer, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(0.05):
                await self._answer.readany()

    async def aclose(self) -> None:
        """Cuts the answer if it has not ended: that aborts the backend's work."""
        self._answer.close()

    def _pieces_in(self, received: bytes) -> Read[T]:
        """The pieces in a network read, and what is wrong behind them. Notes if they are the last."""
        return self._read(self._decoder.feed(received))

    def _read(self, datas: list[bytes]) -> Read[T]:
        """Likewise in the data of some events."""
        pieces: list[T] = []
        for data in datas:
            if data == DONE:
                self._ended = self._done = True
                break
            try:
                pieces.append(self._piece(data))
            except (BackendError, TooManyRequests) as error:
                return pieces, error
        return pieces, None

    @abstractmethod
    def _piece(self, data: bytes) -> T:
        """The piece in `data`. Notes in `_ended` whether the answer is whole with it. Raises when it is an error."""


class ChatStream(BackendStream[ChatChunk | Run]):
    """The chunks of a streamed chat completion."""

    def _pieces_in(self, received: bytes) -> Read[ChatChunk | Run]:
        """All in one go, for a server that sends a hundred chunks at once; one by one where that cannot be."""
        read = decode_read(received) if self._decoder.is_between_events else None
        if read is None:
            return super()._pieces_in(received)
        chunks, is_end, self._done = read
        self._ended = self._ended or is_end
        return chunks, None

    async def _pieces(self) -> AsyncIterator[ChatChunk]:
        async for piece in super()._pieces():
            for chunk in piece.chunks() if isinstance(piece, Run) else (piece,):
                yield chunk

    def _piece(self, data: bytes) -> ChatChunk:
        try:
            chunk = decode_chunk(data)
        except DecodeError:
            raise self.errors.not_an_answer(data) from None
        if chunk.error is not None or chunk.object == "error":
            raise self.errors.inside(json_or_none(data))
        for choice in chunk.choices or ():
            if choice.finish_reason:
                self._ended = True
        return chunk


class NativeEvent:
    """An event of a native Responses stream, read no further than it must be: `data` is all of it."""

    __slots__ = ("data", "number", "type")

    def __init__(self, type: str, number: Any, data: bytes) -> None:
        self.type = type
        self.number = number
        self.data = data

    def model_dump(self) -> dict[str, Any]:
        event = json_or_none(self.data)
        if event is None:
            raise ANY_SERVER.not_an_answer(self.data)
        return cast(dict[str, Any], event)


class NativeRun:
    """Deltas of one type, one behind the other, with numbers likewise: `number` is the first."""

    __slots__ = ("datas", "number", "type")

    def __init__(self, type: str, number: int, datas: list[bytes]) -> None:
        self.type = type
        self.number = number
        self.datas = datas

    def events(self) -> list[NativeEvent]:
        return [NativeEvent(self.type, number, data) for number, data in enumerate(self.datas, self.number)]


class NativeStream(BackendStream[NativeEvent | NativeRun]):
    """The events of a native Responses stream."""

    _ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})

    def _read(self, datas: list[bytes]) -> Read[NativeEvent | NativeRun]:
        """All in one go, where that can be."""
        heads = parse_heads(datas) if len(datas) > 1 else None
        if heads is None:
            return super()._read(datas)
        self._ended = heads[-1].type in self._ENDS
        begin, end = _run_in(heads)
        pieces: list[NativeEvent | NativeRun] = [*map(_event_of, heads[:begin], datas[:begin])]
        if begin < end:
            pieces.append(NativeRun(heads[begin].type, heads[begin].sequence_number, datas[begin:end]))
        return [*pieces, *map(_event_of, heads[end:], datas[end:])], None

    async def _pieces(self) -> AsyncIterator[NativeEvent]:
        async for piece in super()._pieces():
            for event in piece.events() if isinstance(piece, NativeRun) else (piece,):
                yield event

    def _piece(self, data: bytes) -> NativeEvent:
        try:
            head = parse_head(data)
        except DecodeError:
            described = json_or_none(data)
            if isinstance(described, dict) and "error" in described:
                raise self.errors.inside(described) from None
            raise self.errors.not_an_answer(data) from None
        self._ended = head.type in self._ENDS
        return _event_of(head, data)


def _event_of(head: EventHead, data: bytes) -> NativeEvent:
    return NativeEvent(head.type, head.sequence_number, data)


def _run_in(heads: list[EventHead]) -> tuple[int, int]:
    """Where the deltas around the middle begin and end that are of one type, and whose numbers go on. Nowhere, if there is none."""
    begin = end = len(heads) // 2
    type, number = heads[begin].type, heads[begin].sequence_number
    if not type.endswith(".delta") or not isinstance(number, int):
        return begin, end
    offset = number - begin
    while begin > 0 and heads[begin - 1].type == type and heads[begin - 1].sequence_number == begin - 1 + offset:
        begin -= 1
    while end < len(heads) and heads[end].type == type and heads[end].sequence_number == end + offset:
        end += 1
    return begin, end


class RawAnswer:
    """An answer that goes on as it came. `pieces()` gives what each network read held."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.content_type = answer.headers.get("content-type", "application/json")

    def shortcut(self, take: Callable[[bytes], bool]) -> None:
        """From now on, `take` is offered what arrives while its reader waits for it, and takes it or not."""
        self._answer.tap = lambda received: take(received) or None

    async def pieces(self) -> AsyncGenerator[bytes]:
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
