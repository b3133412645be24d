"""Quotas where they are counted in memory, a process's own or shared: looked at and taken in one step of microseconds.

take ──▶ each quota has room? ──▶ all of them are counted ──▶ settle: what was used instead of what was taken
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from cluster.protocol import Draw, Left, Quota, Quotas, Taken
from core.sliding import SlidingCounter

NO_OTHERS: AbstractContextManager[None] = nullcontext()


class AtOnce:
    """How many there are at the same time, in this process: there is no other."""

    __slots__ = ("_own",)

    def __init__(self) -> None:
        self._own = 0

    def total(self) -> int:
        """Those of all processes."""
        return self._own

    def add(self, amount: int) -> None:
        """So many more of this process; fewer, where it is negative."""
        self._own += amount


class CountedQuotas(Quotas):
    """Those of one process. Whoever shares memory has counters of its own (`at_once`, `sliding`), and keeps the others
    out meanwhile (`exclusive`)."""

    def __init__(self) -> None:
        self._counters: dict[str, AtOnce | SlidingCounter] = {}

    def at_once(self, name: str) -> AtOnce:
        """A new counter of so many at once."""
        return AtOnce()

    def sliding(self, name: str, period_s: float) -> SlidingCounter:
        """A new counter of what is taken in a period."""
        return SlidingCounter(period_s)

    def exclusive(self) -> AbstractContextManager[None]:
        """In here no other process counts."""
        return NO_OTHERS

    async def take(self, draws: Sequence[Draw]) -> Taken:
        counters = [self._counter(quota) for quota, _ in draws]
        now = time.monotonic()
        with self.exclusive():
            for (quota, amount), counter in zip(draws, counters, strict=True):
                if amount and _count(counter, now) + amount > quota.limit:
                    left = [_left(quota, counter, now) for (quota, _), counter in zip(draws, counters, strict=True)]
                    wait_s = 0.0 if isinstance(counter, AtOnce) else counter.wait_s(amount, quota.limit, now)
                    return Taken(draws, left, refused=quota, wait_s=wait_s)
            buckets: list[int] = []
            left = []
            for (quota, amount), counter in zip(draws, counters, strict=True):
                if isinstance(counter, AtOnce):
                    counter.add(amount)
                    buckets.append(0)
                else:
                    buckets.append(counter.add(amount, now))
                left.append(_left(quota, counter, now))
        return Taken(draws, left, buckets)

    def settle(self, taken: Taken, used: Sequence[int]) -> None:
        now = time.monotonic()
        changes = [
            (quota, used_of_it - amount, bucket)
            for (quota, amount), used_of_it, bucket in zip(taken.draws, used, taken.buckets, strict=True)
            if used_of_it != amount
        ]
        if not changes:
            return
        with self.exclusive():
            for quota, more, bucket in changes:
                counter = self._counter(quota)
                if isinstance(counter, AtOnce):
                    counter.add(more)
                elif more > 0:
                    counter.add(more, now)
                else:
                    counter.give_back(-more, bucket, now)

    def _counter(self, quota: Quota) -> AtOnce | SlidingCounter:
        counter = self._counters.get(quota.name)
        if counter is None:
            made = self.sliding(quota.name, quota.period_s) if quota.period_s else self.at_once(quota.name)
            counter = self._counters[quota.name] = made
        return counter


def _count(counter: AtOnce | SlidingCounter, now: float) -> float:
    return counter.total() if isinstance(counter, AtOnce) else counter.count(now)


def _left(quota: Quota, counter: AtOnce | SlidingCounter, now: float) -> Left:
    if isinstance(counter, AtOnce):
        return Left(max(quota.limit - counter.total(), 0), 0.0)
    return Left(max(int(quota.limit - counter.count(now)), 0), counter.reset_s(now))
