"""What it costs to keep responses, by how many are kept already, and a turn by the length of its history.

    python -m benchmarks.state [--rows 1000000] [--ids random] [--postgres]

    the store        a turn stored (32 at once), read and deleted, and conversations, in databases of several sizes
    a whole turn     through the router, before a mock backend: with its history in memory, and out of the database

Databases are filled in a temporary folder (TMPDIR), with about 5 KB a row: files of SQLite, or with `--postgres` those
of a server out of the wheel of the tests. CPU is this process's, of all threads, and none of a server's. `--ids random`
gives the rows the ids of earlier versions, which did not sort by time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import uvloop

from benchmarks.gateways import free_port
from benchmarks.running import started
from db import TABLES, CopiedRow, Store, make_store
from requests.items import input_items
from requests.responses import new_id, response_resource, whole_item

AT_ONCE = 32
# Chains to read, and how many of each: (turns, copies).
CHAINS = ((1, 20), (10, 20), (100, 3), (1000, 1))
# Items of the histories before a whole turn, and how many turns are measured.
HISTORIES = (0, 10, 100, 1000)
REQUESTS = 100
# The conversations of the filling: so many at a time, of so many turns each.
ABREAST, TURNS = 100, 10
DAYS = 30
ASKED = "The build fails on the second machine only, and the log says nothing that I can make sense of. " * 3
ANSWERED = "That is what happens when the lock file is older than the manifest: the resolver starts anew. " * 6


def random_id(prefix: str, at: int) -> str:
    return f"{prefix}_{token_hex(16)}"


def timed_id(prefix: str, at: int) -> str:
    """As `new_id` makes them, at a time of ours."""
    return f"{prefix}_{at:08x}{new_id('')[-24:]}"


# ── a file with many rows ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Kept:
    """What is in a file: the ids of many responses, and the last id of every chain, by its length."""

    ids: list[str]
    ends: dict[int, list[str]]


class Templates:
    """The JSON of a turn, with places for its ids: as large as a small question and its answer."""

    def __init__(self) -> None:
        asked, response = a_turn("RESPONSE", None)
        asked[0]["id"], response["output"][0]["id"] = "ASKED", "ANSWERED"
        self._input, self._output = orjson.dumps(asked), orjson.dumps(response["output"])
        self._rest = orjson.dumps({**response, "output": None})

    def row(self, number: int, id: str, previous: str | None, at: int, asked: str, answered: str) -> CopiedRow:
        """A row as stores take them from each other."""
        given = self._input.replace(b"ASKED", asked.encode())
        output = self._output.replace(b"ANSWERED", answered.encode())
        rest = self._rest.replace(b"RESPONSE", id.encode())
        return number, "", id, previous, None, "mock", "completed", at, given, output, rest, None


def a_turn(id: str, previous: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The input and the response of a turn."""
    request = {"model": "mock", "input": ASKED, "previous_response_id": previous, "instructions": "Be of help. " * 10}
    response = response_resource(request, response_id=id, created_at=int(time.time()), status="completed")
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWERED}]}
    return input_items(ASKED), {**response, "output": [whole_item(said)]}


async def fill(url: str, rows: int, make_id: Callable[[str, int], str]) -> Kept:
    """Puts `rows` responses into an empty database, made in the last month, and the chains, each spread over all of
    it."""
    templates = Templates()
    kept = Kept([], {length: [] for length, _ in CHAINS})
    now = int(time.time())
    numbers = count(1)

    def made() -> Iterator[tuple[CopiedRow, list[CopiedRow]]]:
        for id, previous, position in _planned(rows, kept, lambda position: make_id("resp", _at(position, rows, now))):
            at, number = _at(position, rows, now), next(numbers)
            asked, answered = make_id("msg", at), make_id("msg", at)
            yield (
                templates.row(number, id, previous, at, asked, answered),
                [("", asked, number), ("", answered, number)],
            )

    responses, items = (table for table in TABLES if table.name in ("responses", "response_items"))
    store = make_store(url)
    await store.open()
    for some in _chunks(made(), 1000):
        await store.write_rows(responses, [row for row, _ in some])
        await store.write_rows(items, [item for _, of_row in some for item in of_row])
    await store.close()
    return kept


def _at(position: int, rows: int, now: int) -> int:
    return now - DAYS * 86400 + position * DAYS * 86400 // rows


