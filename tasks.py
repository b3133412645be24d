"""The background task runner: a bounded number of jobs at once, the others wait in order.

submit ──▶ queued ──▶ running ──▶ gone
             └─ cancel ─┴─▶ job.stop(reason)
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from functools import partial
from typing import Generic, Protocol, TypeVar

from errors import APIError, ServerError, TooManyRequests

log = logging.getLogger("nomyo.tasks")


class Job(Protocol):
    """Something to run. `run` is cancelled to stop it; `stop` is called when it will not run (on), and says so to the world:
    with the error that interrupted it, or None if somebody cancelled it."""

    @property
    def id(self) -> str: ...
    async def run(self) -> None: ...
    async def stop(self, reason: APIError | None) -> None: ...


J = TypeVar("J", bound=Job)


class TaskRunner(Generic[J]):
    """At most `max_concurrent` jobs run, at most `max_queued` wait."""

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._max_concurrent = max_concurrent
        self._max_queued = max_queued
        self._queued: OrderedDict[str, J] = OrderedDict()
        self._running: dict[str, tuple[J, asyncio.Task[None]]] = {}
        self._draining = False

    def get(self, job_id: str) -> J | None:
        """The job, while it waits or runs."""
        if job_id in self._running:
            return self._running[job_id][0]
        return self._queued.get(job_id)

    def submit(self, job: J) -> None:
        """Queues a job; it takes its first step when the caller next awaits something. Raises `TooManyRequests` when no more
        may wait."""
        if self._draining or len(self._queued) >= self._max_queued:
            raise TooManyRequests("Too many background responses are queued.", retry_after_s=5)
        self._queued[job.id] = job
        self._start()

    async def cancel(self, job_id: str, reason: APIError | None = None) -> bool:
        """Stops a job, and returns when it has stopped. False if there is none such (any more)."""
        if job := self._queued.pop(job_id, None):
            await job.stop(reason)
            return True
        if job_id not in self._running:
            return False
        job, task = self._running[job_id]
        task.cancel()
        await asyncio.wait([task])
        await job.stop(reason)
        return True

    async def drain(self, timeout_s: float, reason: APIError) -> None:
        """Starts nothing more, gives the running jobs `timeout_s`, and stops the rest with `reason`."""
        self._draining = True
        if tasks := [task for _, task in self._running.values()]:
            await asyncio.wait(tasks, timeout=timeout_s)
        for job_id in (*self._queued, *self._running):
            await self.cancel(job_id, reason)

    def _start(self) -> None:
        while self._queued and len(self._running) < self._max_concurrent and not self._draining:
            job_id, job = self._queued.popitem(last=False)
            task = asyncio.create_task(self._run(job), name=f"background {job_id}")
            self._running[job_id] = (job, task)
            # Not a `finally` in `_run`: a task that is cancelled before its first step runs none.
            task.add_done_callback(partial(self._done, job_id))

    def _done(self, job_id: str, _: asyncio.Task[None]) -> None:
        del self._running[job_id]
        self._start()

    async def _run(self, job: J) -> None:
        try:
            await job.run()
        except Exception:
            log.exception("background job %s failed", job.id)
            await job.stop(ServerError("The router failed to run this response."))
