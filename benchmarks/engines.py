"""What PostgreSQL and Valkey cost and give, beside a router that has neither: `python -m benchmarks.engines
[--only stored shared scripts]`.

    stored     turns a second with 1, 2 and 4 workers, stored in SQLite and in PostgreSQL, and what each costs
    shared     CPU and time of a plain turn with a Valkey, and with a key's limits there, beside one without
    scripts    what one Valkey does in a second: slots that 50 processes take and give back

The servers are those of the tests, out of wheels. Ratios are of one run, in which the rows take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

import uvloop

from benchmarks.gateways import ROOT, direct, free_port
from benchmarks.limits import CORES, asked, router
from benchmarks.running import Running, cpu_clock, started
from benchmarks.scenarios import RESPONSES
from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from core.valkey import Valkey
from core.valkey_address import Address
from tests.engines.postgres import PostgresServer
from tests.engines.valkey import ValkeyServer

WORKERS = (1, 2, 4)
CLIENTS = 32
KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"
PROCESSES, TURNS = 50, 400


def load(running: Running, body: Mapping[str, Any], clients: int, requests: int) -> dict[str, float]:
    """What `benchmarks.load` prints, and the router's CPU ms a request (`cpu`)."""
    command = [sys.executable, "-m", "benchmarks.load", str(running.port), RESPONSES]
    command += ["--clients", str(clients), "--requests", str(requests), "--key", KEY]
    before = running.cpu_ms()
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(body), capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures | {"cpu": (running.cpu_ms() - before) / figures["requests"]}


async def stored(rounds: int) -> None:
    """A whole table: each cell the median of the rounds."""
    print("\nTurns a second, 32 clients; in brackets CPU ms of the router a turn.\n")
    print("| workers | not stored | SQLite | PostgreSQL |\n|---|---|---|---|", flush=True)
    backend = free_port()
    with (
        PostgresServer.started(fsync="on", full_page_writes="on", synchronous_commit="off") as server,
        started(direct(backend, backend, ROOT), ROOT),
    ):
        for number in WORKERS:
            async with (
                router(backend, 1, number, CORES) as in_sqlite,
                router(backend, 1, number, CORES, {"database": {"url": server.url()}}) as in_postgres,
            ):
                rows = {
                    "not stored": (in_sqlite, asked()),
                    "SQLite": (in_sqlite, asked(store=True)),
                    "PostgreSQL": (in_postgres, asked(store=True)),
                }
                cells = await asyncio.to_thread(in_turns, rows, rounds, CLIENTS, 4000)
            figures = " | ".join(f"{cell['per_s']:.0f} ({cell['cpu']:.3f})" for cell in cells.values())
            print(f"| {number} | {figures} |", flush=True)


def in_turns(
    rows: Mapping[str, tuple[Running, Mapping[str, Any]]], rounds: int, clients: int, requests: int
) -> dict[str, dict[str, float]]:
    """The medians of each row's figures, behind one round that warms up."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, (running, body) in rows.items():
            seen[name].append(load(running, body, clients, requests))
    return {name: {key: median(one[key] for one in runs[1:]) for key in runs[0]} for name, runs in seen.items()}


async def shared(rounds: int) -> None:
    """A whole table, for one client and for many."""
    backend = free_port()
    limits = {"rpm": 10**7, "tpm": 10**10, "concurrent": 1000}
    keys = {"keys": [{"name": "benchmark", "key": KEY, **limits}]}
    with ValkeyServer.started() as server, started(direct(backend, backend, ROOT), ROOT):
        cluster = {"cluster": {"url": server.url}}
        kinds: dict[str, Mapping[str, Any]] = {
            "alone": {},
            "Valkey": cluster,
            "alone, a key with limits": keys,
            "Valkey, a key with limits": cluster | keys,
        }
        for clients, requests in ((1, 2000), (16, 5000)):
            print(f"\n{clients} at once.\n\n| | CPU ms a request | p50 ms | p99 ms |\n|---|---|---|---|", flush=True)
            async with AsyncExitStack() as stack:
                rows = {
                    name: (await stack.enter_async_context(router(backend, 1, 1, CORES, others)), asked())
                    for name, others in kinds.items()
                }
                cells = await asyncio.to_thread(in_turns, rows, rounds, clients, requests)
            for name, cell in cells.items():
                print(f"| {name} | {cell['cpu']:.3f} | {cell['total_p50']:.3f} | {cell['total_p99']:.3f} |", flush=True)


async def scripts_a_second() -> None:
    """A line. Counted is the CPU of the server alone: who asks costs more than what answers."""
    with ValkeyServer.started() as server:
        clients = [
            Valkey(Address.of(server.url, "benchmark"), "benchmark", scripts=counting.ALL) for _ in range(PROCESSES)
        ]
        for number, client in enumerate(clients):
            await client.open()
            joined = ("benchmark", f"p{number}", 600_000, -1, "", 0, "epoch", "secret", 0, 0, 1, 0)
            await client.run(scripts.JOIN, *joined)

        async def turns(number: int, client: Valkey) -> None:
            for at in range(TURNS):
                endpoint, model = f"endpoint-{at % 20}", f"model-{at % 20}"
                await client.run(counting.TAKE, "benchmark", f"p{number}", endpoint, 1000, model, 0)
                await client.run(counting.END, "benchmark", f"p{number}", 2, endpoint, 1, model, 1)

        before = time.clock_gettime_ns(cpu_clock(server.pid))
        await asyncio.gather(*(turns(number, client) for number, client in enumerate(clients)))
        us = (time.clock_gettime_ns(cpu_clock(server.pid)) - before) / 1000 / (2 * PROCESSES * TURNS)
        for client in clients:
            await client.close()
    print(f"\nValkey: {us:.1f} µs CPU a script, so {1e6 / us:,.0f} a second on one core.", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=("stored", "shared", "scripts"))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    runs: dict[str, Callable[[], Awaitable[None]]] = {
        "stored": lambda: stored(given.rounds),
        "shared": lambda: shared(given.rounds),
        "scripts": scripts_a_second,
    }
    for name in given.only or runs:
        await runs[name]()


if __name__ == "__main__":
    uvloop.run(main())
