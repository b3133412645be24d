"""Replicas as processes of their own on one PostgreSQL, killed, stopped and with a database that is restarted: each
background turn ends once, and nothing that was finished is lost."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.engines.postgres import PostgresServer
from tests.fake_backend import FakeBackend, chat
from tests.test_restart import router_process
from tests.turns import URL, eventually, turn

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(240)]

# Longer than a lease (stores/postgres_database.py), on a busy machine.
PATIENCE_S = 150.0
ENDED = ("completed", "failed", "cancelled", "incomplete")


@pytest.fixture
def settings(backend: FakeBackend, own_postgres: PostgresServer) -> dict[str, Any]:
    backend.default = chat("done", delay_s=0.05)
    return {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 64}],
        "database": {"url": own_postgres.url()},
        "background": {"max_concurrent": 4, "max_queued": 1000, "drain_s": 1},
    }


class Replicas:
    """Some processes; those that end are not started again but by a test."""

    def __init__(self, stack: AsyncExitStack, settings: dict[str, Any], folder: Path) -> None:
        self._stack, self._settings, self._folder = stack, settings, folder
        self.running: list[tuple[httpx2.AsyncClient, asyncio.subprocess.Process]] = []

    async def start(self) -> tuple[httpx2.AsyncClient, asyncio.subprocess.Process]:
        folder = self._folder / f"{len(self.running)}"
        folder.mkdir()
        self.running.append(await self._stack.enter_async_context(router_process(self._settings, folder)))
        return self.running[-1]


async def answered(http: httpx2.AsyncClient, method: str, path: str, **arguments: Any) -> httpx2.Response | None:
    """The answer of a replica that lives, and whose database is there."""
    try:
        answer = await http.request(method, path, **arguments)
    except httpx2.TransportError:
        return None
    return answer if answer.status_code == 200 else None


async def test_each_turn_ends_once_whatever_happens_to_replicas_and_database(
    stack: AsyncExitStack, settings: dict[str, Any], own_postgres: PostgresServer, backend: FakeBackend, tmp_path: Path
) -> None:
    replicas = Replicas(stack, settings, tmp_path)
    for _ in range(3):
        await replicas.start()
    (one, first), (two, second), (three, _) = replicas.running
    ids: list[str] = []
    for number in range(120):
        http = (one, two, three)[number % 3]
        answer = await answered(http, "POST", URL, json=turn(background=True, input=f"turn {number}"))
        assert answer is not None
        ids.append(answer.json()["id"])
    first.kill()
    second.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(own_postgres.restart)
    seen: dict[str, list[str]] = {response_id: [] for response_id in ids}

    async def all_ended() -> bool:
        for response_id in ids:
            if seen[response_id]:
                continue
            answer = await answered(three, "GET", f"{URL}/{response_id}")
            if answer is not None and answer.json()["status"] in ENDED:
                seen[response_id].append(answer.json()["status"])
        return all(seen.values())

    await asyncio.sleep(6)  # It stands still for less than a lease: slow, and not dead.
    second.send_signal(signal.SIGCONT)
    await eventually(all_ended, "all have ended", PATIENCE_S)
    # And they stay so.
    for response_id in ids:
        for http in (two, three):
            answer = await answered(http, "GET", f"{URL}/{response_id}")
            assert answer is not None
            assert answer.json()["status"] == seen[response_id][0]
    ends = Counter(status for statuses in seen.values() for status in statuses)
    # Those that ran at the one that was killed.
    assert ends["failed"] <= 4, ends
    assert ends["completed"] == 120 - ends["failed"]
    asked = Counter(request.json["messages"][-1]["content"] for request in backend.requests if request.method == "POST")
    assert len(asked) == 120
    # What was finished when the database went away may not have been stored, and is failed rather than asked again.
    assert max(asked.values()) == 1, asked.most_common(3)


async def test_nothing_that_a_client_saw_finished_is_lost_when_processes_are_killed(
    stack: AsyncExitStack, settings: dict[str, Any], tmp_path: Path
) -> None:
    replicas = Replicas(stack, settings, tmp_path)
    chance = random.Random(1)
    for _ in range(2):
        await replicas.start()
    finished: list[str] = []
    is_over = False

    async def ask() -> None:
        while not is_over:
            http, process = chance.choice(replicas.running)
            if process.returncode is not None:
                await asyncio.sleep(0.005)
                continue
            answer = await answered(http, "POST", URL, json=turn())
            if answer is not None:
                finished.append(answer.json()["id"])

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    for kill in range(6):
        before = len(finished)
        await eventually(lambda before=before: len(finished) > before + 20, "turns are answered", PATIENCE_S)
        alive = [process for _, process in replicas.running if process.returncode is None]
        chance.choice(alive).kill()
        if kill < 5:
            await replicas.start()
    is_over = True
    await asyncio.gather(*asking)
    http, _ = await replicas.start()
    for response_id in finished:
        answer = await answered(http, "GET", f"{URL}/{response_id}")
        assert answer is not None, f"{response_id} is missing"
        assert answer.json()["status"] == "completed"
