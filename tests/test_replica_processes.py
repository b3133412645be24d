"""Replicas as processes of their own, on one Valkey and one database: killed, stopped, and their Valkey taken away."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.engines.postgres import PostgresServer
from tests.engines.server import free_port
from tests.engines.valkey import ValkeyServer
from tests.fake_backend import DONE, FakeBackend, Reply, chat, chunk, pause, steps, stream, until
from tests.stream_grammar import check_stream
from tests.turns import URL, create, ended, eventually, follow, has_status, open_stream, rejoin, retrieve, text_of, turn

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]


@dataclass
class Replica:
    """`serve.py`, and a client of it."""

    http: httpx2.AsyncClient
    process: asyncio.subprocess.Process

    def send(self, what: signal.Signals) -> None:
        self.process.send_signal(what)

    async def die(self) -> None:
        self.process.kill()
        await self.process.wait()


class Fleet:
    """So many replicas in front of a backend."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.file = folder / "config.yaml"
        self.file.write_text(yaml.safe_dump(settings))
        self.replicas: list[Replica] = []
        self._started = 0

    async def start(self, stack: AsyncExitStack) -> Replica:
        """One more, which answers and knows the others."""
        replica = await stack.enter_async_context(self._running())
        self.replicas.append(replica)
        return replica

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[Replica]:
        port = free_port()
        self._started += 1
        with (self.folder / f"log-{self._started}").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "serve.py", "--port", str(port)),
                cwd=ROOT,
                env={**os.environ, "ROUTER_CONFIG": str(self.file)},
                stdout=log,
                stderr=log,
            )
        try:
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None) as http:

                async def is_up() -> bool:
                    assert process.returncode is None, self.logs()
                    try:
                        health = (await http.get("/health")).json()
                    except httpx2.TransportError:
                        await asyncio.sleep(0.02)
                        return False
                    return health["endpoints"]["up"] == 1 and "cluster" not in health

                await eventually(is_up, "it answers")
                yield Replica(http, process)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            await process.wait()

    def logs(self) -> str:
        return "\n".join(f"── {file.name}\n{file.read_text()}" for file in sorted(self.folder.glob("log-*")))


async def busy(replica: Replica) -> int:
    """How many requests run at the endpoint, as a replica sees it."""
    return (await replica.http.get("/api/endpoints")).json()["endpoints"][0]["in_flight"]


@pytest.fixture
def settings(backend: FakeBackend, own_valkey: ValkeyServer, postgres: PostgresServer) -> dict[str, Any]:
    return {
        "endpoints": [{"url": f"{backend.url}/v1", "kind": "openai-chat", "max_concurrent": 4}],
        "database": {"url": postgres.new_database()},
        "cluster": {"url": own_valkey.url},
        "background": {"drain_s": 1, "max_concurrent": 50},
    }


@pytest.fixture
async def fleet(tmp_path: Path, settings: dict[str, Any], stack: AsyncExitStack) -> Fleet:
    return Fleet(tmp_path, settings)


def halting(goes_on: asyncio.Event, *texts: str) -> Any:
    said = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in texts)]
    return stream(*said, until(goes_on), chunk({"content": "!"}), chunk({}, finish_reason="stop"), DONE)


async def test_slots_of_a_killed_replica_are_back_and_its_stream_ends_where_it_is_read(
    backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack
) -> None:
    goes_on = asyncio.Event()
    a, b, c = [await fleet.start(stack) for _ in range(3)]
    backend.default = halting(goes_on, "Hello", " world")
    async with open_stream(a.http, background=True) as events:
        response_id = (await events.until("response.created"))["response"]["id"]
        await events.until("response.output_text.delta")
        others = [await create(a.http, background=True) for _ in range(3)]
        await backend.wait_for(lambda b: b.in_flight == 4)
        async with follow(b.http, response_id) as reader:
            await reader.until("response.output_text.delta")
            backend.default = chat("At last.")
            waits = asyncio.create_task(create(c.http, store=False))
            await asyncio.sleep(0.2)
            assert not waits.done(), "all slots are taken"
            await a.die()
            assert (await waits)["status"] == "completed"
            events_seen = await reader.rest()
    check_stream(events_seen)
    assert events_seen[-1]["type"] == "response.failed"
    assert await rejoin(c.http, response_id, 3) == events_seen[4:]
    for response in others:
        assert (await ended(b.http, response["id"]))["status"] == "failed"

    async def are_free() -> bool:
        return [await busy(replica) for replica in (b, c)] == [0, 0]

    await eventually(are_free, "no slot is lost")


