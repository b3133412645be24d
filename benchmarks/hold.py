"""Whether the router holds, at a scale that tests have no time for: `make hold`, or `python -m benchmarks.hold`.

    kills     SIGKILL under load, again and again: whether a finished response is lost, or one is left running
    memory    bodies of 1 MB that fail in every way: what is left of them
    slow      normal requests beside connections that send a byte now and then: their p99 to that without these
    replicas  the same of three replicas, of PostgreSQL and of Valkey; and background turns meanwhile
    queue     background turns that wait, over a stop and over SIGKILL: whether all of them run, and in what order

One row of the table each. Ends with 1 where something does not hold. The model server and the clients are in this
process, the router in one of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from benchmarks.gateways import ROOT, free_port
from benchmarks.limits import Memory, http, serving, wait_for_health
from benchmarks.mock_backend import PIECES, STREAM_HEAD
from benchmarks.mock_backend import Connection as Mock
from benchmarks.running import last_words, started
from benchmarks.scenarios import BRIEFLY, HELLO, RESPONSES, SLOWLY

CLIENTS = 8
MB = 1024 * 1024
# What failures may leave, and how much slower others may get beside slow clients.
FLAT_MB, RATIO = 20.0, 2.0
# Background turns that run at once: so far from its place a turn may be asked.
AT_ONCE = 4
ENDED = ("completed", "failed", "cancelled", "incomplete")
Row = tuple[str, str, bool]


class Service:
    """The router with a database file, started as often as one likes on the same."""

    def __init__(self, folder: Path, backend: int, **settings: Any) -> None:
        self.folder = folder
        self.file = folder / "router.db"
        self.port = free_port()
        self.starts: list[float] = []
        endpoint = {"url": f"http://127.0.0.1:{backend}/v1", "kind": "openai-chat", "max_concurrent": 4096}
        database = {"url": f"sqlite:///{self.file}"}
        settings = {"endpoints": [endpoint], "database": database, "max_body_mb": 2, **settings}
        (folder / "config.yaml").write_text(json.dumps(settings))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[subprocess.Popen[bytes]]:
        """The router, from when it answers; its log is in `folder`."""
        began = time.monotonic()
        command = [sys.executable, str(ROOT / "serve.py"), "--port", str(self.port)]
        with started(command, self.folder, output=self.folder / "log") as process:
            try:
                await asyncio.to_thread(wait_for_health, self.port, 1)
            except SystemExit as error:
                raise SystemExit(f"{error}: {last_words((self.folder / 'log').read_text(errors='replace'))}") from None
            self.starts.append(time.monotonic() - began)
            yield process

    def statuses(self) -> dict[str, str]:
        """The status of each response in the file."""
        with sqlite3.connect(self.file) as connection:
            return dict(connection.execute("SELECT id, status FROM responses"))

    async def all_ended(self) -> bool:
        """Waits until nothing runs and nothing waits, a minute at most without an end of anything."""
        left, since = -1, time.monotonic()
        while time.monotonic() - since < 60:
            statuses = await asyncio.to_thread(self.statuses)
            now = sum(status not in ENDED for status in statuses.values())
            if not now:
                return True
            if now != left:
                left, since = now, time.monotonic()
            await asyncio.sleep(0.2)
        return False


async def killed(process: subprocess.Popen[bytes], stop: signal.Signals = signal.SIGKILL) -> None:
    """Ends the router and all that it has started."""
    os.killpg(process.pid, stop) if stop == signal.SIGKILL else process.send_signal(stop)
    await asyncio.to_thread(process.wait)


class Line:
    """A client's connection, opened anew where it was closed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """The status and the body of an answer. Raises `OSError` or `EOFError` where it breaks off."""
        await self.send(http(method, path, body))
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        if length := head.partition(b"content-length:")[2]:
            answer = await self._reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        else:
            answer = await self._reader.readuntil(b"\r\n0\r\n\r\n")
        if b"connection: close" in head:
            self.close()
        return status, answer

    async def send(self, data: bytes) -> None:
        """Sends bytes, and waits for nothing."""
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        self._writer.write(data)
        await self._writer.drain()

    async def begins(self) -> bytes:
        """The first bytes of an answer."""
        assert self._reader is not None
        return await self._reader.read(1000)

    def close(self) -> None:
        """Leaves."""
        if self._reader is not None:
            self._writer.close()
            self._reader = None


