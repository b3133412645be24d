"""Quotas where they are counted in memory, a process's own or shared: looked at and taken in one step of microseconds.

take ──▶ each quota has room? ──▶ all of them are counted ──▶ settle: what was used instead of what was taken
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from cluster.protocol import Draw, Drawing, Left, Quota, Quotas, Taken
from core.sliding import SlidingCounter

NO_OTHERS: AbstractContextManager[None] = nullcontext()


class AtOnce:
    """How many there are at the same time, in this process: there is no other. It has what a `SlidingCounter` has, for
    which time does nothing."""

    __slots__ = ("_own",)

    def __init__(self) -> None:
        self._own = 0

    def count(self, now: float) -> float:
        """Those of all processes."""
        return self._own

    def add_here(self, amount: int) -> int:
        """So many more of this process; fewer, where it is negative."""
        self._own += amount
        return 0

    def wait_s(self, amount: int, limit: int, now: float) -> float:
        """Nobody knows."""
        return 0.0

    def reset_here_s(self, now: float) -> float:
        """Nobody knows."""
        return 0.0


class Drawn(Drawing):
    """What was taken in memory."""

    __slots__ = ("_quotas", "taken")

    def __init__(self, quotas: CountedQuotas, taken: Taken) -> None:
        self._quotas = quotas
        self.taken: Taken | None = taken

    async def settled(self) -> Taken:
        assert self.taken is not None, "it was given up"
        return self.taken

    def give_up(self) -> None:
        taken, self.taken = self.taken, None
        if taken is not None and taken.refused is None:
            self._quotas.settle(taken, [0] * len(taken.draws))


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

    def draw(self, draws: Sequence[Draw]) -> Drawn:
        return Drawn(self, self._taken(draws))

    def _taken(self, draws: Sequence[Draw]) -> Taken:
        known = self._counters
        counters = [known.get(quota.name) or self._new(quota) for quota, _ in draws]
        now = time.monotonic()
        with self.exclusive():
            counts = [counter.count(now) for counter in counters]
            for (quota, amount), counter, count in zip(draws, counters, counts, strict=True):
                if count + amount > quota.limit and amount:
                    wait_s = counter.wait_s(amount, quota.limit, now)
                    return Taken(draws, _left(draws, counters, counts, now), refused=quota, wait_s=wait_s)
            buckets = [counter.add_here(amount) for (_, amount), counter in zip(draws, counters, strict=True)]
            after = [count + amount for (_, amount), count in zip(draws, counts, strict=True)]
            return Taken(draws, _left(draws, counters, after, now), buckets)

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
                counter = self._counters.get(quota.name) or self._new(quota)
                if isinstance(counter, AtOnce):
                    counter.add_here(more)
                elif more > 0:
                    counter.add(more, now)
                else:
                    counter.give_back(-more, bucket, now)

    def _new(self, quota: Quota) -> AtOnce | SlidingCounter:
        """The counter of a quota that was not met here before."""
        made = self.sliding(quota.name, quota.period_s) if quota.period_s else self.at_once(quota.name)
        counter = self._counters[quota.name] = made
        return counter


def _left(
    draws: Sequence[Draw], counters: Sequence[AtOnce | SlidingCounter], counts: Sequence[float], now: float
) -> list[Left]:
    """What is left where so much is counted now."""
    return [
        Left(max(int(quota.limit - count), 0), counter.reset_here_s(now))
        for (quota, _), counter, count in zip(draws, counters, counts, strict=True)
    ]
