"""What a request and a token cost in Python: opcodes, calls and functions, which no busy machine changes.

    python -m benchmarks.opcodes [--base COMMIT] [--top 10]

The service runs in this process, behind uvicorn's protocol and in front of the mock backend, and memory stands for all
sockets. What its thread executes is counted one opcode after the other (`sys.settrace`), ours and the libraries', but
neither this folder's nor C: the same code gives the same numbers, and 1% more is 1% more. They show nothing of what an
opcode does; `make bench` times that. Numbers of different Pythons cannot be compared. With `--base` the same is run in
a checkout of that commit, with its environment, if the HTTP client of that commit is ours already.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Self, cast

import uvloop

from benchmarks.base import base_of
from benchmarks.gateways import ROOT
from benchmarks.mock_backend import MODELS, TOKENS, Connection
from benchmarks.scenarios import AGENT, BURST_ALONE, CHAT, PLAIN_ALONE, RESPONSES, STORED, TRICKLE, Scenario

# Ahead of what is counted: the first requests make what stays.
WARM_UP, COUNTED = 5, 5
COUNT_S = 120
# The backends, by the ports that nobody listens at: one that speaks chat completions, one that speaks Responses.
CHAT_PORT, NATIVE_PORT = 1, 2
NATIVE_MODEL = "resp"
# What stands for the sockets and the client.
OWN = {str(file) for file in Path(__file__).parent.glob("*.py")}
COLUMNS = ("opcodes", "ours", "calls", "functions")


# ── counting ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Count:
    """What the thread of a loop executes within `with`: opcodes by function, and calls."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.opcodes: Counter[CodeType] = Counter()
        self.calls = 0

    def __enter__(self) -> Self:
        self._loop.hold_timers()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)
        self._loop.release_timers()

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename in OWN:
            return None
        self.calls += 1
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._on_opcode

    def _on_opcode(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.opcodes[frame.f_code] += 1
        return self._on_opcode

    def figures(self, root: Path) -> dict[str, int]:
        ours = sum(count for code, count in self.opcodes.items() if is_ours(code, root))
        return dict(zip(COLUMNS, (self.opcodes.total(), ours, self.calls, len(self.opcodes)), strict=True))

    def top(self, number: int, root: Path) -> list[tuple[str, int]]:
        """The functions with most opcodes: `api/responses.py:run_turn`."""
        return [(f"{short(code, root)}:{code.co_qualname}", count) for code, count in self.opcodes.most_common(number)]


def is_ours(code: CodeType, root: Path) -> bool:
    file = Path(code.co_filename)
    return file.is_relative_to(root) and ".venv" not in file.relative_to(root).parts


def short(code: CodeType, root: Path) -> str:
    file = code.co_filename
    return file.removeprefix(f"{root}/") if is_ours(code, root) else file.rpartition("site-packages/")[2]


# ── memory instead of sockets ────────────────────────────────────────────────────────────────────────────────────────


class Pipe(asyncio.Transport):
    """One end of a connection in memory; what is written there is given to `deliver`."""

    def __init__(self, deliver: Callable[[bytes], object]) -> None:
        super().__init__({"peername": ("127.0.0.1", 2), "sockname": ("127.0.0.1", 1)})
        self._deliver = deliver
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._deliver(bytes(data))

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return True

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


class Backend(Connection):
    """The mock backend, but that a trickle comes when it is asked for."""

    def __init__(self, router: asyncio.Protocol, port: int) -> None:
        super().__init__()
        self.router = router
        self.pieces: Iterator[bytes] = iter(())
        self._port = port

    def answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get") and self._port == NATIVE_PORT:
            self._transport.write(MODELS.replace(b"mock", NATIVE_MODEL.encode()))
        else:
            super().answer(head, body)

    def trickle(self, pieces: Iterator[bytes]) -> None:
        self.pieces = pieces

    def send_piece(self) -> None:
        """The next piece, at once."""
        self.router.data_received(next(self.pieces))


class Loop(uvloop.Loop):
    """uvloop's, whose connections lead to the mock backend; `backends` holds it by port, as it was connected to last. A
    timer that is due while something is counted runs afterwards: which ones are due is a matter of time."""

    def __init__(self) -> None:
        super().__init__()
        self.backends: dict[int, Backend] = {}
        self._holds = 0
        self._due: list[tuple[asyncio.TimerHandle, Callable[[], object]]] = []

    def hold_timers(self) -> None:
        """Nothing is called by its time until `release_timers`, as often as this was called."""
        self._holds += 1

    def release_timers(self) -> None:
        self._holds -= 1
        if self._holds:
            return
        due, self._due = self._due, []
        for handle, call in due:
            if not handle.cancelled():
                call()

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        def call() -> None:
            if self._holds:
                self._due.append((handle, call))
            else:
                callback(*args)

        handle = super().call_later(delay, call, context=context)
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: object, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_later(max(0.0, when - self.time()), callback, *args, context=context)

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int, **given: object
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        protocol = factory()
        backend = self.backends[port] = Backend(protocol, port)
        # As sockets do it: what was written arrives in a later turn of the loop.
        backend.connection_made(Pipe(lambda data: self.call_soon(protocol.data_received, data)))
        transport = Pipe(lambda data: self.call_soon(backend.data_received, data))
        protocol.connection_made(transport)
        return transport, protocol


@dataclass
class Client:
    """A client's connection to the service."""

    protocol: asyncio.Protocol
    received: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.whole = asyncio.get_running_loop().create_future()
        self.protocol.connection_made(Pipe(self._receive))

    def _receive(self, data: bytes) -> None:
        self.received += data
        head, _, body = bytes(self.received).partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2]
        if body.endswith(b"0\r\n\r\n") if not length else len(body) >= int(length.split(b"\r\n")[0]):
            self.whole.set_result(None)

    def send(self, path: str, body: bytes) -> None:
        self.received.clear()
        self.whole = asyncio.get_running_loop().create_future()
        head = f"POST {path} HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        self.protocol.data_received(head.encode() + body)


