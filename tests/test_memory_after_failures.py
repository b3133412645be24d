"""What failed is gone: of 500 failed requests of a kind, no body is left, although nobody collects cycles."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle

import orjson
import pytest

from core.telemetry import MOST_RECENT
from tests.conftest import Running, running_router
from tests.fake_backend import (
    CHAT,
    Answer,
    FakeBackend,
    chat,
    cut,
    empty,
    http_error,
    native,
    sse_error,
    stall,
    stream,
)
from tests.fake_backend.reply import RESPONSES, Reply
from tests.turns import Json, eventually

# Hundreds of requests a test: on a busy machine they take their time.
pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("short_waits"), pytest.mark.timeout(300)]

FAILURES = 500
AT_ONCE = 10
BODY_BYTES = 500_000
# All bodies together are 250 MB.
# What is known of each of the last turns (`TurnRecord`) stays, and is no body.
RECORDS_BYTES = MOST_RECENT * 4096
FLAT_BYTES = 5_000_000 + RECORDS_BYTES
DOORS = {
    "responses": ("openai-chat", RESPONSES),
    "native": ("openai", RESPONSES),
    "passed through": ("openai-chat", CHAT),
}

Client = Callable[[Running, bytes], Awaitable[None]]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """As in the service, only more so: there it runs rarely, here never."""
    gc.collect()
    gc.freeze()
    gc.disable()
    logging.disable()  # pytest keeps the records.
    tracemalloc.start(1)
    yield
    tracemalloc.stop()
    logging.disable(logging.NOTSET)
    gc.enable()
    gc.unfreeze()


@pytest.fixture(params=DOORS)
async def door(request: pytest.FixtureRequest, stack: AsyncExitStack) -> tuple[Running, FakeBackend, str]:
    kind, path = DOORS[request.param]
    backend = await stack.enter_async_context(FakeBackend())
    running = await stack.enter_async_context(router_before(f"{backend.url}/v1", kind))
    return running, backend, path


def router_before(url: str, kind: str) -> AbstractAsyncContextManager[Running]:
    endpoint = {"url": url, "kind": kind, "max_concurrent": 50}
    return running_router(endpoints=[endpoint], breaker={"failures": 1_000_000}, retry={"budget": 1.0})


def request(path: str, *, stream: bool, **params: object) -> bytes:
    """A large request, as bytes, whose connection is closed behind its answer."""
    said = {"messages" if path == CHAT else "input": [{"role": "user", "content": "x" * BODY_BYTES}]}
    body = orjson.dumps(
        {"model": "test-model", "stream": stream, **({} if path == CHAT else {"store": False}), **said, **params}
    )
    return with_body(path, body)


def with_body(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


@asynccontextmanager
async def sending(running: Running, sent: bytes) -> AsyncIterator[socket.socket]:
    """A bare socket that sends it: asyncio's streams leave cycles of their own."""
    host, port = running.url[7:].split(":")
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, (host, int(port)))
        with suppress(ConnectionError):  # It may be answered before it is read.
            await loop.sock_sendall(client, sent)
        yield client


async def reads_all(running: Running, sent: bytes) -> None:
    async with sending(running, sent) as client:
        with suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(client, 65536):
                pass


def leaves(running_when: Callable[[], bool]) -> Client:
    """A client that leaves once that is so."""

    async def leave(running: Running, sent: bytes) -> None:
        async with sending(running, sent):
            await eventually(running_when, "the request is under way")
        await eventually(lambda: running.in_flight() == 0, "the router has noticed")

    return leave


def forget(backend: FakeBackend) -> None:
    """What the fake has kept of requests that are over, here and in connections that were cut."""
    for over in [request for request in backend.requests if request.outcome != "open"]:
        over.body = b""
        backend.requests.remove(over)


async def is_flat(
    running: Running,
    sent: bytes,
    client: Client = reads_all,
    *,
    at_once: int = AT_ONCE,
    backend: FakeBackend | None = None,
) -> None:
    """Sends it as often as it must fail, and finds no more live bytes than before."""

    async def some(count: int) -> int:
        left = iter(range(count))

        async def one_after_another() -> None:
            for _ in left:
                await client(running, sent)
                if backend is not None:
                    forget(backend)

        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        await eventually(lambda: running.in_flight() == 0, "all have ended")
        if backend is not None:
            await eventually(lambda: backend.in_flight == 0, "the fake knows of it")
            forget(backend)
        for _ in range(10):
            await asyncio.sleep(0)
        return tracemalloc.get_traced_memory()[0]

    before = await some(3 * at_once)
    grown = await some(FAILURES) - before
    assert grown < FLAT_BYTES, f"{grown / FAILURES / BODY_BYTES:.2f} bodies are left of each request"


