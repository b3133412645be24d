"""Shared fixtures. The application under test is `router.app`, with settings of the tests' own: set before it is
imported."""

from __future__ import annotations

# isort: off
from tests.clock import CLOCK, Clock  # Before all that takes `time.monotonic`.

# isort: on
import asyncio
import atexit
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import hypothesis
import pytest
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from api.http.protocol import Protocol

_settings = Path(tempfile.mkdtemp(prefix="nomyo-tests-"))
atexit.register(shutil.rmtree, _settings, ignore_errors=True)
(_settings / "config.yaml").write_text(
    f"""
endpoints: [{{url: "http://127.0.0.1:9", kind: ollama}}]
database: {{url: "sqlite:///{_settings}/router.db"}}
background: {{drain_s: 0.2}}
"""
)
for name in [name for name in os.environ if name.startswith(("ROUTER_", "NOMYO_"))]:
    del os.environ[name]
os.environ["ROUTER_CONFIG"] = str(_settings / "config.yaml")

import backends.fleet.failover  # noqa: E402
import router  # noqa: E402
from core.config_checks import parse_config  # noqa: E402
from core.logs import TextFormatter  # noqa: E402
from tests.engines import postgres as postgres_engine  # noqa: E402
from tests.engines import valkey as valkey_engine  # noqa: E402
from tests.fake_backend import FakeBackend  # noqa: E402
from tests.turns import eventually  # noqa: E402


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path leaves room for a socket's: pytest's have the names of the tests in them."""
    with tempfile.TemporaryDirectory(prefix="nomyo-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def short_path() -> Iterator[Path]:
    with short_folder() as folder:
        yield folder


# A law is no faster on a busy machine.
hypothesis.settings.register_profile("router", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("router")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "logs(text): for nothing_is_left_behind: a warning that has this text is expected"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """From pure to live, and the heavy ones last: what fails first is then nearest to the cause."""

    def distance(item: pytest.Item) -> int:
        if item.get_closest_marker("heavy"):
            return 3
        if item.get_closest_marker("live"):
            return 2
        return 1 if {"backend", "client", "stack"} & set(getattr(item, "fixturenames", ())) else 0

    items.sort(key=distance)


class SearchedLog(logging.Handler):
    """Looks in all lines of the whole suite, as the service writes them, for what none may hold: what is asked and
    answered by default, and keys."""

    SECRETS = ("Say something.", "-secret", "Bearer ")

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if any(secret in line for secret in self.SECRETS):
            self.found.append(line)


SEARCHED = SearchedLog()
logging.getLogger("nomyo").addHandler(SEARCHED)
logging.getLogger("uvicorn.error").addHandler(SEARCHED)
logging.getLogger("nomyo").setLevel(logging.DEBUG)


@pytest.fixture(autouse=True)
def no_log_holds_what_is_secret() -> Iterator[None]:
    """Every test is one of this."""
    yield
    found, SEARCHED.found = SEARCHED.found, []
    assert not found, found


@pytest.fixture
def clock() -> Clock:
    return CLOCK


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """An in-process client of `router.app`, its lifespan entered (httpx's ASGITransport runs none)."""
    async with router.app.router.lifespan_context(router.app):
        transport = httpx2.ASGITransport(app=router.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://router") as client:
            yield client


@dataclass
class Running:
    """A router on a real socket: its application, and clients of it."""

    app: FastAPI
    url: str
    http: httpx2.AsyncClient
    openai: AsyncOpenAI
    # Of uvicorn: the protocol of each connection that is open.
    connections: set[Any] = field(default_factory=set)

    def in_flight(self) -> int:
        """The slots taken, over all endpoints."""
        return sum(endpoint.in_flight for endpoint in self.app.state.pool.endpoints.values())


class Server(uvicorn.Server):
    """uvicorn, but quick to stop: it looks up ten times a second, three times for each of hundreds of tests."""

    async def main_loop(self) -> None:
        while not self.should_exit:  # noqa: ASYNC110  # a signal handler sets it
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state, loop = self.server_state, asyncio.get_running_loop()
        for connection in list(state.connections):
            connection.shutdown()
        end = loop.time() + (self.config.timeout_graceful_shutdown or 0)
        while (state.connections or state.tasks) and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@asynccontextmanager
async def running_router(**settings: Any) -> AsyncIterator[Running]:
    """uvicorn on a free port, in this event loop, with `settings` as config.yaml would have them. The store is in
    memory unless they say otherwise."""
    settings.setdefault("database", {"url": "sqlite://"})
    settings.setdefault("background", {"drain_s": 0.2})
    # Not in the middle of a test, nor because its clock has jumped.
    settings.setdefault("models_refresh_s", 86_400)
    app = router.create_app(parse_config(settings))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Accepted sockets inherit it. asyncio sets it by itself only where the protocol is named.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = Server(uvicorn.Config(app, http=Protocol, log_level="error", timeout_graceful_shutdown=2))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        key = settings.get("api_key") or "none"
        try:
            async with (
                # verify=False: no client has to load the certificates of the world, 40 ms each.
                httpx2.AsyncClient(
                    base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=None, verify=False
                ) as http,
                AsyncOpenAI(
                    base_url=f"{url}/v1",
                    api_key=key,
                    max_retries=0,
                    http_client=httpx2.AsyncClient(timeout=None, verify=False),
                ) as openai,
            ):
                yield Running(app, url, http, openai, server.server_state.connections)
        finally:
            server.should_exit = True
            await serving


@pytest.fixture(scope="session")
def postgres() -> postgres_engine.PostgresServer:
    """A real PostgreSQL, for databases of the tests' own: `postgres.new_database()`."""
    if postgres_engine.ABSENT:
        pytest.skip(postgres_engine.ABSENT)
    return postgres_engine.shared_server()


@pytest.fixture
def own_postgres() -> Iterator[postgres_engine.PostgresServer]:
    """A real PostgreSQL for one test alone, which may stop, kill and restart it."""
    if postgres_engine.ABSENT:
        pytest.skip(postgres_engine.ABSENT)
    with postgres_engine.PostgresServer.started() as server:
        yield server


@pytest.fixture
def valkey() -> valkey_engine.ValkeyServer:
    """A real Valkey, the same for all tests, empty."""
    if valkey_engine.ABSENT:
        pytest.skip(valkey_engine.ABSENT)
    server = valkey_engine.shared_server()
    server.empty()
    return server


@pytest.fixture
def own_valkey() -> Iterator[valkey_engine.ValkeyServer]:
    """A real Valkey for one test alone, which may pause, kill and restart it."""
    if valkey_engine.ABSENT:
        pytest.skip(valkey_engine.ABSENT)
    with valkey_engine.ValkeyServer.started() as server:
        yield server


@pytest.fixture
async def backend() -> AsyncIterator[FakeBackend]:
    """A scriptable chat-completions server on a real socket."""
    async with FakeBackend() as backend:
        yield backend


@pytest.fixture
def strict_backend(backend: FakeBackend) -> None:
    """`backend` refuses what the strictest of servers do."""
    backend.strict = True


@pytest.fixture
async def served(backend: FakeBackend) -> AsyncIterator[Running]:
    """A router on a real socket in front of `backend`."""
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai-chat"}]) as running:
        yield running


@pytest.fixture
async def served_natively(backend: FakeBackend) -> AsyncIterator[Running]:
    """A router on a real socket in front of `backend` as one that speaks Responses itself."""
    async with running_router(endpoints=[{"url": f"{backend.url}/v1", "kind": "openai"}]) as running:
        yield running


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that failed is sent again at once, or nearly so."""
    monkeypatch.setattr(backends.fleet.failover, "WAITS_S", (0.005, 0.01))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Closed after the test: for what a test opens by itself."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def backends_(stack: AsyncExitStack) -> list[FakeBackend]:
    """Two of them."""
    return [await stack.enter_async_context(FakeBackend()) for _ in range(2)]


@pytest.fixture
async def nothing_is_left_behind(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[None]:
    """No warning, error or complaint of asyncio's in the log but those that the test is marked with, and no task that
    outlives it."""
    before = asyncio.all_tasks()
    records: list[logging.LogRecord] = []
    # uvicorn's log goes nowhere else.
    uvicorn, note = logging.getLogger("uvicorn.error"), lambda record: records.append(record) or True
    uvicorn.addFilter(note)
    yield
    uvicorn.removeFilter(note)
    this = asyncio.current_task()
    await eventually(lambda: asyncio.all_tasks() - {this} <= before, "every task of the router has ended")
    records += caplog.get_records("call")
    lines = [f"{record.name}: {record.getMessage()}" for record in records if record.levelno > logging.INFO]
    for mark in request.node.iter_markers("logs"):
        expected = [line for line in lines if mark.args[0] in line]
        assert expected, f"{mark.args[0]!r} is not in the log: {lines}"
        lines = [line for line in lines if line not in expected]
    assert not lines, f"in the log: {lines}"
