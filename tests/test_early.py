"""Streams whose backend takes its time: they begin by themselves after `stream_start_s`, and go on failing over; what
headers cannot say any more is in the last response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

import router
from tests.conftest import Running, running_router
from tests.fake_backend import FakeBackend, chat, cut, http_error, native, stall, steps, until
from tests.stream_grammar import check_stream, fold, parse_sse
from tests.turns import (
    URL,
    assert_error,
    create,
    ended,
    eventually,
    open_stream,
    rejoin,
    retrieve,
    stream,
    text_of,
    turn,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

START_S = 0.03
BEGINNING = ["response.created", "response.in_progress"]


def types_of(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


@asynccontextmanager
async def early(*backends: FakeBackend, kind: str = "openai-chat", **settings: Any) -> AsyncIterator[Running]:
    """A router whose streams begin by themselves soon; the first of the backends is asked first."""
    endpoints = [
        {"url": f"{backend.url}/v1", "kind": kind, "name": f"b{n}", "priority": n} for n, backend in enumerate(backends)
    ]
    if "max_concurrent" in settings:
        endpoints[0]["max_concurrent"] = settings.pop("max_concurrent")
    async with running_router(endpoints=endpoints, **{"stream_start_s": START_S} | settings) as served:
        yield served


@pytest.mark.parametrize("kind", ["openai-chat", "openai"])
@pytest.mark.parametrize("obfuscated", [False, True])
async def test_a_stream_begins_before_its_backend_does(backend: FakeBackend, kind: str, obfuscated: bool) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), (native if kind == "openai" else chat)("Hello there.")))
    options = {"stream_options": {"include_obfuscation": True}} if obfuscated else {}
    async with early(backend, kind=kind) as served, open_stream(served.http, **options) as events:
        await events.until("response.in_progress")
        assert types_of(events.seen) == BEGINNING
        assert "x-nomyo-endpoint" not in events.answer.headers
        response_id = events.seen[0]["response"]["id"]
        assert (await retrieve(served.http, response_id))["status"] == "in_progress", "whoever knows the id finds it"
        gate.set()
        seen = await events.rest()
        check_stream(seen, prefixes=kind != "openai")
        last = seen[-1]["response"]
        assert fold(seen) == last
        assert text_of(last) == "Hello there."
        assert last["nomyo"] == {"endpoint": "b0", "model": "test-model", "wait_ms": 0}
        assert "nomyo" not in seen[0]["response"]
        assert (await retrieve(served.http, response_id))["nomyo"] == last["nomyo"]
        replayed = await rejoin(served.http, response_id)
        assert replayed[-1]["response"] == last
        assert served.in_flight() == 0


async def test_a_stream_that_begins_in_time_says_it_in_its_headers(backend: FakeBackend) -> None:
    async with early(backend, stream_start_s=60) as served, open_stream(served.http) as events:
        last = (await events.rest())[-1]["response"]
        assert events.answer.headers["x-nomyo-endpoint"] == "b0"
        assert "nomyo" not in last


async def test_a_stream_may_begin_at_once(backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("Hello.")))
    async with early(backend, stream_start_s=0) as served, open_stream(served.http) as events:
        await events.until("response.in_progress")
        gate.set()
        check_stream(await events.rest())


@pytest.mark.parametrize(
    "wrong", [http_error(503, "loading"), http_error(500, "broken")], ids=["unavailable", "broken"]
)
async def test_failing_over_goes_on_behind_the_beginning(backends_: list[FakeBackend], wrong: Any) -> None:
    first, second = backends_
    gate = asyncio.Event()
    first.script(steps(until(gate), wrong))
    second.script(chat("From the second."))
    async with early(first, second) as served, open_stream(served.http) as events:
        await events.until("response.in_progress")
        gate.set()
        seen = await events.rest()
        check_stream(seen)
        assert text_of(seen[-1]["response"]) == "From the second."
        assert seen[-1]["response"]["nomyo"]["endpoint"] == "b1"
        assert types_of(seen).count("response.created") == 1


async def test_an_error_behind_the_beginning_is_an_event(backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), http_error(400, "the prompt is odd")))
    async with early(backend) as served, open_stream(served.http) as events:
        await events.until("response.in_progress")
        gate.set()
        seen = await events.rest()
        check_stream(seen)
        last = seen[-1]["response"]
        assert types_of(seen) == [*BEGINNING, "error", "response.failed"]
        assert "the prompt is odd" in last["error"]["message"]
        assert last["nomyo"]["endpoint"] == "b0"
        assert (await retrieve(served.http, last["id"]))["error"] == last["error"]


async def test_an_error_in_time_is_a_status(backend: FakeBackend) -> None:
    backend.script(http_error(400, "the prompt is odd"))
    async with early(backend, stream_start_s=60) as served:
        assert_error(await served.http.post(URL, json=turn(stream=True)), 400)


async def test_a_stream_that_waits_in_the_queue_begins_too(backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("First.")), chat("Second."))
    async with early(backend, max_concurrent=1) as served:
        first = asyncio.create_task(create(served.http))
        await backend.wait_for(lambda b: b.in_flight == 1)
        async with open_stream(served.http) as events:
            await events.until("response.in_progress")
            assert len(backend.turns) == 1, "it waits"
            gate.set()
            seen = await events.rest()
        check_stream(seen)
        assert text_of(seen[-1]["response"]) == "Second."
        assert seen[-1]["response"]["nomyo"]["wait_ms"] > 0
        await first


async def test_who_waits_too_long_in_the_queue_hears_it_on_the_stream(backend: FakeBackend) -> None:
    backend.script(stall())
    async with early(backend, max_concurrent=1, queue={"timeout_s": 0.2}) as served:
        first = asyncio.create_task(create(served.http))
        await backend.wait_for(lambda b: b.in_flight == 1)
        seen = await stream(served.http)
        check_stream(seen)
        assert types_of(seen) == [*BEGINNING, "error", "response.failed"]
        assert seen[-1]["response"]["error"]["code"] == "rate_limit_exceeded"
        first.cancel()
        await asyncio.wait([first])
        await eventually(lambda: served.in_flight() == 0, "the slot is free")


async def test_a_client_that_leaves_behind_the_beginning_ends_the_turn(backend: FakeBackend) -> None:
    backend.script(stall())
    async with early(backend) as served:
        async with open_stream(served.http) as events:
            await events.until("response.in_progress")
            response_id = events.seen[0]["response"]["id"]
        await backend.wait_for(lambda b: b.aborts == 1)
        assert (await ended(served.http, response_id))["status"] == "cancelled"
        await eventually(lambda: served.in_flight() == 0, "the slot is free")


@pytest.mark.logs("backend_disconnected")
async def test_a_silent_stream_is_kept_alive_from_its_beginning_on(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By events: Codex takes a comment for silence (`stream_idle_timeout_ms`). They are numbered as the others are."""
    monkeypatch.setattr("api.http.silence.KEEPALIVE_S", 0.02)
    gates = asyncio.Event(), asyncio.Event()
    backend.script(steps(until(gates[0]), chat("Hello there.", then=steps(until(gates[1]), cut()))))
    async with early(backend) as served, open_stream(served.http) as events:
        await events.until("keepalive")
        await events.until("keepalive")
        gates[0].set()
        await events.until("response.output_text.delta")
        await events.until("keepalive")
        gates[1].set()
        seen = await events.rest()
        check_stream(seen)
        assert types_of(seen)[:3] == [*BEGINNING, "keepalive"]
        assert seen[-1]["type"] == "response.failed"


