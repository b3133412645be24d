"""Two workers as their clients see them: many requests at once, each over a new connection, to whichever worker takes it; and what
becomes of those when a worker dies, the settings change, or all of it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import yaml

from tests.fake_backend import FakeBackend, Reply, chat, pause, stall, steps, until
from tests.stream_grammar import check_stream
from tests.test_restart import free_port
from tests.turns import (
    assert_error,
    create,
    ended,
    eventually,
    follow,
    has_status,
    open_stream,
    rejoin,
    retrieve,
    stream,
    text_of,
    turn,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[1]
KEY = "a key"
LIMIT = 3


class Crowd:
    """An answer that takes a moment, and knows how many were given at once."""

    def __init__(self, text: str = "Done.") -> None:
        self._answer = steps(pause(0.005), chat(text))
        self.now = self.most = 0

    async def __call__(self, reply: Reply) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._answer(reply)
        finally:
            self.now -= 1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[FakeBackend]:
    async with FakeBackend() as backend:
        yield backend


@dataclass
class Service:
    """`serve.py` with two workers, and a client with the key that opens a connection for each request."""

    process: asyncio.subprocess.Process
    folder: Path
    http: httpx2.AsyncClient

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def workers(self) -> list[int]:
        """Their process ids."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if "spawn_main" in command_of(int(child))]

    def write_settings(self, backend: FakeBackend, **endpoint: Any) -> None:
        settings = {
            "workers": 2,
            "api_key": KEY,
            "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "name": "one", **endpoint}],
            "database": {"url": f"sqlite:///{self.folder}/router.db"},
            "background": {"max_concurrent": 16, "drain_s": 0.2},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))

    async def figures(self) -> list[dict[str, Any]]:
        """What each worker has counted, asked at the doors that they have for each other."""
        found = []
        for door in sorted(self.temporary.glob("nomyo-*/worker-*.sock")):
            transport = httpx2.AsyncHTTPTransport(uds=str(door))
            async with httpx2.AsyncClient(transport=transport, base_url="http://worker", headers=self.http.headers) as http:
                answer = await http.get("/api/workers/figures")
            assert answer.status_code == 200, answer.text
            found.append(answer.json())
        return found

    async def answered(self) -> list[int]:
        """How many requests each worker has had answered."""
        return [worker["outcomes"]["one"].get("answered", 0) for worker in await self.figures()]

    async def is_up(self) -> None:
        """Waits until both workers answer, and know the models."""

        async def knows_models() -> bool:
            assert self.process.returncode is None, f"it ended: {(self.folder / 'log').read_text()}"
            with suppress(httpx2.TransportError):
                return len(await self.figures()) == 2 and (await self.http.get("/v1/models")).json()["data"] != []
            return False

        await eventually(knows_models, "both workers answer", 20)


def command_of(pid: int) -> str:
    """Empty for a process that is no more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@asynccontextmanager
async def service(backend: FakeBackend, folder: Path) -> AsyncIterator[Service]:
    """The service, up and answering; killed at the end if it still runs."""
    (folder / "tmp").mkdir()
    port = free_port()
    command = [sys.executable, "serve.py", "--port", str(port), "--log-level", "error"]
    environment = {**os.environ, "ROUTER_CONFIG": str(folder / "config.yaml"), "TMPDIR": str(folder / "tmp")}
    async with httpx2.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Bearer {KEY}"},
        limits=httpx2.Limits(max_keepalive_connections=0),
        timeout=20,
        verify=False,
    ) as http:
        running = Service(None, folder, http)
        running.write_settings(backend, max_concurrent=LIMIT)
        with (folder / "log").open("w") as log:
            running.process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env=environment, stderr=log, stdout=log
            )
        pids: list[int] = []
        try:
            await running.is_up()
            pids = running.workers()
            yield running
        finally:
            if running.process.returncode is None:
                pids += running.workers()
                running.process.kill()
                await running.process.wait()
            for pid in pids:
                if "spawn_main" in command_of(pid):
                    os.kill(pid, signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(backend: FakeBackend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    """One service for all tests here."""
    async with service(backend, tmp_path_factory.mktemp("both")) as running:
        yield running


async def test_x(backend: FakeBackend, both: Service) -> None:
    for n in (40, 40, 200):
        crowd = backend.default = Crowd()
        before = await both.answered()
        answers = await asyncio.gather(*(both.http.post("/v1/responses", json=turn()) for _ in range(n)))
        print([a.status_code for a in answers].count(200), crowd.most)
        print(before, await both.answered())
    for _ in range(100):
        await create(both.http)
    print(await both.answered())