def asked(**body: Any) -> dict[str, Any]:
    return {"model": "mock", "input": HELLO} | body


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


@contextmanager
def folder_of_its_own() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="nomyo-hold-") as folder:
        yield Path(folder)


# ── kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Client:
    """Asks for stored responses of all sorts until its router dies. `finished` are the texts of those that it has had
    to their end, `known` the ids that it has seen."""

    def __init__(self, port: int, finished: dict[str, str], known: set[str], dice: random.Random) -> None:
        self._line = Line(port)
        self._finished = finished
        self._known = known
        self._dice = dice

    async def run(self) -> None:
        """Returns when the router is gone."""
        sorts = (self._whole, self._stream, self._background, self._slow)
        with suppress(OSError, EOFError):
            while True:
                await self._dice.choice(sorts)()
        self._line.close()

    async def _whole(self) -> None:
        status, body = await self._line.ask("POST", RESPONSES, asked())
        response = json.loads(body)
        if status == 200 and response["status"] == "completed":
            self._finish(response)

    async def _stream(self, said: str = BRIEFLY) -> None:
        status, body = await self._line.ask("POST", RESPONSES, asked(stream=True, input=said))
        if status == 200 and (last := re.search(rb"event: response.completed\ndata: (.*)\n", body)):
            self._finish(json.loads(last[1])["response"])

    async def _slow(self) -> None:
        """A stream that its client leaves, or that is cut."""
        await self._line.send(http("POST", RESPONSES, asked(stream=True, input=SLOWLY)))
        await self._line.begins()
        self._line.close()

    async def _background(self) -> None:
        status, body = await self._line.ask("POST", RESPONSES, asked(background=True))
        if status == 200:
            self._known.add(json.loads(body)["id"])

    def _finish(self, response: dict[str, Any]) -> None:
        self._known.add(response["id"])
        self._finished[response["id"]] = text_of(response)


async def kills(count: int, workers: int) -> Row:
    """So many SIGKILLs, each at a moment of its own in the work of eight clients."""
    dice, finished, known = random.Random(2026), dict[str, str](), set[str]()
    async with serving(Mock) as backend:
        with folder_of_its_own() as folder:
            service = Service(folder, backend, workers=workers, background={"max_queued": 100_000})
            for _ in range(count):
                async with service.running() as process:
                    clients = [Client(service.port, finished, known, dice) for _ in range(CLIENTS)]
                    asking = [asyncio.create_task(client.run()) for client in clients]
                    await asyncio.sleep(dice.uniform(0.02, 0.5))
                    await killed(process)
                    await asyncio.gather(*asking)
            async with service.running():
                await service.all_ended()
                line, lost = Line(service.port), 0
                for response_id, text in finished.items():
                    status, body = await line.ask("GET", f"{RESPONSES}/{response_id}")
                    lost += status != 200 or text_of(json.loads(body)) != text
                line.close()
            statuses = service.statuses()
    left = sum(status not in ENDED for status in statuses.values())
    missing = len(known - statuses.keys())
    ends = ", ".join(f"{number:,} {status}" for status, number in Counter(statuses.values()).most_common())
    seen = (
        f"{len(finished):,} finished responses: {lost} lost; {missing} of {len(known):,} promised ids unknown; "
        f"{left} left running ({ends}); back after {median(service.starts):.2f} s"
    )
    return f"{count} SIGKILLs under {CLIENTS} clients, {workers} worker(s)", seen, not (lost or left or missing)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Failing(Mock):
    """A model server that fails in the way that a request names."""

    def answer(self, head: bytes, body: bytes) -> None:
        """Answers one request."""
        way = re.search(rb"fail by (\w+)", body[-200:])
        match way and way[1]:
            case b"status":
                self._transport.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}")
            case b"refusal":
                self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}")
            case b"garbage":
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nnothing")
            case b"cut":
                self._transport.write(STREAM_HEAD + b"".join(PIECES[:3]))
                self._transport.close()
            case b"reset":
                self._transport.abort()
            case b"silence":
                pass  # Until the client leaves.
            case _:
                super().answer(head, body)


