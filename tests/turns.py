"""What the tests of the rim share: the error envelope, streams as they arrive, and waiting for a condition.

assert_error(answer, 404, code="model_not_found", param="model")
async with open_stream(http, stream=True, background=True) as events:
    await events.until("response.output_text.delta")
await eventually(lambda: running.in_flight() == 0, "the slot is free")
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx2

from tests.stream_grammar import parse_sse

Json = dict[str, Any]
ANYTHING: Any = object()
URL = "/v1/responses"


def turn(**params: Any) -> Json:
    """The body of a request that the fake backend can answer."""
    return {"model": "test-model", "input": "Say something.", **params}


def crowded_client(url: str) -> httpx2.AsyncClient:
    """A client that sends as much as it is given at once, and waits as long as an answer takes."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=None)
    return httpx2.AsyncClient(base_url=url, limits=limits, timeout=None, verify=False)


async def create(http: httpx2.AsyncClient, **params: Any) -> Json:
    """The response to a request that goes well, without a stream."""
    answer = await http.post(URL, json=turn(**params))
    assert answer.status_code == 200, f"status {answer.status_code}: {answer.text[:500]}"
    return answer.json()


async def retrieve(http: httpx2.AsyncClient, response_id: str) -> Json:
    answer = await http.get(f"{URL}/{response_id}")
    assert answer.status_code == 200, f"status {answer.status_code}: {answer.text[:500]}"
    return answer.json()


async def ended(http: httpx2.AsyncClient, response_id: str) -> Json:
    """The background response, once it has ended."""
    return await has_status(http, response_id, "completed", "incomplete", "failed", "cancelled")


async def has_status(http: httpx2.AsyncClient, response_id: str, *statuses: str) -> Json:
    """The response, once it has one of these statuses."""
    response: Json = {}

    async def reached() -> bool:
        nonlocal response
        response = await retrieve(http, response_id)
        return response["status"] in statuses

    await eventually(reached, f"{response_id} is one of {statuses}")
    return response


async def stream(http: httpx2.AsyncClient, **params: Any) -> list[Json]:
    """All events of a request with `stream`."""
    async with open_stream(http, **params) as events:
        return await events.rest()


async def rejoin(http: httpx2.AsyncClient, response_id: str, starting_after: int = -1) -> list[Json]:
    """All events of GET …?stream=true&starting_after=N."""
    async with follow(http, response_id, starting_after) as events:
        return await events.rest()


class Events:
    """The events of an answer, read as they arrive; `seen` are those read so far."""

    def __init__(self, answer: httpx2.Response, chunks: AsyncIterator[bytes]) -> None:
        self.answer = answer
        self.seen: list[Json] = []
        self._chunks = chunks
        self._unread = b""
        self._parsed: list[Json] = []

    async def next(self) -> Json | None:
        """The next event, or None at the end."""
        while not self._parsed:
            data = await anext(self._chunks, None)
            if data is None:
                assert not self._unread, f"half a frame at the end: {self._unread!r}"
                return None
            whole, separator, self._unread = (self._unread + data).rpartition(b"\n\n")
            self._parsed = [event for _, event in parse_sse(whole + separator)]
        self.seen.append(self._parsed.pop(0))
        return self.seen[-1]

    async def until(self, type: str) -> Json:
        """The next event of that type."""
        while event := await self.next():
            if event["type"] == type:
                return event
        raise AssertionError(f"no {type} among {[event['type'] for event in self.seen]}")

    async def rest(self) -> list[Json]:
        """All events to the end, those that were read before included."""
        while await self.next():
            pass
        return self.seen


@asynccontextmanager
async def open_stream(http: httpx2.AsyncClient, **params: Any) -> AsyncIterator[Events]:
    """The events of a new turn. Leaving the block closes the connection, as a client that goes away."""
    async with http.stream("POST", URL, json=turn(stream=True, **params)) as answer, _events_of(answer) as events:
        yield events


@asynccontextmanager
async def follow(http: httpx2.AsyncClient, response_id: str, starting_after: int = -1) -> AsyncIterator[Events]:
    params = {"stream": "true", "starting_after": starting_after}
    async with http.stream("GET", f"{URL}/{response_id}", params=params) as answer, _events_of(answer) as events:
        yield events


@asynccontextmanager
async def _events_of(answer: httpx2.Response) -> AsyncIterator[Events]:
    if answer.status_code != 200:
        await answer.aread()
        raise AssertionError(f"status {answer.status_code}: {answer.text[:500]}")
    async with aclosing(answer.aiter_raw()) as chunks:
        yield Events(answer, chunks)


def text_of(response: Json) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def assert_error(
    answer: httpx2.Response,
    status: int,
    *,
    type: Any = ANYTHING,
    param: Any = ANYTHING,
    code: Any = ANYTHING,
    says: str = "",
) -> Json:
    """The one envelope: `{"error": {message, type, param, code}}`, nothing more and nothing less. Gives the object in
    it."""
    at = f"{answer.request.method} {answer.request.url.path} answered {answer.status_code} {answer.text[:500]!r}"
    assert answer.status_code == status, f"not {status}: {at}"
    assert answer.headers["content-type"] == "application/json", f"it is {answer.headers['content-type']}: {at}"
    body = answer.json()
    assert list(body) == ["error"], f"not an error envelope: {at}"
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"], f"wrong keys in the error: {at}"
    for key in ("message", "type"):
        assert isinstance(error[key], str), f"{key} is no text: {at}"
        assert error[key], f"{key} is empty: {at}"
    assert isinstance(error["param"], str | None), f"wrong param: {at}"
    assert isinstance(error["code"], str | None), f"wrong code: {at}"
    for key, expected in (("type", type), ("param", param), ("code", code)):
        assert expected is ANYTHING or error[key] == expected, f"{key} is {error[key]!r}, not {expected!r}: {at}"
    assert says in error["message"], f"it does not say {says!r}: {at}"
    return error


# What must come has come by then, on a machine however busy. Less than the router's own patience with a request.
SOON_S = 30.0


def soon() -> asyncio.Timeout:
    """`async with soon():` what is inside does not wait for ever."""
    return asyncio.timeout(SOON_S)


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], what: str, timeout_s: float = SOON_S
) -> None:
    """Wait until the condition holds, or fail with what should have come true."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                holds = condition()
                if await holds if isinstance(holds, Awaitable) else holds:
                    return
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what}") from None
