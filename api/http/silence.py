"""Answers that are silent: one that has not begun begins by itself after a while, and one that has is kept alive.

now ──start_s──▶ `speak_first`, unless it has begun ──KEEPALIVE_S──▶ `keep_alive` ──KEEPALIVE_S──▶ …
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

# An answer of which nothing was sent for as long, or twice as long, is kept alive.
KEEPALIVE_S = 15.0
# Timers are not exact.
NEARLY_S = 0.001


class Watched(ABC):
    """An answer that is watched for silence, from `watch` to `stop`. One timer an answer: nearly all end before it is
    due."""

    has_begun = False
    _timer: asyncio.TimerHandle | None = None
    _begins_at = 0.0

    @abstractmethod
    def was_silent(self) -> bool:
        """Whether nothing was sent since this was asked last."""

    @abstractmethod
    def speak_first(self) -> None:
        """Begins the answer, whose source has not begun."""

    @abstractmethod
    def keep_alive(self) -> None:
        """Sends something that means nothing."""

    def watch(self, start_s: float = 0.0) -> None:
        """From now on. An answer that has not begun does so within `start_s`."""
        loop = asyncio.get_running_loop()
        self._begins_at = loop.time() + start_s
        self._timer = loop.call_later(KEEPALIVE_S if self.has_begun else min(start_s, KEEPALIVE_S), self._look, loop)

    def stop(self) -> None:
        """It has ended, or broken off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        wait_s = KEEPALIVE_S
        if self.has_begun:
            if self.was_silent():
                self.keep_alive()
        elif (left_s := self._begins_at - loop.time()) > NEARLY_S:
            wait_s = left_s
        else:
            self.speak_first()
        self._timer = loop.call_later(wait_s, self._look, loop)
