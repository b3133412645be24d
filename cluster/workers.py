"""Several workers of one service on one machine (`workers` in the settings). What they share lies in a folder of its
own:

    counters, locks    shared memory (counters.py): requests at each endpoint and who waits, by worker; deletions;
                       quotas of keys and owners
    wake-N.sock        the wake-ups of worker N, datagrams: a slot may be free
    worker-N.sock      the peer socket of worker N: HTTP, for questions of the others (peers.py)

`serve.py` makes the folder and names it in the environment; each worker takes a number in it, which the kernel gives
back when the worker dies, however it dies. Its supervisor starts another one then, which takes the first free number.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from hashlib import blake2b
from os import fsencode
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from cluster import peers
from cluster.alone import OwnEvents, OwnFlights, OwnInFlight, OwnNotes
from cluster.counters import Counters, NamedRows
from cluster.protocol import Cluster, InFlight, PeerAnswer, SharedLine
from cluster.quotas import AtOnce, CountedQuotas
from core import sliding
from core.deletions import Deletions
from core.sliding import SlidingCounter

log = logging.getLogger("nomyo.cluster")

# Names the folder, in the environment of the workers.
FOLDER = "NOMYO_WORKERS_DIR"
MOST_WORKERS = 64
MOST_ENDPOINTS = 256
# Of each kind: a key or an owner has up to two.
MOST_QUOTAS = 8192

# The counters. A worker writes its own ones alone, but for those that only change under the lock. First what is there
# once:
DELETIONS, STARTED = 0, 1
# Then one for each worker: whether its number was ever taken, how many wait in it, and since when the first of them
# does, in ns.
USED, WAITING, SINCE, ROWS = 8, 8 + MOST_WORKERS, 8 + 2 * MOST_WORKERS, 8 + 3 * MOST_WORKERS
# Then a row for each endpoint: its address, hashed; whether it is drained; and its requests, for each worker.
ROW = 2 + MOST_WORKERS
ROWS_END = ROWS + MOST_ENDPOINTS * ROW
# Then the quotas: those of so many at once, with a number for each worker, and those of a period.
AT_ONCE, SLIDING = ROWS_END, ROWS_END + NamedRows.size(MOST_QUOTAS, MOST_WORKERS)
CELLS = SLIDING + NamedRows.size(MOST_QUOTAS, sliding.CELLS)
# The locks: one for each worker's number, one for the counters, and one for starting.
LOCK, START = 1000, 1001
# How long a slot is left to another worker in which somebody has waited longer: a wake-up takes a tenth of it.
GIVE_WAY_S = 0.002
# Of a Unix socket's path, in bytes; what is not Linux is taken for macOS.
LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """One for the workers of a service, until its end: in TMPDIR, or in /tmp where TMPDIR leaves no room for the path
    of a socket."""
    longest = f"{tempfile.gettempdir()}/nomyo-12345678/worker-{MOST_WORKERS}.sock"
    fits = len(fsencode(longest)) <= LONGEST_SOCKET_PATH
    return tempfile.TemporaryDirectory(prefix="nomyo-", dir=None if fits else "/tmp")


class Workers(Cluster):
    """The workers that share a folder, as one of them sees them. `prepare` makes what is in the folder."""

    is_exact = True
    is_apart = False
    deletions: SharedDeletions
    line: WorkersLine
    quotas: WorkersQuotas

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counters = Counters(folder)
        self._cells = self._counters.cells
        self.deletions = SharedDeletions(self._counters)
        self.line = WorkersLine(self._cells, folder)
        self.quotas = WorkersQuotas(self._counters)
        self.events = OwnEvents()
        self.flights = OwnFlights()
        self.notes = OwnNotes()
        self.number = -1  # until it joins
        # Whether another worker has had this number, and died.
        self.is_successor = False

    @staticmethod
    def prepare(folder: Path) -> None:
        """Makes the shared counters of a service in its folder, all zero."""
        Counters.make(folder, CELLS)

    @property
    def service(self) -> str:
        return str(self._folder)

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        self.join()
        end_with_supervisor()

    async def close(self) -> None:
        self.leave()

    def join(self) -> None:
        """Takes the first free number. What a dead worker has left under it is cleared."""
        with self.exclusive():
            number = next((number for number in range(MOST_WORKERS) if self._counters.take(number)), None)
            if number is None:
                raise RuntimeError(f"There are {MOST_WORKERS} workers already.")
            self.number = number
            self.is_successor = bool(self._cells[USED + number])
            self._cells[USED + number] = 1
            self.quotas.open(number)
            self._clear()
        self.line.open(number)
        if self.is_successor:
            self.line.wake()  # The slots of the one that died are free.

    def leave(self) -> None:
        """Gives its number back, and what it holds."""
        self._clear()
        self.line.close()
        self._counters.close()

    def _clear(self) -> None:
        for cell in (WAITING, SINCE, *range(ROWS + 2, ROWS_END, ROW)):
            self._cells[cell + self.number] = 0
        self.quotas.clear()

    @asynccontextmanager
    async def starting(self) -> AsyncGenerator[bool]:
        # It stops this process while another one starts; nothing runs in it yet.
        with self._counters.locked(START):
            yield not self._cells[STARTED]
            self._cells[STARTED] = 1

    @property
    def leads(self) -> bool:
        return self.number == 0

    async def deaths(self) -> AsyncIterator[None]:
        """Who dies has a successor, and it is the successor's to tidy up: at its start, and never again."""
        if self.is_successor:
            yield

    # ── requests at endpoints ────────────────────────────────────────────────────────────────────────────────────────

    def in_flight(self, url: str) -> InFlight:
        """Where there is no room for another endpoint, each worker counts for itself."""
        name = _hashed(url)
        with self.exclusive():
            for row in range(ROWS, ROWS_END, ROW):
                if self._cells[row] in (0, name):
                    self._cells[row] = name
                    return SharedInFlight(self._cells[row + 1 : row + ROW], self.number)
        log.warning(
            "no more than %d endpoints can be counted together: the limits of others hold for each worker",
            MOST_ENDPOINTS,
        )
        return OwnInFlight()

    def exclusive(self) -> AbstractContextManager[None]:
        return self._counters.locked(LOCK)

    # ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def others(self) -> list[int]:
        """The numbers of the other workers that live."""
        with self.exclusive():
            used = [n for n in range(MOST_WORKERS) if n != self.number and self._cells[USED + n]]
            return [number for number in used if not self._counters.is_free(number)]

    def living(self) -> list[peers.Peer]:
        """The other workers that live, and where they are asked."""
        return [peers.Peer.at(self.peer_socket(number)) for number in self.others()]

    def peer_socket(self, number: int) -> Path:
        """Where a worker is asked by the others."""
        return self._folder / f"worker-{number}.sock"

    def answering(self, app: ASGIApp, http: type[asyncio.Protocol]) -> AbstractAsyncContextManager[None]:
        return peers.answering(app, http, self.peer_socket(self.number))

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        return await peers.ask(self.living(), method, path, headers)

    async def ask_machine(self, method: str, path: str, headers: Mapping[str, str]) -> list[Any]:
        return await self.ask(method, path, headers)

    async def find(self, method: str, path: str, headers: Mapping[str, str]) -> PeerAnswer | None:
        return await peers.find(self.living(), method, path, headers)


