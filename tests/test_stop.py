"""A stop of the service: what runs gets time to end, and whoever is interrupted hears so, in the way of each answer."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.fake_backend import FakeBackend, chat, stall, steps, until
from tests.stream_grammar import check_stream
from tests.test_restart import router_process
from tests.turns import SOON_S, URL, Json, assert_error, create, open_stream, text_of, turn

pytestmark = pytest.mark.heavy


def settings_for(backend: FakeBackend, folder: Path, drain_s: float, workers: int = 1) -> Json:
    return {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 100}],
        "database": {"url": f"sqlite:///{folder}/router.db"},
        "background": {"drain_s": drain_s},
        "workers": workers,
    }


def statuses(folder: Path) -> dict[str, str]:
    connection = sqlite3.connect(folder / "router.db")
    try:
        return dict(connection.execute("SELECT id, status FROM responses").fetchall())
    finally:
        connection.close()


async def events_of(socket: ClientConnection) -> tuple[list[Json], int | None]:
    """All that comes over a WebSocket, and the code of its close frame."""
    events = []
    try:
        while True:
            events.append(orjson.loads(await socket.recv()))
    except ConnectionClosed as closed:
        return events, closed.rcvd.code if closed.rcvd else None


def assert_interrupted(events: list[Json]) -> None:
    check_stream(events)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["code"] == "interrupted"
    assert "stopped" in events[-1]["response"]["error"]["message"]


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_runs_at_a_stop_is_interrupted_and_says_so(
    workers: int, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = chat("Half a", then=stall())
    settings = settings_for(backend, tmp_path, drain_s=0.3, workers=workers)
    async with AsyncExitStack() as stack:
        http, process = await stack.enter_async_context(router_process(settings, tmp_path, "serve.py"))
        streamed = await stack.enter_async_context(open_stream(http))
        followed = await stack.enter_async_context(open_stream(http, background=True))
        for events in (streamed, followed):
            await events.until("response.output_text.delta")
        address = str(http.base_url).replace("http", "ws", 1).rstrip("/")
        socket = await stack.enter_async_context(connect(f"{address}{URL}"))
        idle = await stack.enter_async_context(connect(f"{address}{URL}"))
        await socket.send(orjson.dumps({"type": "response.create", **turn()}).decode())
        first = [orjson.loads(await socket.recv()) for _ in range(5)]
        messages = [{"role": "user", "content": "Hi"}]
        relayed = await stack.enter_async_context(
            http.stream(
                "POST", "/v1/chat/completions", json={"model": "test-model", "messages": messages, "stream": True}
            )
        )
        pieces = relayed.aiter_text()
        await anext(pieces)
        ollama = await stack.enter_async_context(
            http.stream("POST", "/api/chat", json={"model": "test-model", "messages": messages})
        )
        lines = ollama.aiter_lines()
        await anext(lines)
        backend.default = stall()
        waiting = [
            asyncio.create_task(http.post(path, json=body))
            for path, body in (
                (URL, turn()),
                (URL, turn(stream=True)),
                ("/v1/chat/completions", {"model": "test-model", "messages": messages}),
                ("/api/chat", {"model": "test-model", "messages": messages, "stream": False}),
            )
        ]
        await backend.wait_for(lambda b: b.in_flight == 9)
        process.send_signal(signal.SIGTERM)

        for events in (streamed, followed):
            assert_interrupted(await events.rest())
        more, code = await events_of(socket)
        assert_interrupted([*first, *more])
        assert code == 1012
        assert await events_of(idle) == ([], 1012)
        assert '"code":"interrupted"' in "".join([piece async for piece in pieces])
        assert "stopped" in [line async for line in lines][-1]
        for answer in await asyncio.gather(*waiting):
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) > 0
        for answer in waiting[:3]:
            assert_error(answer.result(), 503, code="interrupted")
        assert await asyncio.wait_for(process.wait(), SOON_S) in (0, -signal.SIGTERM)
    assert set(statuses(tmp_path).values()) == {"failed"}
    await backend.wait_for(lambda b: b.in_flight == 0)


async def test_what_ends_in_time_is_whole(backend: FakeBackend, tmp_path: Path) -> None:
    gate = asyncio.Event()
    backend.default = steps(until(gate), chat("Hello"))
    async with AsyncExitStack() as stack:
        http, process = await stack.enter_async_context(
            router_process(settings_for(backend, tmp_path, drain_s=20), tmp_path, "serve.py")
        )
        address = str(http.base_url).replace("http", "ws", 1).rstrip("/")
        socket = await stack.enter_async_context(connect(f"{address}{URL}"))
        await socket.send(orjson.dumps({"type": "response.create", **turn()}).decode())
        plain: asyncio.Task[Any] = asyncio.create_task(create(http))
        await backend.wait_for(lambda b: b.in_flight == 2)
        process.send_signal(signal.SIGTERM)

        async def refuses() -> bool:
            try:
                async with httpx2.AsyncClient(base_url=http.base_url) as new:
                    return (await new.get("/health")).status_code == 0
            except httpx2.TransportError:
                return True

        while not await refuses():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        gate.set()
        assert text_of(await plain) == "Hello"
        events, code = await events_of(socket)
        check_stream(events)
        assert (events[-1]["type"], code) == ("response.completed", 1012)
        assert await asyncio.wait_for(process.wait(), SOON_S) in (0, -signal.SIGTERM)
    assert set(statuses(tmp_path).values()) == {"completed"}
