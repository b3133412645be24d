"""One thin client an endpoint: the SDK's surface over raw bytes (`backends/http1.py`) and msgspec.

    client.chat.completions.create(**params)   ChatCompletion, or a ChatStream to iterate over
    client.responses.create(**params)          a dict, or an EventStream
    client.forward(path, body)                 an answer as it comes, byte by byte
    client.get_json(path)                      for listing models

The official SDK's client can stand in for it. Foreign errors, and the SDK's, become ours here (`named`) and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from types import MappingProxyType, SimpleNamespace
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import orjson

from backends.http1 import LEFT, Answer, BadAnswer, ConnectTimeout, Origin
from backends.refusals import overflow_of, unsupported_of
from errors import (
    BackendCut,
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnreachable,
    TooManyRequests,
)
from requests.chat import (
    ChatChunk,
    ChatCompletion,
    DecodeError,
    Dumped,
    EventHead,
    decode_chunk,
    decode_completion,
    parse_head,
    parse_heads,
)
from requests.reads import Run, decode_read
from requests.sse import SSEDecoder

log = logging.getLogger("nomyo.backends")

T = TypeVar("T")

# What ends a stream of chat chunks.
DONE = b"[DONE]"
MAX_ERROR_BODY = 64 * 1024


class BackendClient:
    """Speaks to one endpoint. `base_url` is where its API begins (…/v1), `root_url` what was configured. Connections are
    pooled and kept; `close()` ends them."""

    def __init__(
        self,
        root_url: str,
        base_url: str,
        *,
        api_key: str = "",
        headers: Mapping[str, str] = MappingProxyType({}),
        connect_timeout_s: float = 5.0,
        first_byte_timeout_s: float = 600.0,
        read_timeout_s: float = 600.0,
    ) -> None:
        self._origin = Origin(
            base_url,
            # Not compressed: an encoder on the way would hold tokens back.
            {
                "Accept-Encoding": "identity",
                **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
                **headers,
            },
            connect_timeout_s=connect_timeout_s,
            first_byte_timeout_s=min(first_byte_timeout_s, read_timeout_s),
            read_timeout_s=read_timeout_s,
        )
        self._root_path = urlsplit(root_url).path.rstrip("/")
        self._base_path = urlsplit(base_url).path.rstrip("/")
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create_chat))
        self.responses = SimpleNamespace(create=self._create_response)

    async def close(self) -> None:
        await self._origin.close()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._origin.connections

    @property
    def answering(self) -> int:
        """How many answers are under way."""
        return self._origin.answering

    def give_up(self) -> None:
        """The server is lost: whoever waits for the first byte of an answer shall wait no longer."""
        self._origin.give_up()

    async def get_json(self, path: str, timeout_s: float) -> Any:
        """The JSON at `path` below the configured URL. Raises a `BackendError`."""
        try:
            async with asyncio.timeout(timeout_s):
                body = await _read(await self._send("GET", self._root_path + path))
        except TimeoutError as error:
            _raise_named(error)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise BackendError("The backend's answer is not JSON.") from None

    async def post_json(self, path: str, params: dict[str, Any]) -> Any:
        """The JSON that POST `path` below the API's base answers. Raises a `BackendError`."""
        body = await _read(await self._post(path, params))
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise _not_an_answer(body) from None

    async def _create_chat(self, **params: Any) -> ChatCompletion | ChatStream:
        answer = await self._post("/chat/completions", params)
        if _is_stream(answer):
            return ChatStream(answer)
        body = await _read(answer)
        try:
            return decode_completion(body)
        except DecodeError:
            raise _not_an_answer(body) from None

    async def _create_response(self, **params: Any) -> Dumped | EventStream:
        answer = await self._post("/responses", params)
        if _is_stream(answer):
            return EventStream(answer)
        body = await _read(answer)
        response = _json_or_none(body)
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            raise _not_an_answer(body)
        return Dumped(response)

    async def forward(self, path: str, body: bytes, *, below_root: bool = False) -> RawAnswer:
        """The answer to POST `path`, below the API's base or the configured URL, as it comes. Raises a `BackendError`."""
        return RawAnswer(await self._send("POST", (self._root_path if below_root else self._base_path) + path, body))

    def _post(self, path: str, params: dict[str, Any]) -> Awaitable[Answer]:
        return self._send("POST", self._base_path + path, orjson.dumps(params))

    async def _send(self, method: str, target: str, body: bytes = b"") -> Answer:
        try:
            answer = await self._origin.send(method, target, body)
            if answer.status >= 300:
                raise await _refusal(answer)
            return answer
        except Exception as error:
            _raise_named(error)


