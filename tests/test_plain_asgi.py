"""Where our server protocol is not used: on a uvicorn with other insides, and behind somebody who stands in between."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
import websockets
import yaml
from fastapi import FastAPI

import tests.test_wire as wire
from api.http.protocol import Protocol
from api.http.server import BUILT_ON
from tests.fake_backend import FakeBackend, chat
from tests.stream_grammar import check_stream, parse_sse
from tests.test_restart import free_port
from tests.test_wire import CHAT, RESPONSES, ask, completion, made, response
from tests.turns import URL, Json, create, eventually, stream, text_of

ROOT = Path(__file__).parents[1]

OTHER_INSIDES = {
    "another version": "uvicorn.__version__ = '0.55.1'",
    "a name that is gone": "from uvicorn.protocols.http import flow_control, httptools_impl; "
    "del flow_control.service_unavailable",
}
START = """
import runpy, sys
import uvicorn
{change}
sys.argv[0] = "serve.py"
sys.path.insert(0, ".")
runpy.run_path("serve.py", run_name="__main__")
"""


def test_the_uvicorn_that_is_installed_is_the_one_that_it_is_built_on() -> None:
    assert uvicorn.__version__.startswith(f"{BUILT_ON}.")
    assert Protocol.__module__ == "api.http.connection"


@pytest.mark.parametrize("change", OTHER_INSIDES)
async def test_on_another_uvicorn_the_router_warns_and_answers_by_plain_asgi(
    change: str, backend: FakeBackend, tmp_path: Path
) -> None:
    backend.default = chat("Hello there.")
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "database": {"url": "sqlite://"},
        "background": {"drain_s": 0.1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    port = free_port()
    with (tmp_path / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", START.format(change=OTHER_INSIDES[change]), "--port", str(port)),
            cwd=ROOT,
            env={**os.environ, "ROUTER_CONFIG": str(tmp_path / "config.yaml")},
            stderr=log,
            stdout=log,
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as http:

            async def is_up() -> bool:
                assert process.returncode is None, (tmp_path / "log").read_text()
                try:
                    return bool((await http.get("/health")).json()["endpoints"]["up"] == 1)
                except httpx2.TransportError:
                    await asyncio.sleep(0.02)
                    return False

            await eventually(is_up, "the router answers")
            assert text_of(await create(http)) == "Hello there."
            events = await stream(http)
            check_stream(events)
            assert text_of(events[-1]["response"]) == "Hello there."
            async with websockets.connect(f"ws://127.0.0.1:{port}{URL}", proxy=None) as socket:
                await socket.send(json.dumps({"type": "response.create", **response()}))
                while (event := json.loads(await socket.recv()))["type"] != "response.completed":
                    assert event["type"] != "error", event
        process.terminate()
        assert await process.wait() in (0, -15)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    shown = (tmp_path / "log").read_text()
    assert f"is not {BUILT_ON}.x, which this router is built on: requests go by plain ASGI" in shown
    assert "Traceback" not in shown


class Between:
    """Somebody who wants to see what is sent."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def seen(message: Json) -> None:
            await send(message)

        await self._app(scope, receive, seen)


@pytest.mark.parametrize("way", ["httptools", "h11", "in between"])
@pytest.mark.parametrize(
    ("path", "body"),
    [(RESPONSES, response(stream=True)), (CHAT, completion(stream=True)), ("/api/chat", completion())],
)
async def test_a_stream_to_http_1_0_is_not_chunked(
    way: str, path: str, body: Json, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.default = chat("Hello there.")
    monkeypatch.setitem(wire.WAYS, "httptools", "httptools")
    monkeypatch.setitem(wire.WAYS, "h11", "h11")
    app: FastAPI = made(backend)
    before = Between(app) if way == "in between" else None
    async with app.router.lifespan_context(app), wire.served(app, "wire" if before else way, before) as site:
        line = await site.connect()
        await line.send(ask(body, path=path, version="1.0"))
        answer = await line.answer()
        assert await line.is_closed()
        await line.leave()
    assert answer.status == 200
    assert answer.is_whole
    assert answer.header("transfer-encoding") is None
    if path == RESPONSES:
        events = [event for _, event in parse_sse(bytes(answer.body))]
        check_stream(events)
        assert text_of(events[-1]["response"]) == "Hello there."
    elif path == CHAT:
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        lines = [json.loads(line) for line in answer.body.splitlines()]
        assert "".join(line["message"]["content"] for line in lines) == "Hello there."
        assert lines[-1]["done"] is True
