"""The rows `replicas` of `make hold`: three replicas over PostgreSQL and Valkey. One of all these processes killed
after the other, under load; and background turns while everything happens to them at once. Nothing that a client saw
finished may be missing, everything ends once, and no slot is lost.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.hold import CLIENTS, ENDED, Client, Line, Row, Service, asked, folder_of_its_own, killed, text_of
from benchmarks.limits import serving
from benchmarks.mock_backend import Connection as Mock
from benchmarks.scenarios import RESPONSES
from tests.engines.postgres import PostgresServer
from tests.engines.server import free_port
from tests.engines.valkey import ValkeyServer

REPLICAS = 3
# Of ten kills, those of the servers.
OF_SERVERS = 2


class Replica(Service):
    """One router of several, whose responses lie in PostgreSQL."""

    def __init__(
        self, folder: Path, backend: int, postgres: PostgresServer, database: str, valkey: str, **settings: Any
    ) -> None:
        folder.mkdir()
        advertised = f"127.0.0.1:{free_port()}"
        super().__init__(
            folder,
            backend,
            database={"url": database},
            cluster={"url": valkey, "advertise": advertised},
            **{"background": {"max_queued": 100_000}, **settings},
        )
        self._postgres = postgres
        self._name = database.rpartition("/")[2]
        self._stack = AsyncExitStack()
        self._process: Any = None
        self._clients: list[asyncio.Task[None]] = []

    async def start(self, client: Callable[[int], Client]) -> None:
        """Starts it, and clients that ask it until it dies."""
        self._process = await self._stack.enter_async_context(self.running())
        self._clients = [asyncio.create_task(client(self.port).run()) for _ in range(CLIENTS // 2)]

    async def die(self) -> None:
        """Kills it, and waits for its clients' last words."""
        await killed(self._process)
        await asyncio.gather(*self._clients)
        with suppress(ProcessLookupError):
            await self._stack.aclose()

    def statuses(self) -> dict[str, str]:
        """The status of each response in the database."""
        return dict(self._postgres.run("SELECT id, status FROM responses", self._name))


async def replica_kills(count: int) -> Row:
    """So many SIGKILLs, of replicas and now and then of a server, each at a moment of its own."""
    dice, finished, known = random.Random(2026), dict[str, str](), set[str]()
    kills: Counter[str] = Counter()
    async with serving(Mock) as backend:
        with folder_of_its_own() as folder, PostgresServer.started() as postgres, ValkeyServer.started() as valkey:
            database = postgres.new_database()
            replicas = [
                Replica(folder / str(number), backend, postgres, database, valkey.url) for number in range(REPLICAS)
            ]

            def client(port: int) -> Client:
                return Client(port, finished, known, dice)

            for replica in replicas:
                await replica.start(client)
            for _ in range(count):
                await asyncio.sleep(dice.uniform(0.02, 0.5))
                if dice.random() * 10 >= OF_SERVERS:
                    replica = dice.choice(replicas)
                    await replica.die()
                    await replica.start(client)
                    kills["replicas"] += 1
                    continue
                servers: list[PostgresServer | ValkeyServer] = [postgres, valkey]
                server = dice.choice(servers)
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(dice.uniform(0.0, 0.5))
                await asyncio.to_thread(server.start)
                kills["PostgreSQL" if server is postgres else "Valkey"] += 1
            for replica in replicas:
                await replica.die()
            async with AsyncExitStack() as stack:
                for replica in replicas:
                    await stack.enter_async_context(replica.running())
                await replicas[0].all_ended()
                statuses = replicas[0].statuses()
                lost = 0
                for number, (response_id, text) in enumerate(finished.items()):
                    line = Line(replicas[number % REPLICAS].port)
                    status, body = await line.ask("GET", f"{RESPONSES}/{response_id}")
                    line.close()
                    lost += status != 200 or text_of(json.loads(body)) != text
                again = replicas[0].statuses()
    left = sum(status not in ENDED for status in statuses.values())
    twice = sum(again[response_id] != status for response_id, status in statuses.items())
    missing = len(known - statuses.keys())
    ends = ", ".join(f"{number:,} {status}" for status, number in Counter(statuses.values()).most_common())
    starts = [start for replica in replicas for start in replica.starts]
    seen = (
        f"{len(finished):,} finished responses: {lost} lost; {missing} of {len(known):,} promised ids unknown; "
        f"{left} left running, {twice} ended twice ({ends}); back after {median(starts):.2f} s"
    )
    what = f"{count} SIGKILLs of {', '.join(f'{number} {name}' for name, number in kills.items())}"
    return what, seen, not (lost or left or missing or twice)


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Of each replica, and at the one model server: so few that turns wait, for each other and for a slot.
AT_ONCE, SLOTS, ANSWER_S = 8, 20, 0.6
STOPPED_S = 20.0


