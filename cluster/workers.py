"""What the workers of one service share (`workers` in the settings): the *board*, a small piece of memory in a folder of its own.

    requests at an endpoint, by worker    so that `max_concurrent` holds for all of them together
    who waits for a slot, and since when  so that a slot that comes free goes to whoever has waited longest
    deletions                             so that no worker believes in what another has deleted

`serve.py` makes the board and hands its folder down in the environment; each worker takes a number on it, which the kernel gives
back when the worker dies, however it dies. Without a board a worker is alone, and none of this costs anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import mmap
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from hashlib import blake2b
from pathlib import Path

log = logging.getLogger("nomyo.workers")

VARIABLE = "NOMYO_BOARD"
MOST_WORKERS = 64
MOST_ENDPOINTS = 256

# Cells of 64 bits. A worker writes its own ones alone, but for those that only change under the lock.
DELETIONS, USED, WAITING, SINCE, ROWS = 0, 8, 8 + MOST_WORKERS, 8 + 2 * MOST_WORKERS, 8 + 3 * MOST_WORKERS
# A row: whose it is, whether it is drained, and a cell for each worker.
ROW = 2 + MOST_WORKERS
CELLS = ROWS + MOST_ENDPOINTS * ROW
# In the file of the locks: a byte for each worker's number, one for the board, and one for starting.
LOCK, START = 1000, 1001
# Of a Unix socket's path, in bytes; what is not Linux is taken for macOS.
LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103


def new_folder() -> tempfile.TemporaryDirectory[str]:
    """One for a board, until the end of the service: in TMPDIR, or in /tmp where TMPDIR leaves no room for the path of a socket."""
    longest = f"{tempfile.gettempdir()}/nomyo-12345678/worker-{MOST_WORKERS}.sock"
    fits = len(os.fsencode(longest)) <= LONGEST_SOCKET_PATH
    return tempfile.TemporaryDirectory(prefix="nomyo-", dir=None if fits else "/tmp")


class Board:
    """The board in a folder. `join` takes a number on it, before anything else is done with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = -1
        # Whether another worker has had this number, and died.
        self.is_successor = False
        with (folder / "board").open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), CELLS * 8)
        self._cells = memoryview(self._memory).cast("q")
        self._locks = os.open(folder / "locks", os.O_RDWR)
        self._bell: socket.socket | None = None

    @classmethod
    def make(cls, folder: Path) -> None:
        """Makes an empty board."""
        (folder / "board").write_bytes(bytes(CELLS * 8))
        (folder / "locks").touch()

    @classmethod
    def of_environment(cls) -> Board | None:
        """The board of the service that this process works for, if there is one."""
        folder = os.environ.get(VARIABLE)
        return cls(Path(folder)) if folder else None

    def join(self) -> None:
        """Takes the first free number. What a dead worker has left under it is cleared."""
        with self.locked():
            number = next((number for number in range(MOST_WORKERS) if self._take(number)), None)
            if number is None:
                raise RuntimeError(f"There are {MOST_WORKERS} workers already.")
            self.number = number
            self.is_successor = bool(self._cells[USED + number])
            self._cells[USED + number] = 1
            self._clear()
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.setblocking(False)
        self._bell_path(number).unlink(missing_ok=True)
        self._bell.bind(str(self._bell_path(number)))
        if self.is_successor:
            self.ring()  # The slots of the one that died are free.

    def leave(self) -> None:
        self._clear()
        if self._bell is not None:
            self._bell.close()
            self._bell_path(self.number).unlink(missing_ok=True)
        os.close(self._locks)

    def _clear(self) -> None:
        for cell in (WAITING, SINCE, *range(ROWS + 2, CELLS, ROW)):
            self._cells[cell + self.number] = 0

    def locked(self) -> AbstractContextManager[None]:
        """What is read and written in here, no other worker changes meanwhile. It is held for microseconds."""
        return self._holding(LOCK)

    def starting(self) -> AbstractContextManager[None]:
        """In here no other worker starts. It may take its time: those that run do not wait for it."""
        return self._holding(START)

    @contextlib.contextmanager
    def _holding(self, byte: int) -> Iterator[None]:
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, byte)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, byte)

    def others(self) -> list[int]:
        """The numbers of the other workers that live."""
        with self.locked():
            used = [n for n in range(MOST_WORKERS) if n != self.number and self._cells[USED + n]]
            return [number for number in used if not self._is_free(number)]

    def _take(self, number: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError:
            return False
        return True

    def _is_free(self, number: int) -> bool:
        """Whether nobody has this number. It is tried out, which is why this is done under the lock."""
        if not self._take(number):
            return False
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, number)
        return True

    def door(self, number: int) -> Path:
        """The socket at which a worker is asked by the others."""
        return self.folder / f"worker-{number}.sock"

    # ── requests at endpoints ────────────────────────────────────────────────────────────────────────────────────────

    def count(self, url: str) -> Count | None:
        """The count of the requests at an endpoint. None when the board is full: then each worker counts for itself."""
        name = int.from_bytes(blake2b(url.encode(), digest_size=8).digest(), signed=True) or 1
        with self.locked():
            for row in range(ROWS, CELLS, ROW):
                if self._cells[row] in (0, name):
                    self._cells[row] = name
                    return Count(self._cells[row + 1 : row + ROW], self.number)
        log.warning("the board has no room for more than %d endpoints: limits hold for each worker", MOST_ENDPOINTS)
        return None

    # ── who waits ────────────────────────────────────────────────────────────────────────────────────────────────────

    def tell_waiting(self, waiting: int, since_s: float) -> None:
        """So many wait here, the first of them since (`time.monotonic`)."""
        self._cells[SINCE + self.number] = int(since_s * 1e9) if waiting else 0
        self._cells[WAITING + self.number] = waiting

    def waiting(self) -> int:
        """How many wait, in all workers."""
        return sum(self._cells[WAITING : WAITING + MOST_WORKERS])

    def is_first_in_line(self) -> bool:
        """Whether nobody elsewhere has waited longer than the first who waits here."""
        since = self._cells[SINCE + self.number]
        return not any(
            0 < other < since or (other and not since) for other in self._cells[SINCE : SINCE + MOST_WORKERS]
        )

    def ring(self) -> None:
        """Tells the other workers in which somebody waits that a slot may be free."""
        assert self._bell is not None
        for number, waiting in enumerate(self._cells[WAITING : WAITING + MOST_WORKERS]):
            if waiting and number != self.number:
                with contextlib.suppress(OSError):  # It has been rung for often enough, or it has just died.
                    self._bell.sendto(b"!", str(self._bell_path(number)))

    def listen(self, on_ring: Callable[[], None]) -> None:
        """Calls `on_ring` when another worker rings, from the running loop."""
        bell = self._bell
        assert bell is not None

        def rung() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    bell.recv(16)
            on_ring()

        asyncio.get_running_loop().add_reader(bell, rung)

    def stop_listening(self) -> None:
        if self._bell is not None:
            asyncio.get_running_loop().remove_reader(self._bell)

    def _bell_path(self, number: int) -> Path:
        return self.folder / f"bell-{number}.sock"

    # ── deletions ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def value(self) -> int:
        """How many responses were deleted, by anybody (`db.Deletions`)."""
        return self._cells[DELETIONS]

    def add(self, deleted: int) -> None:
        with self.locked():
            self._cells[DELETIONS] += deleted


class Count:
    """How many requests run at an endpoint, by worker; and whether it gets no more."""

    __slots__ = ("_cells", "_drained", "_mine")

    def __init__(self, cells: memoryview[int], mine: int) -> None:
        self._drained = cells[:1]
        self._cells = cells[1:]
        self._mine = mine

    def total(self) -> int:
        return sum(self._cells)

    def add(self, requests: int) -> None:
        self._cells[self._mine] += requests

    @property
    def draining(self) -> bool:
        return bool(self._drained[0])

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._drained[0] = draining


def end_with_supervisor() -> None:
    """Ends this process, as SIGTERM does, when the supervisor is no more: nobody else would, and it would keep the port."""
    supervisor = multiprocessing.parent_process()
    if supervisor is None:
        return
    loop, sentinel = asyncio.get_running_loop(), supervisor.sentinel

    def end() -> None:
        loop.remove_reader(sentinel)
        log.error("the supervisor is gone: this worker ends")
        signal.raise_signal(signal.SIGTERM)

    loop.add_reader(sentinel, end)
