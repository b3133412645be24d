"""How far one router goes, on one core: `python -m benchmarks.limits [--only streams memory start workers]`.

    streams    many slow streams at once: how long a token is on its way, with the router between and without
    memory     resident memory over 100,000 requests of all sorts
    start      from the command to the first answer of /health, and what is imported on the way
    workers    requests a second with one worker and with more, on all cores

The router has the first core to itself, its workers have all. The model server and the clients are in this process, on
the last; those of `workers` in processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import linear_regression, median, quantiles
from typing import Any

import uvloop

from benchmarks.gateways import OURS, ROOT, direct, free_port, ours
from benchmarks.mock_backend import Connection as Mock
from benchmarks.running import Running, started
from benchmarks.scenarios import CHAT, HELLO, RESPONSES, SLOWLY
from benchmarks.trickle import Model, Pace, open_streams

CORES = sorted(os.sched_getaffinity(0))
TICKS_PER_MS = os.sysconf("SC_CLK_TCK") / 1000
RATES = (10.0, 20.0, 30.0, 35.0)
RUN_S = 10.0
AT_ONCE = 16
CHAIN = 10
STARTS = 7
HISTORY = 200
ALL_CORES = ",".join(map(str, CORES))


# ── the router ───────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def router(
    backend: int,
    up: int = 1,
    workers: int = 1,
    cores: list[int] = CORES[:1],
    others: Mapping[str, Any] | None = None,
) -> AsyncIterator[Running]:
    """The router on these cores, from when it answers and knows so many backends. `others` are more settings."""
    with tempfile.TemporaryDirectory(prefix="nomyo-limits-") as folder:
        port = free_port()
        pinned = ["taskset", "-c", ",".join(map(str, cores))]
        command = [*pinned, *ours(port, backend, Path(folder), workers=workers, others=others)]
        with started(command, Path(folder)) as process:
            await asyncio.to_thread(wait_for_health, port, up)
            yield Running(OURS[0], port, process)


def wait_for_health(port: int, up: int) -> None:
    """Returns when /health answers and so many backends are up."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if json.loads(connection.getresponse().read())["endpoints"]["up"] >= up:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise SystemExit("the router does not answer")


