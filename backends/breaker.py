"""A circuit breaker: a model of an endpoint that fails is left alone for a while.

    closed ──N failures in a row──▶ open ──cool-down──▶ half-open ──one success──▶ closed
                                      ▲                     │
                                      └──one failure, twice the cool-down

Time is passed in, in seconds of any one clock.
"""

from __future__ import annotations

from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Opens after `failures` in a row, for `cooldown_s`, and twice as long each time a probe fails, up to `max_cooldown_s`."""

    __slots__ = ("_cooldown_s", "_failures", "_max_cooldown_s", "_next_cooldown_s", "_probing", "_threshold", "until")

    def __init__(self, failures: int, cooldown_s: float, max_cooldown_s: float) -> None:
        self._threshold = failures
        self._cooldown_s = self._next_cooldown_s = cooldown_s
        self._max_cooldown_s = max_cooldown_s
        self._failures = 0
        self._probing = False
        # When the next request may be let through; None while closed.
        self.until: float | None = None

    def state(self, now: float) -> State:
        return "closed" if self.until is None else "open" if now < self.until else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent: any while closed, none while open, one at a time while half-open."""
        return self.until is None or (now >= self.until and not self._probing)

    def begin(self, now: float) -> None:
        """A request is sent."""
        self._probing = self.until is not None

    def success(self) -> None:
        """It was answered."""
        self.until, self._failures, self._probing = None, 0, False
        self._next_cooldown_s = self._cooldown_s

    def failure(self, now: float, retry_after_s: float | None = None) -> None:
        """It failed. `retry_after_s` is what the server asked for."""
        self._failures += 1
        was_closed, self._probing = self.until is None, False
        if was_closed and self._failures < self._threshold and retry_after_s is None:
            return
        cooldown_s = max(self._next_cooldown_s, min(retry_after_s or 0.0, self._max_cooldown_s))
        self.until = max(self.until or 0.0, now + cooldown_s)
        if not was_closed:
            self._next_cooldown_s = min(self._next_cooldown_s * 2, self._max_cooldown_s)

    def abandoned(self) -> None:
        """It ended without telling anything: the client left."""
        self._probing = False