class SharedInFlight(InFlight):
    """The requests at an endpoint in shared memory: whether it is drained, then a number for each worker."""

    __slots__ = ("_drained", "_mine", "_requests")

    def __init__(self, cells: memoryview[int], mine: int) -> None:
        self._drained = cells[:1]
        self._requests = cells[1:]
        self._mine = mine

    def total(self) -> int:
        return sum(self._requests)

    def begin(self) -> None:
        self._requests[self._mine] += 1

    def withdraw(self) -> None:
        self.end()

    def end(self, model: str = "") -> None:
        # Without the lock: nobody else writes this number.
        self._requests[self._mine] -= 1

    @property
    def draining(self) -> bool:
        return bool(self._drained[0])

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._drained[0] = draining


class WorkersQuotas(CountedQuotas):
    """Quotas in shared memory. Of more than there is room for each worker counts its own."""

    def __init__(self, counters: Counters) -> None:
        super().__init__()
        self._shared = counters
        self._at_once = NamedRows(counters.cells[AT_ONCE:SLIDING], MOST_QUOTAS, MOST_WORKERS)
        self._sliding = NamedRows(counters.cells[SLIDING:], MOST_QUOTAS, sliding.CELLS)
        self._number = -1
        self._is_full = False

    def open(self, number: int) -> None:
        """From now on it counts as worker `number`."""
        self._number = number

    def clear(self) -> None:
        """What this worker, or the one that had its number before, has at once is given back."""
        self._at_once.clear_column(self._number)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._shared.locked(LOCK)

    def at_once(self, name: str) -> AtOnce:
        row = self._row(self._at_once, name)
        return super().at_once(name) if row is None else SharedAtOnce(row, self._number)

    def sliding(self, name: str, period_s: float) -> SlidingCounter:
        return SlidingCounter(period_s, self._row(self._sliding, name))

    def _row(self, rows: NamedRows, name: str) -> memoryview[int] | None:
        with self.exclusive():
            row = rows.row(_hashed(name))
        if row is None and not self._is_full:
            self._is_full = True
            log.warning("no more than %d limits can be counted together: others hold for each worker", MOST_QUOTAS)
        return row