async def test_who_follows_a_silent_background_turn_is_kept_alive(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All who follow see the same events, now and later."""
    monkeypatch.setattr("api.http.silence.KEEPALIVE_S", 0.02)
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("Hello there.")))
    async with early(backend) as served, open_stream(served.http, background=True) as events:
        await events.until("keepalive")
        response_id = events.seen[0]["response"]["id"]
        joined = asyncio.create_task(rejoin(served.http, response_id))
        await events.until("keepalive")
        gate.set()
        seen = await events.rest()
        check_stream(seen)
        assert await joined == seen
        assert await rejoin(served.http, response_id) == seen
        cut_off = await rejoin(served.http, response_id, starting_after=3)
        assert cut_off == seen[4:]
        assert seen[-1]["response"]["nomyo"]["endpoint"] == "b0", "its headers left before it was asked"


async def test_a_background_turn_says_in_its_response_where_it_ran(backend: FakeBackend) -> None:
    async with early(backend) as served:
        queued = await create(served.http, background=True)
        assert "nomyo" not in queued
        assert (await ended(served.http, queued["id"]))["nomyo"]["endpoint"] == "b0"


async def test_a_page_may_read_an_answer_that_began_early(backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("Hello.")))
    async with early(backend) as served:
        headers = {"origin": "http://localhost:3000"}
        async with served.http.stream("POST", URL, json=turn(stream=True), headers=headers) as answer:
            assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
            gate.set()
            assert b"response.completed" in await answer.aread()


async def test_what_was_changed_for_a_backend_is_in_the_last_response(backend: FakeBackend) -> None:
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("Hello.")))
    tools = [{"type": "web_search"}]
    async with early(backend) as served, open_stream(served.http, tools=tools) as events:
        await events.until("response.in_progress")
        gate.set()
        last = (await events.rest())[-1]["response"]
        assert last["nomyo"]["omitted_tools"] == "web_search"


async def test_over_asgi_it_is_the_same(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """With somebody between us and the server, who gets each message."""
    monkeypatch.setattr("api.http.silence.KEEPALIVE_S", 0.02)
    create_app = router.create_app

    def create_app_behind_another(config: Any) -> Any:
        app = create_app(config)
        app.add_middleware(_Between)
        return app

    monkeypatch.setattr(router, "create_app", create_app_behind_another)
    gate = asyncio.Event()
    backend.script(steps(until(gate), chat("Hello there.")))
    async with early(backend) as served:
        async with open_stream(served.http) as events:
            await events.until("keepalive")
            gate.set()
            seen = await events.rest()
        check_stream(seen)
        assert seen[-1]["response"]["nomyo"]["endpoint"] == "b0"
        backend.script(stall())
        async with open_stream(served.http) as events:
            await events.until("response.in_progress")
        await backend.wait_for(lambda b: b.aborts == 1)


class _Between:
    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            await asyncio.sleep(0)
            await send(message)

        await self.app(scope, receive, sending)


@pytest.mark.logs("Exception in ASGI application")
async def test_a_fault_of_ours_behind_the_beginning_breaks_the_answer_off(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no second status, and no end that looks like a good one."""
    gate = asyncio.Event()
    backend.script(steps(until(gate), http_error(400, "no")))

    def failing(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("api.responses._described", failing)
    received = b""
    async with early(backend) as served:
        with contextlib.suppress(httpx2.RemoteProtocolError):
            async with served.http.stream("POST", URL, json=turn(stream=True)) as answer:
                async for piece in answer.aiter_raw():
                    received += piece
                    gate.set()
                pytest.fail("the answer looks whole")
        assert types_of([event for _, event in parse_sse(received)]) == BEGINNING
        await eventually(lambda: served.in_flight() == 0, "the slot is free")