async def test_a_replica_that_stands_still_for_20_s_loses_its_slots_and_no_turn(
    backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack
) -> None:
    goes_on = asyncio.Event()
    a, b = [await fleet.start(stack) for _ in range(2)]
    backend.default = halting(goes_on, "Hello")
    turns = [await create(a.http, background=True) for _ in range(4)]
    await backend.wait_for(lambda b: b.in_flight == 4)
    a.send(signal.SIGSTOP)
    backend.default = chat("Meanwhile.")
    assert (await create(b.http, store=False))["status"] == "completed"
    goes_on.set()
    for _ in range(40):
        assert (await create(b.http, store=False))["status"] == "completed"
        assert all([(await retrieve(b.http, one["id"]))["status"] == "in_progress" for one in turns]), "it is only slow"
        await asyncio.sleep(0.5)
    a.send(signal.SIGCONT)
    for response in turns:
        assert (await ended(b.http, response["id"]))["status"] == "completed"

    async def are_free() -> bool:
        return [await busy(replica) for replica in (a, b)] == [0, 0]

    await eventually(are_free, "no slot is lost")


@pytest.mark.parametrize("is_slow_first", [True, False])
async def test_who_takes_over_from_the_dead_leaves_alone_what_a_slow_one_runs(
    backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack, is_slow_first: bool
) -> None:
    """Also where its lease ends while it is asked, and where two look after what was left, each after one."""
    goes_on = asyncio.Event()
    dead, slow, heir, _ = [await fleet.start(stack) for _ in range(4)]
    backend.default = halting(goes_on, "Hello")
    of_dead, of_slow = [[await create(at.http, background=True) for _ in range(2)] for at in (dead, slow)]
    await backend.wait_for(lambda b: b.in_flight == 4)
    if is_slow_first:
        slow.send(signal.SIGSTOP)
    await dead.die()
    if not is_slow_first:
        await asyncio.sleep(0.5)
        slow.send(signal.SIGSTOP)
    for _ in range(20):  # A lease is 3 s, and its heir asks twice.
        await asyncio.sleep(0.5)
        states = [(await retrieve(heir.http, one["id"]))["status"] for one in of_slow]
        assert states == ["in_progress"] * 2, "it is only slow"
    slow.send(signal.SIGCONT)
    goes_on.set()
    for response in of_slow:
        assert (await ended(heir.http, response["id"]))["status"] == "completed"
    for response in of_dead:
        assert (await ended(heir.http, response["id"]))["status"] == "failed"


async def test_turns_go_on_while_the_valkey_is_restarted_emptied_and_stopped(
    backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack, own_valkey: ValkeyServer
) -> None:
    most = 0

    async def counted(reply: Reply) -> None:
        nonlocal most
        most = max(most, backend.in_flight)
        await steps(pause(0.05), chat("ok"))(reply)

    backend.default = counted
    replicas = [await fleet.start(stack) for _ in range(3)]
    outcomes: Counter[str] = Counter()
    ids: list[str] = []

    async def ask(number: int) -> None:
        http = replicas[number % 3].http
        if number % 2:
            outcomes[(await create(http, store=False))["status"]] += 1
        else:
            ids.append((await create(http, background=True))["id"])

    asked: list[asyncio.Task[None]] = []
    for number in range(300):
        asked.append(asyncio.create_task(ask(number)))
        if number == 60:
            own_valkey.restart()
        if number == 120:
            own_valkey.empty()
        if number == 180:
            own_valkey.pause()
        if number == 220:
            own_valkey.resume()
        await asyncio.sleep(0.02)
    await asyncio.gather(*asked)
    for response_id in ids:
        outcomes[(await ended(replicas[0].http, response_id))["status"]] += 1
    assert outcomes == {"completed": 300}
    assert len(backend.turns) == 300, "none was run twice"
    assert most <= 3 * 4, "each counts for itself meanwhile, and no more than that"

    async def are_free() -> bool:
        return [await busy(replica) for replica in replicas] == [0, 0, 0]

    await eventually(are_free, "no slot is lost")
    assert sum(map(int, own_valkey.run("HVALS", "{nomyo}:total"))) == 0