class SharedAtOnce(AtOnce):
    """How many there are at the same time in all workers: a number for each."""

    __slots__ = ("_all", "_mine")

    def __init__(self, cells: memoryview[int], mine: int) -> None:
        super().__init__()
        self._all = cells
        self._mine = mine

    def count(self, now: float) -> float:
        return sum(self._all)

    def add_here(self, amount: int) -> int:
        self._all[self._mine] += amount
        return 0


class WorkersLine(SharedLine):
    """Who waits, in shared memory, and wake-ups by datagrams."""

    give_way_s = GIVE_WAY_S

    def __init__(self, cells: memoryview[int], folder: Path) -> None:
        self._waiting = cells[WAITING : WAITING + MOST_WORKERS]
        self._since = cells[SINCE : SINCE + MOST_WORKERS]
        self._folder = folder
        self._number = -1
        self._wake_up: socket.socket | None = None

    def open(self, number: int) -> None:
        """Makes the socket at which worker `number` is woken."""
        self._number = number
        self._wake_up = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._wake_up.setblocking(False)
        self.wake_up_socket(number).unlink(missing_ok=True)
        self._wake_up.bind(str(self.wake_up_socket(number)))

    def close(self) -> None:
        """Takes that socket away."""
        if self._wake_up is not None:
            self._wake_up.close()
            self.wake_up_socket(self._number).unlink(missing_ok=True)

    def wake_up_socket(self, number: int) -> Path:
        """Where a worker is woken by the others."""
        return self._folder / f"wake-{number}.sock"

    def announce(self, waiting: int, since_s: float) -> None:
        self._since[self._number] = int(since_s * 1e9) if waiting else 0
        self._waiting[self._number] = waiting

    def elsewhere(self) -> int:
        return sum(self._waiting) - self._waiting[self._number]

    def is_first(self) -> bool:
        mine = self._since[self._number]
        return not any(since and (not mine or since < mine) for since in self._since)

    def wake(self) -> None:
        assert self._wake_up is not None
        for number, waiting in enumerate(self._waiting):
            if waiting and number != self._number:
                with contextlib.suppress(OSError):  # It has been woken often enough, or it has just died.
                    self._wake_up.sendto(b"!", str(self.wake_up_socket(number)))

    def listen(self, on_wake: Callable[[], None]) -> None:
        wake_up = self._wake_up
        assert wake_up is not None

        def woken() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    wake_up.recv(16)
            on_wake()

        asyncio.get_running_loop().add_reader(wake_up, woken)

    def stop_listening(self) -> None:
        if self._wake_up is not None:
            asyncio.get_running_loop().remove_reader(self._wake_up)


class SharedDeletions(Deletions):
    """The count of deletions in shared memory: what one worker adds, all see at once."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    @property
    def value(self) -> int:
        return self._counters.cells[DELETIONS]

    def add(self, deleted: int) -> None:
        with self._counters.locked(LOCK):
            self._counters.cells[DELETIONS] += deleted


def _hashed(name: str) -> int:
    """A name as a number that is not 0."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True) or 1


def end_with_supervisor() -> None:
    """Ends this process, as SIGTERM does, when the supervisor is no more: nobody else would, and it would keep the
    port."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return
    loop, sentinel = asyncio.get_running_loop(), supervisor.sentinel

    def end() -> None:
        loop.remove_reader(sentinel)
        log.error("the supervisor is gone: this worker ends")
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sentinel, end)