class Counting(Mock):
    """A model server that takes its time, and counts how often it was asked for each turn."""

    asked_for: Counter[str]
    running = most = 0

    def answer(self, head: bytes, body: bytes) -> None:
        """Answers one request."""
        if (named := re.search(rb"turn (\d+)", body)) is None:
            super().answer(head, body)
            return
        Counting.asked_for[named[1].decode()] += 1
        Counting.running += 1
        Counting.most = max(Counting.most, Counting.running)
        asyncio.get_running_loop().call_later(ANSWER_S, self._answer, head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        Counting.running -= 1
        if not self._transport.is_closing():
            super().answer(head, body)


async def replica_turns(count: int) -> Row:
    """So many background turns over three replicas, of which one is killed and one stands still for 20 s, while both
    servers are restarted, and the Valkey is emptied once more."""
    Counting.asked_for, Counting.running, Counting.most = Counter(), 0, 0
    made: dict[int, str] = {}
    refused = 0
    async with serving(Counting) as backend:
        with folder_of_its_own() as folder, PostgresServer.started() as postgres, ValkeyServer.started() as valkey:
            database = postgres.new_database()
            endpoint = {"url": f"http://127.0.0.1:{backend}/v1", "kind": "openai-chat", "max_concurrent": SLOTS}
            settings = {
                "endpoints": [endpoint],
                "background": {"max_concurrent": AT_ONCE, "max_queued": count},
                "queue": {"timeout_s": 120},
            }
            replicas = [
                Replica(folder / str(number), backend, postgres, database, valkey.url, **settings)
                for number in range(REPLICAS)
            ]

            async def make(number: int, replica: Replica) -> None:
                """Until it is promised; not what a dying replica may have promised."""
                nonlocal refused
                while True:
                    line = Line(replica.port)
                    try:
                        status, body = await line.ask("POST", RESPONSES, asked(background=True, input=f"turn {number}"))
                    except (OSError, EOFError):
                        return
                    finally:
                        line.close()
                    if status == 200:
                        made[number] = json.loads(body)["id"]
                        return
                    refused += 1
                    await asyncio.sleep(0.2)

            async with AsyncExitStack() as stack:
                processes = [await stack.enter_async_context(replica.running()) for replica in replicas]
                events: dict[int, Callable[[], Any]] = {
                    count // 3: lambda: killed(processes[0]),
                    count // 3 + 15: lambda: asyncio.to_thread(processes[1].send_signal, signal.SIGSTOP),
                    count // 2: lambda: asyncio.to_thread(postgres.restart),
                    count * 2 // 3: lambda: asyncio.to_thread(valkey.restart),
                    count * 5 // 6: lambda: asyncio.to_thread(valkey.empty),
                }
                making, stopped_at = [], 0.0
                for number in range(count):
                    asked_at = replicas if number <= count // 3 else replicas[1:]
                    making.append(asyncio.create_task(make(number, asked_at[number % len(asked_at)])))
                    if number in events:
                        await events[number]()
                    if number == count // 3 + 15:
                        stopped_at = time.monotonic()
                    await asyncio.sleep(0.03)
                await asyncio.sleep(stopped_at + STOPPED_S - time.monotonic())
                processes[1].send_signal(signal.SIGCONT)
                await asyncio.gather(*making)
                await replicas[2].all_ended()
                statuses = replicas[2].statuses()
                leaked = await _leaked(replicas[1:], valkey)
                again = replicas[2].statuses()
    left = sum(status not in ENDED for status in statuses.values())
    twice = sum(again[response_id] != status for response_id, status in statuses.items())
    missing = sum(response_id not in statuses for response_id in made.values())
    repeated = sum(asked_for > 1 for asked_for in Counting.asked_for.values())
    ends = Counter(statuses[response_id] for response_id in made.values() if response_id in statuses)
    # What the killed one was working on, and nothing of the one that stood still.
    too_many_failed = ends["failed"] > AT_ONCE
    seen = (
        f"{len(made)} were promised ({refused} times not, and asked again): {missing} unknown, {left} left running, "
        f"{twice} ended twice, {repeated} asked twice "
        f"({', '.join(f'{number} {status}' for status, number in ends.most_common())}); "
        f"{leaked} slots lost; at most {Counting.most} at once at a server for {SLOTS}"
    )
    what = f"{count} background turns, a SIGKILL, a SIGSTOP of {STOPPED_S:.0f} s, both servers restarted"
    return what, seen, not (missing or left or twice or repeated or leaked or too_many_failed)


async def _leaked(replicas: list[Replica], valkey: ValkeyServer) -> int:
    """How many requests count that do not run, after a moment: as each replica sees it, and at the Valkey."""
    counts: list[int] = []
    for _ in range(50):
        counts = []
        for replica in replicas:
            line = Line(replica.port)
            _, body = await line.ask("GET", "/api/endpoints")
            line.close()
            counts += [endpoint["in_flight"] for endpoint in json.loads(body)["endpoints"]]
        counts += [int(total) for total in await asyncio.to_thread(valkey.run, "HVALS", "{nomyo}:total")]
        if not any(counts):
            break
        await asyncio.sleep(0.2)
    return sum(counts)
