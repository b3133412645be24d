"""A file of SQLite serves one service at a time: a second one would take the first one's running turns for turns of the
dead."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import time

from core.errors import StartError

log = logging.getLogger("nomyo.db")

# What file systems without locks answer.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# How long a service that has been ended may take for its end, and two that start at once for finding out which one was
# first.
STOPPING_S = 1.0


class ServiceLock:
    """Keeps a database to the processes of one service, from `take` to `close`: the file PATH.lock, which names the
    service and which each process holds by a shared lock. The kernel gives the lock back when a process ends, however
    it ends, and keeps it apart from SQLite's own ones."""

    def __init__(self, path: str, service: str) -> None:
        # SQLite follows links as well.
        self._file = os.open(f"{os.path.realpath(path)}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._path = path
        self._service = service.encode()

    async def take(self) -> None:
        """Raises `StartError` where another service has the database. Where the file system has no locks, the log
        warns of it and nothing is kept apart."""
        give_up_at = time.monotonic() + STOPPING_S
        while not self._is_taken():
            if time.monotonic() > give_up_at:
                raise StartError(
                    f"{self._path} is used by another router: end that one, or give another (database.url)"
                )
            await asyncio.sleep(0.01)

    def _is_taken(self) -> bool:
        if self._lock(fcntl.LOCK_EX):
            # Nobody has it. Who comes before the lock is shared writes its own name, and is the one that stays.
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, self._service, 0)
        if self._lock(fcntl.LOCK_SH):
            # Nobody writes the name while anybody shares the lock.
            if os.pread(self._file, len(self._service) + 1, 0) == self._service:
                return True
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def _lock(self, how: int) -> bool:
        """Whether it could be locked so."""
        try:
            fcntl.flock(self._file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            if how == fcntl.LOCK_EX:
                log.warning("%s cannot be locked (%s): keep other routers off it", self._path, error.strerror)
        return True

    def close(self) -> None:
        """Gives it back."""
        os.close(self._file)