async def create_chat_with_retries(client: Any, params: dict[str, Any]) -> Any:
    """`client.chat.completions.create(**params)`, its errors by our names: a `BackendError` or `TooManyRequests`. What is tried
    again, and where, is for `backends.failover` to say."""
    try:
        return await client.chat.completions.create(**params)
    except Exception as error:
        _raise_named(error)


async def create_response_with_retries(client: Any, params: dict[str, Any]) -> Any:
    """`client.responses.create(**params)`, likewise."""
    try:
        return await client.responses.create(**params)
    except Exception as error:
        _raise_named(error)


# Pieces, and what is wrong behind them.
Read = tuple[list[T], BackendError | TooManyRequests | None]


class WayOut(Protocol):
    """Where an answer may leave as it arrives (`api.http.Express`)."""

    write: Callable[[list[Any]], None] | None
    send: Callable[[bytes], bool] | None

    def close(self) -> None: ...


class BackendStream(ABC, Generic[T]):
    """An SSE answer. `batches()` gives what each network read held; iterating gives the pieces one by one."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
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
            pieces, failure = self._left = self._pieces_in(received)
            if failure is not None or self._ended:
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
                    _raise_named(error, begun=not nothing)
                if received is LEFT:
                    batch, failure = self._left
                else:
                    batch, failure = self._pieces_in(received) if received else self._read(self._decoder.flush())
                if batch:
                    nothing = False
                    yield batch
                if failure:
                    raise failure
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
                    _raise_named(error, begun=begun)
                if not received:
                    break
                begun = True
                yield received
            if not begun:
                raise BackendError("The backend's answer is empty.", code="backend_empty_answer")
        finally:
            self._answer.close()


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
            raise _not_an_answer(data) from None
        if chunk.error is not None:
            raise refusal_of(_code_of(chunk.error), chunk.error)
        if chunk.object == "error":
            raise refusal_of(chunk.code, {"message": chunk.message})
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
        event = _json_or_none(self.data)
        if event is None:
            raise _not_an_answer(self.data)
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


class EventStream(BackendStream[NativeEvent | NativeRun]):
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
            described = _json_or_none(data)
            if isinstance(described, dict) and "error" in described:
                raise refusal_of(_code_of(described["error"]), described["error"]) from None
            raise _not_an_answer(data) from None
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


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def named(error: Exception, *, begun: bool = False) -> Exception:
    """Our name for a foreign error, or the error itself. `begun`: a part of the answer has arrived already."""
    if isinstance(error, ConnectTimeout):
        return BackendUnreachable("The backend took no connection in time.")
    if isinstance(error, TimeoutError):
        return BackendTimeout("The backend sent nothing in time.")
    if isinstance(error, BadAnswer | OSError):
        if begun:
            return BackendCut("The backend broke off its answer.")
        return BackendUnreachable("The backend could not be reached.")
    return _named_sdk_error(error) or error


def _raise_named(error: Exception, *, begun: bool = False) -> NoReturn:
    told = named(error, begun=begun)
    if told is error:
        raise error
    raise told from error


def _named_sdk_error(error: Exception) -> BackendError | TooManyRequests | None:
    """Our name for an error of the official SDK, should its client stand in for ours. We do not import it for that: where
    it is in use, it is loaded."""
    openai = sys.modules.get("openai")
    if openai is None:
        return None
    if isinstance(error, openai.APITimeoutError):
        return BackendTimeout("The backend sent nothing in time.")
    if isinstance(error, openai.APIConnectionError):
        return BackendUnreachable("The backend could not be reached.")
    if isinstance(error, openai.APIStatusError):
        return refusal_of(error.status_code, error.body, error.response.headers.get("retry-after"))
    if isinstance(error, openai.APIError):
        return refusal_of(_code_of(error.body), error.body)
    return None


async def _refusal(answer: Answer) -> BackendError | TooManyRequests:
    try:
        body = await answer.read(MAX_ERROR_BODY)
    finally:
        answer.close()
    if answer.status < 400:
        return BackendError("The backend wants to be asked elsewhere: its url is wrong.", code="backend_redirects")
    described = _json_or_none(body)
    if isinstance(described, dict) and "error" in described:
        described = described["error"]
    return refusal_of(answer.status, described, answer.headers.get("retry-after"))


def refusal_of(status: Any, described: Any, retry_after: str | None = None) -> BackendError | TooManyRequests:
    """Our error for a backend's. `status` is its HTTP status, or the code in an error inside of a stream.

    A status is kept where it tells the client something that it can act on; a fault of the backend, or of the key that the
    router holds for it, is a 502.
    """
    message, kind, code = _described(described)
    status = status if isinstance(status, int) and 400 <= status < 600 else 500
    if status == 429:
        return TooManyRequests(message or "The backend is busy.", retry_after_s=_seconds(retry_after))
    if status in (401, 403):
        return BackendError("The backend did not accept the router's key.", code="backend_authentication_failed")
    if status in (408, 504):
        return BackendTimeout(message or "The backend sent nothing in time.")
    if status == 503:
        return BackendUnreachable(message or "The backend is not ready.", retry_after_s=_seconds(retry_after))
    error = described if isinstance(described, dict) else {}
    if overflow := overflow_of(message, error):
        refused = BackendRefused(message, code="context_length_exceeded", param="input")
        refused.overflow = overflow
        return refused
    if unsupported := unsupported_of(message, error):
        refused = BackendRefused(message, code="unsupported_parameter", param=PARAMS.get(unsupported, unsupported))
        refused.unsupported = UNSUPPORTED.get(unsupported, unsupported)
        return refused
    if status == 501:
        # llama.cpp, asked for embeddings that it was not started for. Another server of the model may have them.
        return BackendRefused(message or "The backend cannot do this.", status=501, code="not_supported")
    if status >= 500:
        return BackendError(f"The backend failed: {message}" if message else "The backend failed.")
    if status == 404:
        # A path that it does not have has no error object, or llama.cpp's: then our settings are wrong, not the model.
        if (kind is None and not isinstance(described, str)) or (
            kind == "not_found_error" and _code_of(described) == 404
        ):
            return BackendError(
                f"The backend has no such path, so its url or kind is wrong: {message or 'not found'}",
                code="backend_path_not_found",
            )
        return BackendRefused(
            message or "The backend does not know this.", status=404, code="model_not_found", param="model"
        )
    return BackendRefused(
        message or "The backend refused the request.", status=413 if status == 413 else 400, code=code
    )


# What a backend cannot do, as parameters of the client's request and of ours.
PARAMS = {
    "images": "input",
    "audio": "input",
    "thinking": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "response_format": "text",
}
UNSUPPORTED = {"thinking": "reasoning_effort"}


def _described(error: Any) -> tuple[str, str | None, str | None]:
    """The message, type and code in a backend's error, which is OpenAI's object, a text, or something of its own."""
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error.get("error")
        kind, code = error.get("type"), error.get("code")
        return (
            message if isinstance(message, str) else "",
            kind if isinstance(kind, str) else None,
            code if isinstance(code, str) else None,
        )
    return error if isinstance(error, str) else "", None, None


def _code_of(error: Any) -> Any:
    return error.get("code") if isinstance(error, dict) else None


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after or ""))
    except ValueError:
        return None


def _not_an_answer(body: bytes) -> BackendError | TooManyRequests:
    """A 200 that is no answer: empty, an error object, or nothing that we know."""
    if not body.strip():
        return BackendError("The backend's answer is empty.", code="backend_empty_answer")
    described = _json_or_none(body)
    if isinstance(described, dict) and described.get("error"):
        return refusal_of(_code_of(described["error"]), described["error"])
    return BackendError("The backend's answer cannot be understood.", code="backend_bad_answer")


def _json_or_none(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _is_stream(answer: Answer) -> bool:
    return answer.headers.get("content-type", "").startswith("text/event-stream")


async def _read(answer: Answer) -> bytes:
    try:
        return await answer.read()
    except Exception as error:
        _raise_named(error, begun=True)
    finally:
        answer.close()
