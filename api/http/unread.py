"""A client that does not read: after a while its connection is closed, and whoever answers it is free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

log = logging.getLogger("nomyo.http")


class UnreadWatch:
    """Watches a connection from when its writing is paused (`begin`) for as long as `is_paused`. It is closed once
    nothing was read for `timeout_s`."""

    def __init__(self, transport: asyncio.Transport, is_paused: Callable[[], bool], timeout_s: float) -> None:
        self._transport = transport
        self._is_paused = is_paused
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        # How much is not read, and since when.
        self._unread = 0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The client does not read."""
        self._unread, self._since = self._transport.get_write_buffer_size(), self._loop.time()
        if self._timer is None:
            self._look_in(self._timeout_s)

    def stop(self) -> None:
        """The connection is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_in(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._is_paused():
            return
        now, unread = self._loop.time(), self._transport.get_write_buffer_size()
        if unread < self._unread:
            self._since = now
        self._unread = unread
        left_s = self._since + self._timeout_s - now
        if left_s > 0:
            self._look_in(left_s)
        else:
            log.info("a client has read nothing for %g s: its connection is closed", now - self._since)
            self._transport.abort()
