"""The background task runner: a bounded number of jobs at once; of the others those of the lowest priority go first, in
their order.

submit ──▶ queued ──▶ running ──▶ gone
             └─ cancel ─┴─▶ job.stop(reason)
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from core.errors import APIError, ServerError, TooManyRequests

log = logging.getLogger("nomyo.tasks")


class Job(Protocol):
    """Something to run. `run` is cancelled to stop it; `stop` is called when it will not run (on), and makes that
    known: with the error that interrupted it, or None if somebody cancelled it."""

    @property
    def id(self) -> str: ...
    @property
    def priority(self) -> int: ...
    async def run(self) -> None: ...
    async def stop(self, reason: APIError | None) -> None: ...


J = TypeVar("J", bound=Job)


@dataclass(eq=False)
class _Entry(Generic[J]):
    job: J
    running: asyncio.Task[None] | None = None
    stopping: asyncio.Task[None] | None = None


class TaskRunner(Generic[J]):
    """At most `max_concurrent` jobs run, at most `max_queued` wait."""

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._max_concurrent = max_concurrent
        self._max_queued = max_queued
        self._entries: dict[str, _Entry[J]] = {}
        self._queued: deque[_Entry[J]] = deque()
        self._has_priorities = False
        self._draining = False
        self._drained_at = math.inf

    def get(self, job_id: str) -> J | None:
        """The job, until it has ended or stopped."""
        entry = self._entries.get(job_id)
        return entry.job if entry else None

    def ids(self) -> list[str]:
        """Those of the jobs that wait or run."""
        return list(self._entries)

    def counts(self) -> tuple[int, int]:
        """How many run, and how many wait."""
        return len(self._entries) - len(self._queued), len(self._queued)

    def room(self) -> int:
        """How many more would run at once."""
        return 0 if self._draining else max(0, self._max_concurrent - len(self._entries))

    def submit(self, job: J, *, is_accepted: bool = False) -> None:
        """Queues a job; it takes its first step when the caller next awaits something. Raises `TooManyRequests` when no
        more may wait; one that was accepted before (`is_accepted`) may wait whatever there is."""
        if self._draining or (len(self._queued) >= self._max_queued and not is_accepted):
            raise TooManyRequests("Too many background responses are queued.", retry_after_s=5)
        entry = self._entries[job.id] = _Entry(job)
        self._queued.append(entry)
        self._has_priorities |= job.priority != 0
        self._start()

    async def cancel(self, job_id: str, reason: APIError | None = None) -> bool:
        """Stops a job, once, and returns when it has stopped, to everybody who asks. False if there is none such (any
        more)."""
        entry = self._entries.get(job_id)
        if entry is None:
            return False
        if entry.stopping is None:
            if entry.running is not None:
                entry.running.cancel()
            else:
                self._queued.remove(entry)
            entry.stopping = asyncio.create_task(self._stop(entry, entry.running, reason), name=f"stopping {job_id}")
        await asyncio.shield(entry.stopping)
        return True

    async def drain(self, timeout_s: float, reason: APIError) -> None:
        """Starts nothing more, gives the running jobs `timeout_s`, and stops the rest with `reason`."""
        self._draining = True
        now = asyncio.get_running_loop().time()
        self._drained_at = min(self._drained_at, now + timeout_s)
        if running := [entry.running for entry in self._entries.values() if entry.running]:
            await asyncio.wait(running, timeout=max(self._drained_at - now, 0))
        await asyncio.gather(*(self.cancel(job_id, reason) for job_id in list(self._entries)))

    def _start(self) -> None:
        running = sum(entry.running is not None for entry in self._entries.values())
        while self._queued and running < self._max_concurrent and not self._draining:
            entry = min(self._queued, key=_priority_of) if self._has_priorities else self._queued[0]
            self._queued.remove(entry)
            entry.running = asyncio.create_task(self._run(entry.job), name=f"background {entry.job.id}")
            # Not a `finally` in `_run`: a task that is cancelled before its first step runs none.
            entry.running.add_done_callback(partial(self._ended, entry))
            running += 1

    def _ended(self, entry: _Entry[J], _: asyncio.Task[None]) -> None:
        entry.running = None
        if entry.stopping is None:
            del self._entries[entry.job.id]
        self._start()

    async def _run(self, job: J) -> None:
        try:
            await job.run()
        except Exception:
            log.exception("background job %s failed", job.id)
            await job.stop(ServerError("The router failed to run this response."))

    async def _stop(self, entry: _Entry[J], running: asyncio.Task[None] | None, reason: APIError | None) -> None:
        try:
            if running is not None:
                await asyncio.wait([running])
            await entry.job.stop(reason)
        finally:
            del self._entries[entry.job.id]


def _priority_of(entry: _Entry[Any]) -> int:
    priority: int = entry.job.priority
    return priority
