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
    """Opens after `threshold` failures in a row, for `cooldown_s`, and twice as long each time a probe fails, up to
    `max_cooldown_s`. `failures` are those since the last success."""

    __slots__ = ("_cooldown", "_cooldown_s", "_hung", "_max_cooldown_s", "_probing", "_threshold", "failures", "until")

    def __init__(self, threshold: int, cooldown_s: float, max_cooldown_s: float) -> None:
        self._threshold = threshold
        self._cooldown_s = self._cooldown = cooldown_s
        self._max_cooldown_s = max_cooldown_s
        self.failures = 0
        self._probing = self._hung = False
        # When the next request may be let through; None while closed.
        self.until: float | None = None

    def state(self, now: float) -> State:
        """How it stands at a time, in s of the monotonic clock."""
        return "closed" if self.until is None else "open" if now < self.until else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent: any while closed, none while open, one at a time while half-open."""
        return self.until is None or (now >= self.until and not self._probing)

    def wants_probe(self, now: float) -> bool:
        """Whether a request should be sent to find out if it works again. It goes elsewhere if not: but not if that
        takes long."""
        return self.until is not None and self.allows(now) and not self._hung

    def begin(self, now: float) -> None:
        """A request is sent. One that is sent while it is open, because nobody else is left either, is no probe."""
        self._probing = self.until is not None and now >= self.until

    def success(self) -> None:
        """It was answered."""
        self.until, self.failures, self._probing = None, 0, False
        self._cooldown = self._cooldown_s

    def failure(self, now: float, retry_after_s: float | None = None, *, hung: bool = False) -> None:
        """It failed. `retry_after_s` is what the server asked for; `hung`: it took long to fail."""
        self.failures += 1
        self._hung = hung
        asked_s = min(retry_after_s or 0.0, self._max_cooldown_s)
        if self._probing:
            self._probing = False
            self._cooldown = min(self._cooldown * 2, self._max_cooldown_s)
        elif self.until is not None:
            # One that was in flight when it opened: nothing is learnt from it.
            self.until = max(self.until, now + asked_s)
            return
        elif self.failures < self._threshold and not asked_s:
            return
        self.until = now + max(self._cooldown, asked_s)

    def open_until(self, until: float) -> None:
        """Another process has found that it fails, and leaves it alone until then. What is tried here goes on."""
        if self.until is None or self.until < until:
            self.until = until
            self.failures = max(self.failures, self._threshold)

    def abandoned(self) -> None:
        """It ended and nothing is learnt from it: the client left."""
        self._probing = False