def _planned(rows: int, kept: Kept, make_id: Callable[[int], str]) -> Iterator[tuple[str, str | None, int]]:
    """(id, id of the turn before, position in time) of every row, oldest first."""
    latest: dict[tuple[int, int], str] = {}
    chained = sorted(
        (turn * rows // length, length, copy)
        for length, copies in CHAINS
        for copy in range(copies)
        for turn in range(length)
    )
    chained.reverse()
    for position in range(rows):
        while chained and chained[-1][0] <= position:
            _, length, copy = chained.pop()
            id, previous = make_id(position), latest.get((length, copy))
            latest[length, copy] = id
            yield id, previous, position
        begins = position // ABREAST % TURNS == 0
        kept.ids.append(make_id(position))
        yield kept.ids[-1], None if begins else kept.ids[-1 - ABREAST], position
    for (length, _), id in latest.items():
        kept.ends[length].append(id)


def _chunks(given: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for one in given:
        chunk.append(one)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Cost:
    """Of one operation: CPU and wall time in µs, and what it wrote to files in KB."""

    cpu_us: float
    wall_us: float
    written_kb: float


async def cost_of(operations: Iterable[Callable[[], Awaitable[Any]]], *, at_once: int = 1) -> Cost:
    """The mean cost of operations, `at_once` of them at a time."""
    waiting = iter(operations)
    done = 0

    async def work() -> None:
        nonlocal done
        for operation in waiting:
            await operation()
            done += 1

    written, cpu, wall = _written(), time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    cpu, wall, written = time.process_time() - cpu, time.perf_counter() - wall, _written() - written
    return Cost(cpu / done * 1e6, wall / done * 1e6, written / done / 1024)


def _written() -> int:
    """Bytes that this process has written so far."""
    lines = Path("/proc/self/io").read_text().split("\n")
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


async def store_turn(store: Store, asked: list[dict[str, Any]], response: dict[str, Any]) -> None:
    await store.store_response(
        response["id"],
        previous_response_id=response["previous_response_id"],
        model="mock",
        status="completed",
        created_at=response["created_at"],
        input_messages=asked,
        response=response,
    )


async def read_history(store: Store, id: str) -> None:
    """The history out of the database: nothing that is in memory is good behind a deletion."""
    store.deletions.add(1)
    await store.get_history(id)


async def measure_store(url: str, kept: Kept, make_id: Callable[[str, int], str]) -> dict[str, Cost]:
    """Every operation on a database that `fill` has filled."""
    chance = random.Random(1)
    store = make_store(url)
    await store.open()
    costs: dict[str, Cost] = {}

    def storing(turns: int) -> list[Callable[[], Awaitable[Any]]]:
        made = [a_turn(make_id("resp", int(time.time())), None) for _ in range(turns)]
        return [partial(store_turn, store, asked, response) for asked, response in made]

    await cost_of(storing(500), at_once=AT_ONCE)  # warms up
    costs["store a turn, 32 at once"] = await cost_of(storing(6000), at_once=AT_ONCE)
    costs["store a turn, alone"] = await cost_of(storing(500))
    some = chance.choices(kept.ids, k=1000)
    costs["get_response"] = await cost_of(partial(store.get_response, id) for id in some)
    for length, ends in kept.ends.items():
        # As many rows of each length.
        again = ends * max(1, 2000 // length // len(ends))
        costs[f"history of {length} turns, read"] = await cost_of(partial(read_history, store, id) for id in again)
        await cost_of(partial(store.get_history, id) for id in ends)
        costs[f"history of {length} turns, warm"] = await cost_of(partial(store.get_history, id) for id in ends * 100)
        pages = [partial(store.list_input_items, id) for id in again]
        costs[f"items of {length} turns, a page"] = await cost_of(pages)
    leaves = chance.sample(kept.ids, k=300)
    costs["delete"] = await cost_of(partial(store.delete_response, id) for id in leaves)
    await store.close()
    return costs


# ── whole turns ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def measure_turns(backend: int, folder: Path, url: str) -> dict[int, dict[str, Cost]]:
    """A turn, from its request to its answer, by the items before it: `warm` and `read` ones are not stored."""
    settings = {
        "endpoints": [{"url": f"http://127.0.0.1:{backend}/v1", "kind": "openai-chat", "max_concurrent": 64}],
        "database": {"url": url},
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    os.environ["ROUTER_CONFIG"] = str(folder / "config.yaml")
    # It reads its settings when it is imported.
    from router import app

    costs: dict[int, dict[str, Cost]] = {}
    async with app.router.lifespan_context(app):
        store: Store = app.state.db
        for items in HISTORIES:
            last = await _conversation(store, items)
            ask = partial(
                _ask, app, {"model": "mock", "input": "Say hello.", "store": False, "previous_response_id": last}
            )

            async def ask_cold(ask: Callable[[], Awaitable[None]] = ask) -> None:
                store.deletions.add(1)
                await ask()

            await cost_of([ask] * 10)
            stored = partial(_ask, app, {"model": "mock", "input": "Say hello.", "previous_response_id": last})
            costs[items] = {
                "warm": await cost_of([ask] * REQUESTS),
                "read": await cost_of([ask_cold] * REQUESTS),
            }
            if not items:
                costs[items] |= {
                    "stored": await cost_of([stored] * REQUESTS),
                    "16 at once": await cost_of([ask] * 10 * REQUESTS, at_once=16),
                    "16 at once, stored": await cost_of([stored] * 10 * REQUESTS, at_once=16),
                }
    return costs


async def _conversation(store: Store, items: int) -> str | None:
    """The last id of a stored conversation of so many items, two a turn."""
    last = None
    for _ in range(items // 2):
        asked, response = a_turn(new_id("resp"), last)
        await store_turn(store, asked, response)
        last = response["id"]
    return last


async def _ask(app: Any, request: dict[str, Any]) -> None:
    """POST /v1/responses, without a server in between."""
    body = [{"type": "http.request", "body": orjson.dumps(request), "more_body": False}]
    answered: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not body:
            await asyncio.get_running_loop().create_future()
        return body.pop()

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/responses", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    if answered[0]["status"] != 200:
        raise SystemExit(f"the router answered {answered}")


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def show_store(costs: dict[int, dict[str, Cost]]) -> None:
    smallest = next(iter(costs.values()))
    print("\nCPU µs an operation (ratio to the smallest file), wall µs, KB written.\n")
    print(f"| | {' | '.join(f'{rows:,} rows' for rows in costs)} |")
    print(f"|---{'|---' * len(costs)}|")
    for operation, base in smallest.items():
        found = [by_operation[operation] for by_operation in costs.values()]
        cells = [f"{c.cpu_us:.0f} ({c.cpu_us / base.cpu_us:.2f}), {c.wall_us:.0f}, {c.written_kb:.0f}" for c in found]
        print(f"| {operation} | {' | '.join(cells)} |")


def show_turns(costs: dict[int, dict[str, Cost]]) -> None:
    print("\nCPU µs a turn, wall µs; in brackets the CPU of an item of its history.\n")
    print(f"| | {' | '.join(f'{items} items' for items in costs)} |")
    print(f"|---{'|---' * len(costs)}|")
    bare = costs[0]["warm"].cpu_us
    for how in costs[0]:
        cells = [
            f"{c[how].cpu_us:.0f}, {c[how].wall_us:.0f}" + (f" ({(c[how].cpu_us - bare) / items:.1f})" if items else "")
            for items, c in costs.items()
            if how in c
        ]
        print(f"| {how} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the largest file")
    parser.add_argument("--ids", choices=("timed", "random"), default="timed")
    parser.add_argument("--postgres", action="store_true", help="in PostgreSQL")
    given = parser.parse_args()
    make_id = timed_id if given.ids == "timed" else random_id
    new_database = in_postgres if given.postgres else in_sqlite
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nomyo-state-")))
        backend = free_port()
        stack.enter_context(started([sys.executable, "-m", "benchmarks.mock_backend", str(backend)], folder))
        url = stack.enter_context(new_database()).url
        show_turns(uvloop.run(measure_turns(backend, folder, url)))
    costs: dict[int, dict[str, Cost]] = {}
    for rows in sorted({rows for rows in (1000, 100_000, given.rows) if rows <= given.rows}):
        with new_database() as database:
            began = time.perf_counter()
            kept = uvloop.run(fill(database.url, rows, make_id))
            database.settle()
            print(f"{rows:,} rows: filled in {time.perf_counter() - began:.1f} s", file=sys.stderr)
            costs[rows] = uvloop.run(measure_store(database.url, kept, make_id))
    show_store(costs)


@dataclass(frozen=True)
class Database:
    """An empty one, and what is done when it was filled."""

    url: str
    settle: Callable[[], object]


@contextmanager
def in_sqlite() -> Iterator[Database]:
    """A file."""
    with tempfile.TemporaryDirectory(prefix="nomyo-state-") as folder:
        yield Database(f"sqlite:///{folder}/router.db", lambda: None)


@contextmanager
def in_postgres() -> Iterator[Database]:
    """A server as it comes, but that it does not wait for the disk either (SQLite's `synchronous = NORMAL`)."""
    from tests.engines.postgres import PostgresServer

    with PostgresServer.started(fsync="on", full_page_writes="on", synchronous_commit="off") as server:
        yield Database(server.url(), lambda: server.run("VACUUM ANALYZE"))


if __name__ == "__main__":
    main()
