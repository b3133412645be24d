"""The end of the service: what runs gets time to end. What still runs then is interrupted, and its client hears why.

begin ──▶ background turns drain ──drain_s──▶ is_over: requests are cancelled, and answer with `Interrupted`
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType

from core.errors import Interrupted

# Whoever follows a background turn has read its end by then.
LAST_EVENTS_S = 0.1


class Stopping:
    """Made where the service begins. What runs gets `drain_s` to end; `drain` stops what runs without a client."""

    def __init__(self, drain_s: float, drain: Callable[[], Awaitable[None]]) -> None:
        self.has_begun = False
        self.is_over = False
        # Called when the stop begins, each once.
        self.listeners: set[Callable[[], object]] = set()
        self._drain_s = drain_s
        self._drain = drain
        self._stop: asyncio.Task[None] | None = None

    def begin(self, serving: Collection[asyncio.Task[None]]) -> None:
        """The service stops: `serving` are the tasks that answer clients. Only the first call does anything."""
        if self.has_begun:
            return
        self.has_begun = True
        self._stop = asyncio.create_task(self._interrupt(serving), name="stop")
        for listener in list(self.listeners):
            listener()

    async def close(self) -> None:
        """Nothing is served any more."""
        if self._stop is not None:
            self._stop.cancel()
            await asyncio.gather(self._stop, return_exceptions=True)

    def __enter__(self) -> None:
        """Raises `Interrupted` where the end of the stop cancels what is in here. It keeps nothing, so that any number
        of tasks may be in it."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is asyncio.CancelledError and self.interrupts():
            raise Interrupted from None

    def interrupts(self) -> bool:
        """Whether a cancellation that the running task has just caught is the end of the stop. It goes on then."""
        task = asyncio.current_task()
        if not self.is_over or task is None:
            return False
        task.uncancel()
        return True

    async def _interrupt(self, serving: Collection[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_s
        await self._drain()
        await asyncio.sleep(max(end - loop.time(), LAST_EVENTS_S))
        self.is_over = True
        for task in list(serving):
            task.cancel()
