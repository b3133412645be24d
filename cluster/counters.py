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


class Counters:
    """The counters in a folder, as `make` has made them. `cells` are the numbers."""

    def __init__(self, folder: Path) -> None:
        with (folder / "counters").open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.cells = memoryview(self._memory).cast("q")
        self._locks = os.open(folder / "locks", os.O_RDWR)

    @staticmethod
    def make(folder: Path, cells: int) -> None:
        """So many counters, all 0."""
        (folder / "counters").write_bytes(bytes(cells * 8))
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