async def test_300_background_turns_over_a_killed_and_a_stopped_replica_each_end_once(
    backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack, own_valkey: ValkeyServer
) -> None:
    backend.default = steps(pause(0.05), chat("Done."))
    replicas = [await fleet.start(stack) for _ in range(3)]
    made: list[str] = []

    async def ask(number: int) -> None:
        replica = replicas[number % 3]
        try:
            answer = await replica.http.post(URL, json=turn(background=True))
        except httpx2.TransportError:
            return  # It was killed: its client knows of no response.
        assert answer.status_code == 200, answer.text
        made.append(answer.json()["id"])

    asked = []
    for number in range(300):
        asked.append(asyncio.create_task(ask(number)))
        if number == 100:
            await replicas[0].die()
        if number == 150:
            replicas[1].send(signal.SIGSTOP)
            own_valkey.restart()
        await asyncio.sleep(0.01)
    await asyncio.sleep(20)
    replicas[1].send(signal.SIGCONT)
    await asyncio.gather(*asked)
    reader = replicas[2].http
    statuses = {response_id: (await ended(reader, response_id))["status"] for response_id in made}
    assert set(statuses.values()) <= {"completed", "failed"}
    assert sum(status == "completed" for status in statuses.values()) >= len(made) - 50 - 4

    async def settled() -> bool:
        return [await busy(replica) for replica in replicas[1:]] == [0, 0]

    await eventually(settled, "no slot is lost")
    again = {response_id: (await retrieve(replicas[1].http, response_id))["status"] for response_id in made}
    assert again == statuses, "what has ended stays as it is"


async def test_workers_and_replicas_mix(backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack) -> None:
    """Two replicas of two workers each: four processes that count together, and find each other."""
    settings = yaml.safe_load(fleet.file.read_text())
    settings["workers"] = 2
    settings["endpoints"][0]["max_concurrent"] = 3
    fleet.file.write_text(yaml.safe_dump(settings))
    most = 0

    async def counted(reply: Reply) -> None:
        nonlocal most
        most = max(most, backend.in_flight)
        await steps(pause(0.01), chat("ok"))(reply)

    backend.default = counted
    replicas = [await fleet.start(stack) for _ in range(2)]
    answers = await asyncio.gather(*(create(replica.http, store=False) for replica in replicas for _ in range(40)))
    assert len(answers) == 80
    assert most == 3
    goes_on = asyncio.Event()
    backend.default = halting(goes_on, "Hello")
    response = await create(replicas[0].http, background=True)
    await has_status(replicas[1].http, response["id"], "in_progress")
    for _ in range(4):  # Whichever worker it comes to.
        assert (await retrieve(replicas[1].http, response["id"]))["status"] == "in_progress"
    answer = await replicas[1].http.post(f"{URL}/{response['id']}/cancel")
    assert answer.json()["status"] == "cancelled"


async def test_a_stream_whose_replica_was_killed_runs_again_elsewhere_behind_what_was_read_of_it(
    backend: FakeBackend, fleet: Fleet, stack: AsyncExitStack
) -> None:
    settings = yaml.safe_load(fleet.file.read_text())
    settings["background"]["rerun"] = True
    fleet.file.write_text(yaml.safe_dump(settings))
    a, b, c = [await fleet.start(stack) for _ in range(3)]
    backend.script(halting(asyncio.Event(), "Half", " an"), chat("A whole answer."))
    async with open_stream(a.http, background=True) as events:
        response_id = (await events.until("response.created"))["response"]["id"]
        await events.until("response.output_text.delta")
        async with follow(b.http, response_id) as reader:
            await reader.until("response.output_text.delta")
            await a.die()
            seen = await reader.rest()
    assert [event["sequence_number"] for event in seen] == list(range(len(seen))), "none is missing, none comes twice"
    assert seen[-1]["type"] == "response.completed"
    assert text_of(seen[-1]["response"]) == "A whole answer."
    for replica in (b, c):
        assert await rejoin(replica.http, response_id) == seen
        assert await rejoin(replica.http, response_id, 4) == seen[5:]
    assert len(backend.turns) == 2