WAYS: dict[str, dict[str, Any]] = {
    **{
        f"a {way} of the backend": {"last": f"fail by {way}"}
        for way in ("status", "refusal", "garbage", "cut", "reset")
    },
    "a cut stream": {"last": "fail by cut", "stream": True},
    "a client that leaves": {"last": "fail by silence", "stream": True},
    "an unknown model": {"model": "nope"},
    "a wrong parameter": {"temperature": "warm"},
    "an unknown turn before": {"previous_response_id": "resp_none"},
    "no JSON": {"broken": True},
    "a body that is too large": {"too_large": True},
}


def failing(last: str = "", broken: bool = False, too_large: bool = False, **params: Any) -> bytes:
    said = [
        {"role": "user", "content": "x" * (MB * (3 if too_large else 1))},
        {"role": "user", "content": last or "Hi"},
    ]
    request = http("POST", RESPONSES, asked(store=False, **params) | {"input": said})
    return request[:-1] + b"!" if broken else request


async def memory(count: int) -> Row:
    """So many requests of 1 MB, which fail in all the ways in turn."""
    requests = {way: failing(**how) for way, how in WAYS.items()}
    ends = Counter[str]()

    async def some(number: int, port: int) -> None:
        left = (list(requests.items())[at % len(requests)] for at in range(number))

        async def one_after_another() -> None:
            for way, request in left:
                line = Line(port)
                with suppress(OSError, EOFError):
                    await line.send(request)
                    if way == "a client that leaves":
                        await asyncio.sleep(0.05)
                    else:
                        ends[(await line.begins())[9:12].decode()] += 1
                line.close()

        await asyncio.gather(*(one_after_another() for _ in range(CLIENTS)))
        await asyncio.sleep(1)

    async with serving(Failing) as backend:
        with folder_of_its_own() as folder:
            service = Service(folder, backend, breaker={"failures": 1_000_000}, retry={"max": 0})
            async with service.running() as process:
                await some(max(len(WAYS) * CLIENTS * 2, count // 5), service.port)
                before = Memory.of(process.pid).resident
                await some(count, service.port)
                grown = Memory.of(process.pid).resident - before
    statuses = ", ".join(f"{number:,} × {status}" for status, number in sorted(ends.items()))
    seen = f"{before:.0f} MB before, {grown:+.1f} MB behind them ({statuses})"
    return f"{count:,} bodies of 1 MB that fail in {len(WAYS)} ways", seen, grown < FLAT_MB


# ── slow clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def slow(connections: int, requests: int, rounds: int = 5) -> Row:
    """Normal requests, with and without so many connections whose heads and bodies come byte by byte; those that are
    closed come back."""
    closed = 0

    async def creep(port: int, number: int) -> None:
        nonlocal closed
        head = b"POST /v1/responses HTTP/1.1\r\nHost: router\r\nContent-Length: 1000\r\n"
        begin = head if number % 2 else head + b"Content-Type: application/json\r\n\r\n{"
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with suppress(OSError):
                writer.write(begin)
                while not reader.at_eof():
                    writer.write(b"X")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await reader.read(1000)
            closed += 1
            writer.close()

    def load() -> float:
        command = [sys.executable, "-m", "benchmarks.load", str(service.port), RESPONSES]
        command += ["--clients", str(CLIENTS), "--requests", str(requests)]
        sent = json.dumps(asked(store=False))
        done = subprocess.run(command, cwd=ROOT, input=sent, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["total_p99"])

    ratios = []
    async with serving(Mock) as backend:
        with folder_of_its_own() as folder:
            service = Service(folder, backend)
            async with service.running():
                await asyncio.to_thread(load)
                for number in range(rounds):
                    without = await asyncio.to_thread(load)
                    creeping = [asyncio.create_task(creep(service.port, at)) for at in range(connections)]
                    await asyncio.sleep(1)
                    ratios.append((await asyncio.to_thread(load) / without, without))
                    if number == rounds - 1:
                        await asyncio.sleep(12)  # Past `head_timeout_s`.
                    for task in creeping:
                        task.cancel()
                    await asyncio.gather(*creeping, return_exceptions=True)
    ratio = median(ratio for ratio, _ in ratios)
    seen = (
        f"p99 of {median(p99 for _, p99 in ratios):.1f} ms × {ratio:.2f} (median of {rounds}); {closed:,} were closed"
    )
    return f"{requests:,} requests beside {connections:,} slow connections", seen, ratio <= RATIO and closed > 0


# ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Gated(Mock):
    """A model server that answers nothing before its gate is open, and notes which turns it was asked for."""

    is_open = False
    names: list[int]

    def answer(self, head: bytes, body: bytes) -> None:
        """Answers one request."""
        if (named := re.search(rb"turn (\d+)", body)) is not None:
            if not Gated.is_open:
                return
            Gated.names.append(int(named[1]))
        super().answer(head, body)


async def queue(count: int, stop: signal.Signals) -> Row:
    """So many background turns, of which the first ones have begun; a stop; and a start."""
    Gated.is_open, Gated.names = False, []
    async with serving(Gated) as backend:
        with folder_of_its_own() as folder:
            background = {"max_concurrent": AT_ONCE, "max_queued": count, "drain_s": 1}
            service = Service(folder, backend, background=background)
            async with service.running() as process:
                line, ids = Line(service.port), []
                for number in range(count + AT_ONCE):
                    body = asked(background=True, input=f"turn {number}")
                    status, answer = await line.ask("POST", RESPONSES, body)
                    assert status == 200, answer
                    ids.append(json.loads(answer)["id"])
                line.close()
                began = time.monotonic()
                await killed(process, stop)
                stopped_s = time.monotonic() - began
            Gated.is_open = True
            async with service.running():
                began = time.monotonic()
                await service.all_ended()
                ran_s = time.monotonic() - began
            statuses = service.statuses()
    ended = Counter(statuses.get(response_id, "lost") for response_id in ids)
    waited = Counter(statuses.get(response_id, "lost") for response_id in ids[AT_ONCE:])
    places = [abs(place - name + AT_ONCE) for place, name in enumerate(Gated.names)]
    seen = (
        f"{waited['completed']:,} of those that waited have run in {ran_s:.1f} s, each at most "
        f"{max(places, default=0)} places from its own; {ended['failed']} that had begun failed; "
        f"the stop took {stopped_s:.1f} s, the start {service.starts[-1]:.1f} s"
    )
    # On a busy machine one that waits for its connection may be overtaken by many: what counts is the order of all.
    in_order = sum(places) < AT_ONCE * len(places)
    holds = waited["completed"] == count and ended["failed"] == AT_ONCE and in_order
    return f"{count:,} queued turns over {stop.name}", seen, holds


def of_replicas(kills: int, turns: int) -> list[Callable[[], Awaitable[Row]]]:
    """What is done to a service of several replicas."""
    from benchmarks import hold_replicas  # Which starts servers that the others do without.

    return [lambda: hold_replicas.replica_kills(kills), lambda: hold_replicas.replica_turns(turns)]


async def main() -> None:
    """Runs what is asked for, a row each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", choices=("kills", "replicas", "memory", "slow", "queue"))
    parser.add_argument("--kills", type=int, default=340)
    parser.add_argument("--replica-kills", type=int, default=200)
    parser.add_argument("--replica-turns", type=int, default=300)
    parser.add_argument("--workers", type=int, default=1, help="of the router that is killed")
    parser.add_argument("--failures", type=int, default=5000)
    parser.add_argument("--slow", type=int, default=500, help="connections")
    parser.add_argument("--requests", type=int, default=4000, help="beside the slow connections")
    parser.add_argument("--queued", type=int, default=5000)
    given = parser.parse_args()
    runs: dict[str, list[Callable[[], Awaitable[Row]]]] = {
        "kills": [lambda: kills(given.kills, given.workers)],
        "replicas": of_replicas(given.replica_kills, given.replica_turns),
        "memory": [lambda: memory(given.failures)],
        "slow": [lambda: slow(given.slow, given.requests)],
        "queue": [lambda: queue(given.queued, signal.SIGTERM), lambda: queue(given.queued, signal.SIGKILL)],
    }
    print("| | seen | holds |\n|---|---|---|", flush=True)
    all_hold = True
    for name in given.only or runs:
        for run in runs[name]:
            what, seen, holds = await run()
            print(f"| {what} | {seen} | {'yes' if holds else 'NO'} |", flush=True)
            all_hold = all_hold and holds
    sys.exit(not all_hold)


if __name__ == "__main__":
    uvloop.run(main())