# ── what is counted ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Service:
    """The service in this process."""

    loop: Loop
    connect: Callable[[], Client]

    async def request(self, path: str, scenario: Scenario, model: str) -> Count:
        """Of one request, from its bytes until nothing of it is left to do."""
        client = self.connect()
        body = scenario.body(path, model)
        counts = []
        # Whether a timer runs already is a matter of time, too.
        self.loop.hold_timers()
        for _ in range(WARM_UP + COUNTED):
            with Count(self.loop) as count:
                client.send(path, body)
                await client.whole
                await settled()
            assert scenario.expected.encode() in client.received, client.received[:1000]
            counts.append(count)
        self.loop.release_timers()
        await settled()  # What those have begun that were held.
        return least(counts[WARM_UP:])

    async def token(self, path: str, scenario: Scenario, model: str) -> Count:
        """Of one token in the middle of a stream, from socket to socket."""
        client = self.connect()
        client.send(path, scenario.body(path, model))
        await settled()
        backend = self.loop.backends[NATIVE_PORT if model == NATIVE_MODEL else CHAT_PORT]
        counts = []
        for _ in range(TOKENS // 2):
            with Count(self.loop) as count:
                backend.send_piece()
            counts.append(count)
            await settled()
        for piece in backend.pieces:
            backend.router.data_received(piece)
        await client.whole
        assert scenario.expected.encode() in client.received, client.received[:1000]
        return least(counts[-COUNTED:])


def least(counts: list[Count]) -> Count:
    """The one that nothing else came into, as what another thread has done may."""
    return min(counts, key=lambda count: count.opcodes.total())


async def settled() -> None:
    """When the loop has nothing left to do but wait. (`asyncio.sleep` is Python, and would be counted.)"""
    loop = asyncio.get_running_loop()
    for _ in range(50):
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


Case = tuple[str, Callable[[Service], Awaitable[Count]]]
SURFACES = (("", RESPONSES, "mock"), (", native", RESPONSES, NATIVE_MODEL), (", chat completions", CHAT, "mock"))


def cases() -> Iterator[Case]:
    """The rows, by their names."""
    for surface, path, model in SURFACES:
        for name, scenario in (("a plain request", PLAIN_ALONE), (f"a burst of {TOKENS} tokens", BURST_ALONE)):
            yield name + surface, partial(Service.request, path=path, scenario=scenario, model=model)
        yield f"a token{surface}", partial(Service.token, path=path, scenario=TRICKLE, model=model)
    for name, scenario in (("a plain request, stored", STORED), ("an agent's turn of 427 KB", AGENT)):
        yield name, partial(Service.request, path=RESPONSES, scenario=scenario, model="mock")


async def count_all(root: Path, top: int) -> dict[str, dict[str, int]]:
    """Counts every case in the service of a checkout, whose settings ROUTER_CONFIG names."""
    sys.path.insert(0, str(root))
    from uvicorn import Config
    from uvicorn.server import ServerState

    # Commits from before there was a serve.py run under uvicorn's own protocol.
    options = importlib.import_module("serve").OPTIONS if (root / "serve.py").exists() else {"http": "httptools"}
    loop = cast(Loop, asyncio.get_running_loop())
    config = Config("router:app", log_level="error", access_log=False, **options)
    config.load()
    lifespan = config.lifespan_class(config)
    await lifespan.startup()
    await settled()

    def connect() -> Client:
        server_state = ServerState()
        return Client(config.http_protocol_class(config, server_state, lifespan.state, loop))  # type: ignore[call-arg]

    figures = {}
    gc.disable()
    for name, run in cases():
        count = await run(Service(loop, connect))
        figures[name] = count.figures(root)
        if top:
            print(f"\n{name}: " + ", ".join(f"{function} {opcodes}" for function, opcodes in count.top(top, root)))
    gc.enable()
    await lifespan.shutdown()
    return figures


def counted(root: Path, python: str, top: int = 0) -> dict[str, dict[str, int]]:
    """The same, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="nomyo-opcodes-") as folder:
        endpoints = [
            {"url": f"http://127.0.0.1:{CHAT_PORT}/v1", "kind": "openai-chat"},
            {"url": f"http://127.0.0.1:{NATIVE_PORT}/v1", "kind": "openai"},
        ]
        settings = {"endpoints": endpoints, "database": {"url": f"sqlite:///{folder}/router.db"}}
        config, output = Path(folder, "config.yaml"), Path(folder, "figures")
        config.write_text(json.dumps(settings))
        command = [python, "-m", "benchmarks.opcodes", "--root", str(root), "--output", str(output), "--top", str(top)]
        # Sets are gone through in the same order each time.
        environment = {**os.environ, "ROUTER_CONFIG": str(config), "PYTHONHASHSEED": "0"}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False, timeout=COUNT_S
            )
        except subprocess.TimeoutExpired:
            raise SystemExit(f"the service of {root} did not answer: its HTTP client needs sockets") from None
        if done.returncode:
            raise SystemExit(f"the service of {root} could not be counted: {done.stderr.strip().splitlines()[-1]}")
        figures: dict[str, dict[str, int]] = json.loads(output.read_bytes())
        return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--base", help="also as it was at this commit")
    parser.add_argument("--top", type=int, default=0, help="name so many functions with most opcodes")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.root:
        with asyncio.Runner(loop_factory=Loop) as runner:
            given.output.write_text(json.dumps(runner.run(count_all(given.root, given.top))))
        return
    figures = counted(ROOT, sys.executable, given.top)
    base = base_of(given.base) if given.base else None
    before = counted(base.checkout, base.python) if base else {}
    print(f"\nPython {sys.version.split()[0]}{f'; in brackets to {base}' if base else ''}.\n")
    print(f"| | {' | '.join(COLUMNS)} |\n|---{'|---' * len(COLUMNS)}|")
    for name, row in figures.items():
        cells = [shown(row[column], before.get(name, {}).get(column)) for column in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |")


def shown(number: int, before: int | None) -> str:
    return str(number) if before is None else f"{number} ({number / before:.3f})"


if __name__ == "__main__":
    main()
