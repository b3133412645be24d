"""The shortcut around the framework: whoever takes it gets what he would get on the way through."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

import router
from core.config import parse_config
from tests.fake_backend import FakeBackend, chat, http_error

Json = dict[str, Any]
ASK: Json = {"model": "test-model", "input": "Hi", "store": False}
CHAT: Json = {"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture
async def ways(backend: FakeBackend, stack: AsyncExitStack) -> AsyncIterator[list[httpx2.AsyncClient]]:
    """Two clients of one application: by the shortcut, and by the framework alone."""
    settings = {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}], "database": {"url": "sqlite://"}}
    app = router.create_app(parse_config({**settings, "api_key": "secret"}))

    async def framework(scope: Any, receive: Any, send: Any) -> None:
        await FastAPI.__call__(app, scope, receive, send)

    async with app.router.lifespan_context(app):
        yield [
            await stack.enter_async_context(
                httpx2.AsyncClient(
                    transport=httpx2.ASGITransport(way, raise_app_exceptions=False), base_url="http://r", headers=KEY
                )
            )
            for way in (app, framework)
        ]


def bare(answer: httpx2.Response) -> tuple[int, dict[str, str], str]:
    """What is the same whichever way: all but ids and times."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-nomyo-wait-ms")}
    text = re.sub(r"(resp|msg|chatcmpl)[_-]\w+", r"\1", answer.text)
    text = re.sub(r'"(created_at|completed_at|created)":\d+', r'"\1":0', text)
    headers.pop("content-length", None)
    return answer.status_code, headers, text


REQUESTS: dict[str, tuple[str, Any]] = {
    "a response": ("/v1/responses", ASK),
    "a stream": ("/v1/responses", ASK | {"stream": True}),
    "chat": ("/v1/chat/completions", CHAT),
    "a chat stream": ("/v1/chat/completions", CHAT | {"stream": True}),
    "no such model": ("/v1/responses", ASK | {"model": "nothing-like-it"}),
    "a wrong parameter": ("/v1/responses", ASK | {"temperature": 9}),
    "no JSON": ("/v1/responses", b"{"),
    "no model": ("/v1/embeddings", {"input": "Hi"}),
}


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=REQUESTS)
async def test_both_ways_answer_the_same(
    path: str, body: Any, ways: list[httpx2.AsyncClient], backend: FakeBackend
) -> None:
    backend.default = chat("Hello there")
    given: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    short, long = [bare(await way.post(path, **given)) for way in ways]
    assert short == long


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions"])
async def test_both_ways_ask_for_the_key(path: str, ways: list[httpx2.AsyncClient], backend: FakeBackend) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        short, long = [bare(await way.post(path, json=ASK, headers=headers)) for way in ways]
        assert short == long
        assert short[0] == 401
    assert not backend.turns, "somebody without the key got through"


async def test_both_ways_tell_a_failure_of_a_backend(ways: list[httpx2.AsyncClient], backend: FakeBackend) -> None:
    backend.default = http_error(500, "boom")
    short, long = [bare(await way.post("/v1/responses", json=ASK)) for way in ways]
    assert short == long
    assert short[0] == 502


async def test_both_ways_tell_a_fault_of_ours(
    ways: list[httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("api.responses.get_llm_cache", broken)
    asking = ASK | {"nomyo": {"cache": True}}
    short, long = [bare(await way.post("/v1/responses", json=asking)) for way in ways]
    assert short == long
    assert short[0] == 500
    assert "a fault of ours" not in short[2]
    assert "a fault of ours" in caplog.text, "its cause is not in the log"


def test_every_shortcut_leads_where_the_framework_leads() -> None:
    routes = {
        (method, route.path): route.endpoint
        for surface in router.SURFACES
        for route in surface.routes
        for method in getattr(route, "methods", None) or ()
    }
    for way, endpoint in router.SHORTCUTS.items():
        assert routes[way] is endpoint, f"{way} leads elsewhere"


async def test_a_middleware_that_somebody_adds_sees_every_request(backend: FakeBackend) -> None:
    seen: list[str] = []

    class Listener:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                seen.append(scope["path"])
            await self.app(scope, receive, send)

    settings = {"endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}], "database": {"url": "sqlite://"}}
    app = router.create_app(parse_config(settings))
    app.add_middleware(Listener)
    async with app.router.lifespan_context(app):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://r") as client:
            assert (await client.post("/v1/responses", json=ASK)).status_code == 200
    assert seen == ["/v1/responses"]
