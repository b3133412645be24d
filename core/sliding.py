"""How much was taken in the last minute, or any other period: two buckets, weighted, whatever the number of requests.

    ──[    previous    ][    current ··now      ]──▶
               └─── one period ──────┘
    counted: what is in the current bucket, and of the previous one the share that a period back from now reaches into

So a bucket never holds more than the limit, nor does the weighted sum; a demand that is not even may have up to twice
the limit in a period that lies across two buckets, as with everybody who counts like this.
"""

from __future__ import annotations

import math
from typing import Protocol

# The cells of a counter: the number of the current bucket, and what is in that one and the one before it.
BUCKET, PREVIOUS, CURRENT = range(3)
CELLS = 3
# What is due then is there: the share of a bucket is not exact.
ROUNDING_S = 0.001


class Cells(Protocol):
    """Numbers by their places."""

    def __getitem__(self, place: int, /) -> int: ...
    def __setitem__(self, place: int, number: int, /) -> None: ...


class SlidingCounter:
    """Counts in three `cells`, its own or memory that is shared, all 0 at first. The times (`now`) are seconds of any
    clock that does not go back, from 0 on."""

    __slots__ = ("_cells", "_period_s")

    def __init__(self, period_s: float, cells: Cells | None = None) -> None:
        self._period_s = period_s
        self._cells: Cells = [0] * CELLS if cells is None else cells

    def count(self, now: float) -> float:
        """How much was taken in the period that ends now."""
        cells = self._cells
        share = self._turn(now)
        return cells[CURRENT] + cells[PREVIOUS] * share

    def take(self, amount: int, limit: int, now: float) -> bool:
        """Takes so much, if no more than the `limit` is taken then. Gives whether."""
        if self.count(now) + amount > limit:
            return False
        self._cells[CURRENT] += amount
        return True

    def add(self, amount: int, now: float) -> int:
        """Counts what was taken, whatever the limit. Gives the number of the bucket that it is in."""
        self._turn(now)
        return self.add_here(amount)

    def add_here(self, amount: int) -> int:
        """The same behind `count`, at the same time."""
        self._cells[CURRENT] += amount
        return self._cells[BUCKET]

    def give_back(self, amount: int, bucket: int, now: float) -> None:
        """What was counted in that bucket was not used. It never makes less than nothing of it."""
        self._turn(now)
        behind = self._cells[BUCKET] - bucket
        if behind in (0, 1):
            cell = CURRENT if behind == 0 else PREVIOUS
            self._cells[cell] = max(self._cells[cell] - amount, 0)

    def wait_s(self, amount: int, limit: int, now: float) -> float:
        """How long until so much can be taken, if nobody else takes anything: 0 if it can be now, infinite where it is
        more than the limit."""
        if amount > limit:
            return math.inf
        if self.count(now) + amount <= limit:
            return 0.0
        cells, period_s = self._cells, self._period_s
        until = cells[BUCKET] * period_s
        if cells[CURRENT] + amount <= limit:
            until += (1 - (limit - amount - cells[CURRENT]) / cells[PREVIOUS]) * period_s
        else:
            until += (2 - (limit - amount) / cells[CURRENT]) * period_s
        return max(until - now, 0.0) + ROUNDING_S

    def reset_s(self, now: float) -> float:
        """How long until nothing counts any more, if nobody takes anything."""
        self._turn(now)
        return self.reset_here_s(now)

    def reset_here_s(self, now: float) -> float:
        """The same behind `count`, at the same time."""
        cells = self._cells
        buckets = 2 if cells[CURRENT] else 1 if cells[PREVIOUS] else 0
        return max((cells[BUCKET] + buckets) * self._period_s - now, 0.0) if buckets else 0.0

    def _turn(self, now: float) -> float:
        """Goes on to the bucket of now. Gives the share of the previous one that counts."""
        cells = self._cells
        place = now / self._period_s
        if (behind := int(place) - cells[BUCKET]) > 0:
            cells[PREVIOUS] = cells[CURRENT] if behind == 1 else 0
            cells[CURRENT] = 0
            cells[BUCKET] += behind
        return 1 - (place - cells[BUCKET])
