"""The row `replicas` of `make hold`: three replicas over PostgreSQL and Valkey, and one of all these processes killed
after the other, under load. Nothing that a client saw finished may be missing, and everything ends once.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.hold import CLIENTS, ENDED, Client, Line, Row, Service, folder_of_its_own, killed, text_of
from benchmarks.limits import serving
from benchmarks.mock_backend import Connection as Mock
from benchmarks.scenarios import RESPONSES
from tests.engines.postgres import PostgresServer, free_port
from tests.engines.valkey import ValkeyServer

REPLICAS = 3
# Of ten kills, those of the servers.
OF_SERVERS = 2


class Replica(Service):
    """One router of several, whose responses lie in PostgreSQL."""

    def __init__(self, folder: Path, backend: int, postgres: PostgresServer, database: str, valkey: str) -> None:
        folder.mkdir()
        advertised = f"127.0.0.1:{free_port()}"
        super().__init__(
            folder,
            backend,
            database={"url": database},
            cluster={"url": valkey, "advertise": advertised},
            background={"max_queued": 100_000},
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
