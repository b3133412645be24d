"""The clock of the tests: to be imported before anything that takes `time.monotonic` for itself."""

from __future__ import annotations

import time


class Clock:
    """`time.monotonic`, by which the timers of the loop go too: it goes on by itself, and jumps ahead for a test."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._monotonic = time.monotonic
        time.monotonic = self  # For good: it must never go back.

    def __call__(self) -> float:
        return self._monotonic() + self._ahead_s

    def advance(self, seconds: float) -> None:
        self._ahead_s += seconds


CLOCK = Clock()
