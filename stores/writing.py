"""Writes are queued when they are asked for, and committed together: one transaction for all turns that end at the same
time.

write() ──▶ queue ──▶ batch ──run──▶ committed ──▶ then(), and whoever awaits it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from core.errors import ServerError, TakenOver

log = logging.getLogger("nomyo.db")

Value = str | bytes | int | float | None
# When a client may try again.
OUTAGE_S = 5.0
# A statement, and its values.
Write = tuple[str, tuple[Value, ...]]


class Outage(Exception):
    """Nothing can be written to the database for now: one line about what is wrong, and what to do."""


class Written:
    """Queued writes, which are committed together or not at all; `then` is called behind the commit. Awaiting it waits
    for that, and raises `ServerError` if it failed; `failed` is called then. Whoever stops waiting does not stop the
    write, and nobody has to wait at all."""

    __slots__ = ("_failed", "_failure", "_is_done", "_then", "_waiting", "writes")

    def __init__(
        self,
        writes: Sequence[Write],
        then: Callable[[], object] | None = None,
        failed: Callable[[], object] | None = None,
    ) -> None:
        self.writes = writes
        self._then = then
        self._failed = failed
        self._waiting: list[asyncio.Future[None]] = []
        self._is_done = False
        self._failure: ServerError | None = None

    def done(self) -> bool:
        """Whether it is committed, or has failed."""
        return self._is_done

    @property
    def has_failed(self) -> bool:
        """Whether nothing of it was written. False while nobody knows."""
        return self._failure is not None

    def end(self, failure: ServerError | None) -> None:
        """Ends it, without a failure or with one: calls what is to follow, and wakes who waits."""
        self._is_done, self._failure = True, failure
        self.writes = ()  # They may be megabytes, and a turn keeps this one to its end.
        follows = self._then if failure is None else self._failed
        if follows is not None:
            follows()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    def __await__(self) -> Generator[Any, None, None]:
        if not self._is_done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            yield from waiter
        if self._failure is not None:
            raise self._failure


class WriteQueue:
    """Runs what is written, a batch at a time: `run` commits a list of writes in one transaction, or raises and has
    changed nothing; it gives those of them that came too late, and did nothing. `open()` inside the running loop,
    `close()` at its end: what is queued is written first."""

    def __init__(self, run: Callable[[list[Write]], Awaitable[Sequence[Write]]]) -> None:
        self._run = run
        self._queue: list[Written] = []
        # Resolved where something is queued, while the writer waits for that.
        self._idle: asyncio.Future[None] | None = None
        self._is_open = False
        # Called with how long each batch has taken, in seconds; here with something that does nothing.
        self.observe: Callable[[float], object] = float
        # Why nothing could be written the last time.
        self.outage: str | None = None
        self._writer: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Starts to write what is queued."""
        self._queue, self._idle, self._is_open = [], None, True
        self._writer = asyncio.create_task(self._write_batches(), name="store writer")

    async def close(self) -> None:
        """Writes what is queued, and stops."""
        if self._writer is not None:
            self._is_open = False
            self._wake()
            await self._writer

    def write(
        self, *writes: Write, then: Callable[[], object] | None = None, failed: Callable[[], object] | None = None
    ) -> Written:
        """Queues writes that belong together. Raises `ServerError` where nothing is written any more."""
        if not self._is_open:
            raise not_stored()
        written = Written(writes, then, failed)
        self._queue.append(written)
        if self._idle is not None:
            self._wake()
        return written

    def _wake(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None and not idle.done():
            idle.set_result(None)

    async def _write_batches(self) -> None:
        while self._is_open or self._queue:
            if not self._queue:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
            batch, self._queue = self._queue, []
            if batch and not await self._wrote(batch) and len(batch) > 1:
                # One of them is bad. Alone, it takes nobody else down.
                for one in batch:
                    await self._wrote([one])

    async def _wrote(self, batch: list[Written]) -> bool:
        began_s = time.monotonic()
        try:
            late = await self._run([write for written in batch for write in written.writes])
        except Outage as error:
            if self.outage is None:
                log.error("nothing can be stored: %s", error)
            self.outage = str(error)
            for written in batch:
                written.end(not_stored(error, status=503, retry_after_s=OUTAGE_S))
            return True
        except Exception as error:
            if len(batch) == 1:
                log.exception("a write failed")
                batch[0].end(not_stored(error))
            return False
        self.observe(time.monotonic() - began_s)
        if self.outage is not None:
            log.warning("responses are stored again")
            self.outage = None
        for written in batch:
            written.end(TakenOver() if late and _has_any(written.writes, late) else None)
        return True


def _has_any(writes: Sequence[Write], late: Sequence[Write]) -> bool:
    return any(write is one for write in writes for one in late)


def not_stored(
    cause: Exception | None = None, *, status: int | None = None, retry_after_s: float | None = None
) -> ServerError:
    """The error of a write that failed; its cause is for the log."""
    words = "The response could not be stored."
    failure = ServerError(words, code="storage_error", status=status, retry_after_s=retry_after_s)
    failure.__cause__ = cause
    return failure