@asynccontextmanager
async def serving(protocol: Callable[[], asyncio.Protocol]) -> AsyncIterator[int]:
    """A model server in this event loop; gives its port."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=4096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def http(method: str, path: str, body: Any = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    return head.encode() + b"\r\n" + data


# ── streams ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Window:
    """The time while all streams were open: how long the tokens were on their way, in ns; and the CPU in ms of the
    router, and of all else that ran on its core."""

    delays: list[int]
    router: float
    others: float


async def streams(at_once: int, rates: list[float]) -> None:
    paces: list[Pace] = []
    translated = http("POST", RESPONSES, {"model": "mock", "stream": True, "store": False, "input": HELLO})
    passed = http("POST", CHAT, {"model": "mock", "stream": True, "messages": [{"role": "user", "content": HELLO}]})
    print(
        f"\nA token's way from the model server to the client in ms, while {at_once} streams are open; the core's "
        f"CPU.\n"
    )
    print("| tokens/s a stream | tokens/s | router | others | µs a token | p50 | p99 | max | direct: p50 | p99 | max |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    gc.disable()  # Pauses of ours are none of the router's.
    async with serving(lambda: Model(paces)) as backend, router(backend) as running:
        for rate in rates:
            paces.append(Pace(at_once, rate, RUN_S))
            direct = await measured(paces[-1], backend, passed, running)
            ours = await measured(paces[-1], running.port, translated, running)
            tokens = len(ours.delays)
            print(
                f"| {rate:g} | {tokens / RUN_S:.0f} "
                f"| {ours.router / RUN_S / 10:.0f}% | {ours.others / RUN_S / 10:.0f}% "
                f"| {ours.router * 1000 / tokens:.1f} | {in_ms(ours.delays)} | {in_ms(direct.delays)} |",
                flush=True,
            )
    gc.enable()


async def measured(pace: Pace, port: int, request: bytes, running: Running) -> Window:
    trickle = await open_streams(pace, port, request)
    router, core, began = running.cpu_ms(), core_ms(CORES[0]), time.monotonic_ns()
    if not trickle.failure:
        await asyncio.sleep(pace.seconds)
    ended, core, router = time.monotonic_ns(), core_ms(CORES[0]) - core, running.cpu_ms() - router
    await trickle.ended.wait()
    if trickle.failure:
        raise SystemExit(trickle.failure)
    delays = [delay for at, delay in trickle.delays if began <= at < ended]
    return Window(delays, router, max(0.0, core - router))


def core_ms(core: int) -> float:
    """How long a core has been busy."""
    line = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith(f"cpu{core} "))
    user, nice, system, _, _, *rest = map(int, line.split()[1:9])
    return (user + nice + system + sum(rest)) / TICKS_PER_MS


def in_ms(delays: list[int]) -> str:
    percentiles = quantiles(delays, n=100)
    return f"{percentiles[49] / 1e6:.2f} | {percentiles[98] / 1e6:.2f} | {max(delays) / 1e6:.1f}"


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Memory:
    """Of a process, in MB: all that is resident, and what of it is no file's."""

    resident: float
    anonymous: float

    @classmethod
    def of(cls, pid: int) -> Memory:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return cls(*(int(status[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "RssAnon")))


class Client:
    """Sends one request after the other, of all sorts in turn, and checks what comes."""

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._sent = number
        self._previous: str | None = None
        self._turns = 0
        self._reader: asyncio.StreamReader | None = None

    async def send(self) -> str:
        """One request; gives its sort."""
        sorts = (self.plain, self.burst, self.stored, self.chained, self.passed, self.missing, self.invalid, self.left)
        sort = sorts[self._sent % len(sorts)]
        self._sent += 1
        await sort()
        return sort.__name__

    async def plain(self) -> None:
        await self._answer("POST", RESPONSES, 200, asked())

    async def burst(self) -> None:
        await self._answer("POST", RESPONSES, 200, asked(stream=True))

    async def passed(self) -> None:
        body = {"model": "mock", "stream": True, "messages": [{"role": "user", "content": HELLO}]}
        await self._answer("POST", CHAT, 200, body)

    async def stored(self) -> None:
        response = json.loads(await self._answer("POST", RESPONSES, 200, asked(store=True)))
        if self._turns % CHAIN == 0:
            self._previous = response["id"]
            self._turns = 1

    async def chained(self) -> None:
        body = asked(store=True, previous_response_id=self._previous)
        self._previous = json.loads(await self._answer("POST", RESPONSES, 200, body))["id"]
        self._turns += 1

    async def missing(self) -> None:
        await self._answer("GET", f"{RESPONSES}/resp_none", 404)

    async def invalid(self) -> None:
        await self._answer("POST", RESPONSES, 400, asked(temperature="warm"))

    async def left(self) -> None:
        """Closes the connection behind the first events."""
        await self._answer("POST", RESPONSES, 200, asked(stream=True, input=SLOWLY), whole=False)
        self._writer.close()
        self._reader = None

    async def _answer(self, method: str, path: str, status: int, body: Any = None, whole: bool = True) -> bytes:
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        self._writer.write(http(method, path, body))
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 %d" % status):
            raise SystemExit(f"{method} {path} {body} was answered {head!r} {await self._reader.read(500)!r}")
        if not whole:
            return await self._reader.read(100)
        if length := head.partition(b"content-length:")[2]:
            return await self._reader.readexactly(int(length.split(b"\r\n", 1)[0]))
        return await self._reader.readuntil(b"\r\n0\r\n\r\n")

    def close(self) -> None:
        if self._reader is not None:
            self._writer.close()


def asked(**body: Any) -> dict[str, Any]:
    return {"model": "mock", "input": HELLO, "store": False} | body


async def memory(requests: int) -> None:
    step = requests // 10
    async with serving(Mock) as backend, router(backend) as running:
        clients = [Client(running.port, number) for number in range(AT_ONCE)]
        series = [(0, Memory.of(running.process.pid))]
        sorts: Counter[str] = Counter()
        for at in range(step, requests + 1, step):
            turns = iter(range(step))
            await asyncio.gather(*(send_all(client, turns, sorts) for client in clients))
            await asyncio.sleep(0.5)
            series.append((at, Memory.of(running.process.pid)))
        for client in clients:
            client.close()
    print(f"\nMemory in MB over {requests} requests, {AT_ONCE} at once: {', '.join(sorted(sorts))}.\n")
    print("| requests | resident | of no file |\n|---|---|---|")
    for at, now in series:
        print(f"| {at} | {now.resident:.1f} | {now.anonymous:.1f} |")
    late = [(at, now.resident) for at, now in series if at >= requests / 2]
    growth = linear_regression(*zip(*late, strict=True)).slope * 1e6
    print(f"\nGrowth over the second half: {growth:.1f} KB per 1,000 requests.", flush=True)


async def send_all(client: Client, turns: Iterator[int], sorts: Counter[str]) -> None:
    for _ in turns:
        sorts[await client.send()] += 1


# ── start ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def start() -> None:
    by_package, seconds = await asyncio.to_thread(imported)
    times, resident = [], []
    for _ in range(STARTS):
        began = time.perf_counter()
        async with serving(Mock) as backend, router(backend, up=0) as running:
            times.append(time.perf_counter() - began)
            resident.append(Memory.of(running.process.pid).resident)
    print(f"\nFrom the command to /health: {median(times):.2f} s, the best {min(times):.2f}, of {STARTS}.")
    print(f"Resident then: {median(resident):.1f} MB. `import router`: {seconds:.2f} s, of that in ms:\n")
    print("| package | itself |\n|---|---|")
    for package, us in by_package.most_common(15):
        print(f"| {package} | {us / 1000:.0f} |", flush=True)


def imported() -> tuple[Counter[str], float]:
    """What `import router` takes: the µs of each package's own modules, and the seconds of all, each of them
    measured."""
    with tempfile.TemporaryDirectory(prefix="nomyo-limits-") as folder:
        ours(9, 9, Path(folder))  # for its settings
        environment = {**os.environ, "ROUTER_CONFIG": f"{folder}/config.yaml"}
        command = [sys.executable, "-X", "importtime", "-c", "import router"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    by_package: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        us, _, module = line.removeprefix("import time:").split("|")
        if us.strip().isdigit():
            by_package[module.strip().partition(".")[0]] += int(us)
    return by_package, by_package.total() / 1e6


# ── workers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def workers(most: int) -> None:
    """With a history the router computes much for each request, and the clients and the backend little."""
    long = [{"role": "user" if n % 2 else "assistant", "content": f"This is message {n}."} for n in range(HISTORY - 1)]
    bodies = {"plain": HELLO, f"a history of {HISTORY} messages": [*long, {"role": "user", "content": HELLO}]}
    print("\nRequests a second, 32 clients, median of three; in brackets how many cores the router kept busy.\n")
    print(f"| workers | {' | '.join(bodies)} |\n|---{'|---' * len(bodies)}|", flush=True)
    backend = free_port()
    with started(["taskset", "-c", ALL_CORES, *direct(backend, backend, ROOT)], ROOT):
        for number in range(1, most + 1):
            async with router(backend, 1, number, CORES) as running:
                cells = [await asyncio.to_thread(throughput, running, asked(input=body)) for body in bodies.values()]
            print(f"| {number} | {' | '.join(cells)} |", flush=True)


def throughput(running: Running, body: dict[str, Any]) -> str:
    command = ["taskset", "-c", ALL_CORES, sys.executable, "-m", "benchmarks.load", str(running.port), RESPONSES]
    command += ["--clients", "32", "--requests", "5000"]
    runs = []
    for _ in range(4):
        cpu, began = running.cpu_ms(), time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, input=json.dumps(body), capture_output=True, text=True, check=True)
        busy = (running.cpu_ms() - cpu) / 1000 / (time.perf_counter() - began)
        runs.append((json.loads(done.stdout)["per_s"], busy))
    per_s, busy = sorted(runs[1:])[1]
    return f"{per_s:.0f} ({busy:.1f})"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=("streams", "memory", "start", "workers"))
    parser.add_argument("--streams", type=int, default=1000, help="at once")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="tokens a second of a stream")
    parser.add_argument("--requests", type=int, default=100_000, help="of memory")
    given = parser.parse_args()
    os.sched_setaffinity(0, {CORES[-1]})
    runs: dict[str, Callable[[], Awaitable[None]]] = {
        "streams": lambda: streams(given.streams, given.rates),
        "memory": lambda: memory(given.requests),
        "start": lambda: start(),
        "workers": lambda: workers(len(CORES)),
    }
    for name in given.only or runs:
        await runs[name]()


if __name__ == "__main__":
    uvloop.run(main())
