"""One thin client an endpoint: the SDK's surface over raw bytes (`backends/http1.py`) and msgspec.

    client.chat.completions.create(**params)   ChatCompletion, or a Stream for a Relay
    client.responses.create(**params)          a dict, or a Stream
    client.forward(path, body)                 an answer as it comes, byte by byte: a Stream
    client.get_json(path)                      for listing models

The official SDK's client can stand in for it. Foreign errors, and the SDK's, become ours here and in
`backends/wire/relay.py` (`named`, backends/wire/errors.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Collection, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import orjson

from backends.wire.errors import (
    FRONT_DOORS,
    Named,
    ServerErrors,
    of_missing_path,
    raise_named,
)
from backends.wire.http1 import MOST_ANSWER, Answer, Origin
from backends.wire.streams import Stream
from core.errors import BackendError
from core.hops import line_of_look, line_of_request
from core.json import encode_json
from core.request_context import RequestContext, current_request
from requests.bounded_json import has_too_many_values, json_or_none, values_in
from requests.chat import DecodeError, decode_completion
from requests.chat_types import ChatCompletion, Dumped
from requests.sse import looks_like_sse

MAX_ERROR_BODY = 64 * 1024
# Of what servers list.
MOST_VALUES = 500_000
SHORTEST_SECRET = 6
# With these a server shows that it does not know a path, or not what it is for.
LACKS_PATH = frozenset({404, 405, 501})


class BackendClient:
    """Speaks to one endpoint. `base_url` is where its API begins (…/v1), `root_url` what was configured. With
    `passes_on_errors` an error object of the server's goes on as it is. `router_id` is ours; `is_router`: it is another
    router, and reads it. Connections are pooled and kept; `close()` ends
    them."""

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
        max_answer_bytes: int = MOST_ANSWER,
        passes_on_errors: bool = False,
        router_id: str = "",
        is_router: bool = False,
    ) -> None:
        self._errors = ServerErrors(_secrets(root_url, api_key, headers), passes_on=passes_on_errors)
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
            max_answer_bytes=max_answer_bytes,
        )
        self._router_id = router_id
        self._is_router = is_router and bool(router_id)
        self._root_path = urlsplit(root_url).path.rstrip("/")
        self._base_path = urlsplit(base_url).path.rstrip("/")
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create_chat))
        self.responses = SimpleNamespace(create=self._create_response, compact=self._compact)

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
        """The JSON at `path` below the configured URL, of what a server has. Raises a `BackendError`, also for far more
        than any has."""
        try:
            async with asyncio.timeout(timeout_s):
                body = await _read(await self._send("GET", self._root_path + path))
        except TimeoutError as error:
            raise_named(error)
        if len(body) > MOST_VALUES and values_in(body, MOST_VALUES) > MOST_VALUES:
            raise BackendError(f"The backend's answer holds more than {MOST_VALUES} values.", code="backend_bad_answer")
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
            raise self._errors.not_an_answer(body) from None

    async def count(self, path: str, params: dict[str, Any], lacking: Collection[int]) -> tuple[int, bool] | None:
        """The input tokens that POST `path` below the API's base counts, and whether they are an estimate, of another
        router; None where one of the statuses of `lacking` shows that nothing is counted there. Raises a
        `BackendError`."""
        answer = await self._answer_of("POST", self._base_path + path, params, lacking)
        if answer is None:
            return None
        counted = json_or_none(await _read(answer))
        tokens = counted.get("input_tokens") if isinstance(counted, dict) else None
        if not isinstance(tokens, int) or isinstance(tokens, bool):
            raise BackendError("The backend's count cannot be understood.", code="backend_bad_answer")
        return tokens, "x-nomyo-estimated" in answer.headers

    async def _create_chat(self, **params: Any) -> ChatCompletion | Stream:
        answer = await self._post("/chat/completions", params)
        is_stream, begins = _is_stream(answer), b""
        if is_stream is None:
            is_stream, begins = await _form(answer)
        if is_stream:
            return Stream(answer, self._errors, begins)
        body = await _read(answer, begins)
        try:
            return decode_completion(body)
        except DecodeError:
            if _is_streams(body):
                return Stream(answer, self._errors, body)
            raise self._errors.not_an_answer(body) from None

    async def _create_response(self, **params: Any) -> Dumped | Stream:
        answer = await self._post("/responses", params)
        is_stream, begins = _is_stream(answer), b""
        if is_stream is None:
            is_stream, begins = await _form(answer)
        if is_stream:
            return Stream(answer, self._errors, begins)
        body = await _read(answer, begins)
        response = json_or_none(body)
        if isinstance(response, dict) and (isinstance(response.get("output"), list) or _is_response(response)):
            dumped = Dumped(response)
            if self._is_router:
                dumped.headers = answer.headers
            return dumped
        if _is_streams(body):
            return Stream(answer, self._errors, body)
        raise self._errors.not_an_answer(body)

    async def _compact(self, **params: Any) -> dict[str, Any] | None:
        """A `response.compaction`; None from a server that makes none."""
        if (answer := await self._answer_of("POST", self._base_path + "/responses/compact", params)) is None:
            return None
        body = await _read(answer)
        compaction = json_or_none(body)
        if isinstance(compaction, dict) and isinstance(compaction.get("output"), list):
            return compaction
        raise self._errors.not_an_answer(body)

    async def forward(self, path: str, body: bytes, *, below_root: bool = False) -> Stream:
        """The answer to POST `path`, below the API's base or the configured URL, as it comes. Raises a
        `BackendError`."""
        target = (self._root_path if below_root else self._base_path) + path
        return Stream(await self._send("POST", target, body), self._errors)

    def _post(self, path: str, params: dict[str, Any]) -> Awaitable[Answer]:
        return self._send("POST", self._base_path + path, encode_json(params))

    async def _send(self, method: str, target: str, body: bytes = b"") -> Answer:
        request = current_request()
        try:
            answer = await self._origin.send(method, target, body, self._lines(method, request))
            if request is not None:
                request.answered_s = time.monotonic()
            if answer.status >= 300:
                raise await self._error_of(answer, target)
            return answer
        except Exception as error:
            raise_named(error)

    def _lines(self, method: str, request: RequestContext | None) -> bytes:
        """Whose request it is; and which routers it has come through, where the server may be one."""
        if method == "GET":
            return line_of_look(self._router_id)
        lines = b"" if request is None else request.lines()
        return lines + line_of_request(self._router_id) if self._is_router else lines

    async def _answer_of(
        self, method: str, target: str, params: dict[str, Any], lacking: Collection[int] = LACKS_PATH
    ) -> Answer | None:
        """The answer of a path that not every server has; None where it is not there, as these statuses show."""
        try:
            answer = await self._origin.send(
                method, target, encode_json(params), self._lines(method, current_request())
            )
            if answer.status in lacking:
                answer.close()
                return None
            if answer.status >= 300:
                raise await self._error_of(answer, target)
            return answer
        except Exception as error:
            raise_named(error)

    async def _error_of(self, answer: Answer, target: str) -> Named:
        try:
            body = await answer.read(MAX_ERROR_BODY)
        finally:
            answer.close()
        if answer.status < 400:
            return BackendError("The backend wants to be asked elsewhere: its url is wrong.", code="backend_redirects")
        error = self._errors.of_answer(answer.status, body, answer.headers)
        path = target.removeprefix(self._base_path)
        return of_missing_path(error, path) if answer.status in (404, 405) and path in FRONT_DOORS else error


def _secrets(root_url: str, api_key: str, headers: Mapping[str, str]) -> set[str]:
    """What of our settings a server knows and may repeat, and nobody else shall see: with what a header begins
    (`Bearer`) and without. A short value of a header is no secret."""
    values = {value for value in headers.values() if len(value) >= SHORTEST_SECRET}
    tokens = {token for value in values if len(token := value.rpartition(" ")[2]) >= SHORTEST_SECRET}
    return values | tokens | {api_key, unquote(urlsplit(root_url).password or "")}


async def create_chat_with_retries(client: Any, params: dict[str, Any]) -> Any:
    """`client.chat.completions.create(**params)`, its errors by our names: a `BackendError` or `TooManyRequests`. What
    is tried again, and where, is for `backends.fleet.failover` to decide."""
    try:
        return await client.chat.completions.create(**params)
    except Exception as error:
        raise_named(error)


async def create_response_with_retries(client: Any, params: dict[str, Any]) -> Any:
    """`client.responses.create(**params)`, its errors by our names."""
    try:
        return await client.responses.create(**params)
    except Exception as error:
        raise_named(error)


async def compact_with_retries(client: Any, params: dict[str, Any]) -> dict[str, Any] | None:
    """`client.responses.compact(**params)`, its errors by our names; None where the server has no such path."""
    try:
        compaction: dict[str, Any] | None = await client.responses.compact(**params)
    except Exception as error:
        raise_named(error)
    return compaction


def _is_stream(answer: Answer) -> bool | None:
    """Whether an answer is a stream, by its head. None where that does not show it."""
    content_type = answer.headers.get("content-type", "")
    if content_type.startswith("text/event-stream"):
        return True
    if "content-length" in answer.headers:
        return False  # If it is one nevertheless, it is whole.
    return content_type.lower().startswith(STREAMS) or None


async def _form(answer: Answer) -> tuple[bool, bytes]:
    """Whether an answer is a stream, by its first bytes, and these."""
    begins = b""
    try:
        while (is_sse := looks_like_sse(begins)) is None and (received := await answer.readany()):
            begins += received
    except BaseException as error:
        answer.close()
        if isinstance(error, Exception):
            raise_named(error, begun=True)
        raise
    # A server that does not know its own form may well send JSON a line at a time.
    is_lines = "json" not in answer.headers.get("content-type", "").lower() and begins.lstrip()[:1] == b"{"
    return bool(is_sse or is_lines), begins


def _is_response(answered: dict[str, Any]) -> bool:
    """Whether a JSON answer without an output is one nevertheless: its text, or why there is none."""
    if isinstance(answered.get("output_text"), str):
        return True
    return answered.get("object") == "response" and answered.get("status") in ("failed", "incomplete", "cancelled")


STREAMS = (
    "text/event-stream",
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/json-lines",
)


def _is_streams(body: bytes) -> bool:
    """Whether a body that is no JSON value is that of a stream: events, or a JSON object on each line."""
    lines = [line for line in body.splitlines() if line.strip()]
    return bool(looks_like_sse(body)) or (len(lines) > 1 and all(line.lstrip()[:1] == b"{" for line in lines))


async def _read(answer: Answer, begins: bytes = b"") -> bytes:
    """All of an answer, of which this was read already. Raises a `BackendError`, also for far more values than any
    holds: nothing is made of them."""
    try:
        body = begins if begins and answer.at_eof else begins + await answer.read()
    except Exception as error:
        raise_named(error, begun=True)
    finally:
        answer.close()
    if has_too_many_values(body):
        raise BackendError("The backend's answer holds far too many values.", code="backend_bad_answer")
    return body
