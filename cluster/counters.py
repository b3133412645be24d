"""Shared counters: a file of 64-bit numbers that several processes have in memory, and a file of locks, a byte each.

The kernel gives back the locks of a process that ends, however it ends. They are the process's, not a thread's: one
thread alone may take them.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path


class NamedRows:
    """A table among the counters, of at most `rows` rows of `width` numbers, each under a name of 64 bits that is not
    0: how many are in use, the names, the rows. A row stays with its name."""

    def __init__(self, cells: memoryview[int], rows: int, width: int) -> None:
        self._used = cells[:1]
        self._names = cells[1 : 1 + rows]
        self._rows = cells[1 + rows : 1 + rows + rows * width]
        self._width = width

    @staticmethod
    def size(rows: int, width: int) -> int:
        """How many counters such a table takes."""
        return 1 + rows + rows * width

    def row(self, name: int) -> memoryview[int] | None:
        """The row of a name, a new one if need be; None where there is room for no more. Under a lock."""
        used = self._used[0]
        names = self._names[:used].tolist()
        if name in names:
            used = names.index(name)
        elif used < len(self._names):
            self._names[used] = name
            self._used[0] += 1
        else:
            return None
        return self._rows[used * self._width : (used + 1) * self._width]

    def clear_column(self, column: int) -> None:
        """Makes one number of each row 0."""
        for row in range(self._used[0]):
            self._rows[row * self._width + column] = 0


class Counters:
    """The counters in a folder, as `make` has made them. `cells` are the numbers."""

    def __init__(self, folder: Path) -> None:
        with (folder / "counters").open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.cells = memoryview(self._memory).cast("q")
        self._locks = os.open(folder / "locks", os.O_RDWR)

    @staticmethod
    def make(folder: Path, cells: int) -> None:
        """So many counters, all 0. Those that nobody uses take no room."""
        with (folder / "counters").open("wb") as file:
            file.truncate(cells * 8)
        (folder / "locks").touch()

    def close(self) -> None:
        """Gives the locks back. The numbers can still be read."""
        os.close(self._locks)

    @contextlib.contextmanager
    def locked(self, lock: int) -> Iterator[None]:
        """Holds a lock; waits, and with it the whole process, until no other process does."""
        fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, lock)
        try:
            yield
        finally:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, lock)

    def take(self, lock: int) -> bool:
        """Takes a lock until this process ends, if no other process has it."""
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, lock)
        except OSError:
            return False
        return True

    def is_free(self, lock: int) -> bool:
        """Whether no other process has a lock. It is taken for a moment to find out."""
        if not self.take(lock):
            return False
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, lock)
        return True