ANSWERS: dict[str, Answer] = {
    **{
        f"{status}": http_error(status, "no") for status in (400, 401, 403, 404, 413, 422, 429, 500, 501, 502, 503, 504)
    },
    "empty": empty(),
    "a stream without events": stream(),
    "an error in a stream": stream(sse_error()),
    "cut": cut(),
    "reset": cut(reset=True),
    "no answer": stream(b"data: {}\n\ndata: nothing\n\n"),
}


@pytest.mark.parametrize("streams", [False, True], ids=["json", "stream"])
async def test_no_body_is_left_of_what_a_backend_failed(door: tuple[Running, FakeBackend, str], streams: bool) -> None:
    """In turn, each way: if of one alone the bodies were left, they would be 15 MB."""
    running, backend, path = door
    native_too = (
        native("Hello", then=cut())
        if running.app.state.config.endpoints[0].kind == "openai"
        else chat("Hello", then=cut())
    )
    answers = cycle([*ANSWERS.values(), native_too])

    async def next_one(reply: Reply) -> None:
        await next(answers)(reply)

    backend.default = next_one
    await is_flat(running, request(path, stream=streams), backend=backend)


@pytest.mark.heavy
@pytest.mark.parametrize("streams", [False, True], ids=["json", "stream"])
async def test_no_body_is_left_of_clients_that_left(door: tuple[Running, FakeBackend, str], streams: bool) -> None:
    running, backend, path = door
    backend.default = stall()
    await is_flat(
        running,
        request(path, stream=streams),
        leaves(lambda: backend.in_flight > 0),
        at_once=1,
        backend=backend,
    )


@pytest.mark.parametrize("path", [RESPONSES, CHAT])
async def test_no_body_is_left_where_nobody_is_there(path: str, backend: FakeBackend) -> None:
    async with running_router(
        endpoints=[{"url": "http://127.0.0.1:9", "kind": "openai-chat", "models": {"names": ["test-model"]}}],
        breaker={"failures": 1_000_000},
    ) as running:
        await is_flat(running, request(path, stream=False))


WRONG: dict[str, Json] = {
    "an unknown model": {"model": "nope"},
    "no model": {"model": None},
    "a wrong type": {"temperature": []},
    "an orphan output": {"input": [{"type": "function_call_output", "call_id": "c", "output": "x" * BODY_BYTES}]},
    "an unknown turn before": {"previous_response_id": "resp_nobody"},
    "a wrong image": {
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_image", "file_id": "f"}, {"type": "input_text", "text": "x" * BODY_BYTES}],
            }
        ]
    },
}


@pytest.mark.parametrize("params", WRONG.values(), ids=WRONG)
async def test_no_body_is_left_of_what_was_wrong(served: Running, params: Json) -> None:
    await is_flat(served, request(RESPONSES, stream=False, **params))


@pytest.mark.parametrize(
    "path", [RESPONSES, CHAT, "/v1/responses/compact", "/v1/responses/input_tokens", "/api/chat", "/nowhere"]
)
async def test_no_body_is_left_of_what_is_no_json(served: Running, path: str) -> None:
    await is_flat(served, with_body(path, b'{"input": "' + b"x" * BODY_BYTES))


@pytest.mark.heavy
async def test_no_body_is_left_of_background_turns_that_were_cancelled(served: Running, backend: FakeBackend) -> None:
    backend.default = stall()

    async def cancels(running: Running, sent: bytes) -> None:
        answer = await running.http.post("/v1/responses", content=sent.partition(b"\r\n\r\n")[2])
        await running.http.post(f"/v1/responses/{answer.json()['id']}/cancel")
        await running.http.delete(f"/v1/responses/{answer.json()['id']}")

    await is_flat(
        served, request(RESPONSES, stream=False, background=True, store=True), cancels, at_once=2, backend=backend
    )
