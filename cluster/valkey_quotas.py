"""Quotas at a Valkey: looked at and taken in one script, by the server's clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from cluster.membership import Membership
from cluster.protocol import Draw, Drawing, Left, Quota, Quotas, Taken
from cluster.valkey_scripts import short
from core.sliding import CURRENT, SlidingCounter
from core.valkey import Argument


class AtServer(tuple[int, ...]):
    """The buckets of what the server has counted; what this process has counted by itself has others."""


class ReplicaQuotas(Quotas):
    """Those of all processes. While the server is away, what this process, or its machine, counts by itself."""

    def __init__(self, inner: Quotas, membership: Membership) -> None:
        self.inner = inner
        self.membership = membership
        # What runs of quotas of so many at once, by the server's name of them.
        self._at_once: Counter[str] = Counter()

    def draw(self, draws: Sequence[Draw]) -> Drawing:
        return ReplicaDrawing(self, draws) if self.membership.is_joined else self.inner.draw(draws)

    def settle(self, taken: Taken, used: Sequence[int]) -> None:
        if type(taken.buckets) is not AtServer:
            self.inner.settle(taken, used)
            return
        changed: list[Argument] = []
        for (quota, amount), used_of_it, bucket in zip(taken.draws, used, taken.buckets, strict=True):
            if used_of_it == amount:
                continue
            if quota.period_s:
                changed += (_name(quota.name), int(quota.period_s * 1000), bucket, used_of_it - amount)
            else:
                self.ended(quota, amount - used_of_it)
        if changed:
            self.membership.settled(changed)

    def begun(self, draws: Sequence[Draw]) -> None:
        """The server has counted what is wanted."""
        for quota, amount in draws:
            if amount and not quota.period_s:
                self._at_once[_name(quota.name)] += amount

    def ended(self, quota: Quota, amount: int) -> None:
        """So many fewer at once."""
        name = _name(quota.name)
        self._at_once[name] -= amount
        if self._at_once[name] <= 0:
            del self._at_once[name]
        self.membership.ended(name, amount)

    def own(self) -> Iterable[tuple[str, int]]:
        """What runs here of quotas of so many at once."""
        return self._at_once.items()


class ReplicaDrawing(Drawing):
    """What a request wants of quotas at the server, whose answer counts also where nobody waits for it any more."""

    __slots__ = ("_draws", "_is_wanted", "_quotas", "taken")

    def __init__(self, quotas: ReplicaQuotas, draws: Sequence[Draw]) -> None:
        self._quotas = quotas
        self._draws = draws
        self._is_wanted = True
        self.taken: Taken | None = None

    def words(self) -> Sequence[Argument]:
        """As the scripts take them: how many, and what is wanted of each."""
        words: list[Argument] = [len(self._draws)]
        for quota, amount in self._draws:
            words += (_name(quota.name), quota.limit, int(quota.period_s * 1000), amount)
        return words

    async def settled(self) -> Taken:
        while self.taken is None:
            heard = asyncio.get_running_loop().create_future()
            if not self._quotas.membership.send(counting.DRAW, *self.words(), on_answer=partial(self._answered, heard)):
                self.count_here()
                continue
            try:
                await heard
            except BaseException:
                self.give_up()
                raise
        return self.taken

    def hear(self, refused: int, now_us: int, counters: Sequence[list[int]]) -> None:
        """What the server has taken, or would have."""
        now, draws = now_us / 1e6, self._draws
        periods_s = [quota.period_s or 1.0 for quota, _ in draws]
        counted = [SlidingCounter(period_s, cells) for period_s, cells in zip(periods_s, counters, strict=True)]
        left = [
            _left(quota, counter, cells, now)
            for (quota, _), counter, cells in zip(draws, counted, counters, strict=True)
        ]
        if refused:
            quota, amount = draws[refused - 1]
            wait_s = counted[refused - 1].wait_s(amount, quota.limit, now) if quota.period_s else 0.0
            self.taken = Taken(draws, left, refused=quota, wait_s=wait_s)
            return
        self.taken = Taken(draws, left, AtServer(cells[0] for cells in counters))
        self._quotas.begun(draws)
        if not self._is_wanted:
            self.give_up()

    def count_here(self) -> bool:
        """The server is away: this process, or its machine, counts by itself. Gives whether there is room."""
        if self._is_wanted:
            self.taken = self._quotas.inner.draw(self._draws).taken
        return self.taken is not None and self.taken.refused is None

    def give_up(self) -> None:
        self._is_wanted = False
        taken, self.taken = self.taken, None
        if taken is not None and taken.refused is None:
            self._quotas.settle(taken, [0] * len(self._draws))

    def _answered(self, heard: asyncio.Future[None], given: Any) -> None:
        if isinstance(given, Exception):
            self.count_here()
        elif given == scripts.UNKNOWN:
            self._quotas.membership.join()
        else:
            self.hear(*given)
        if not heard.done():
            heard.set_result(None)


@lru_cache(maxsize=4096)
def _name(quota: str) -> str:
    """The server's name of a quota: as long as an endpoint's, and none of them."""
    return short(f"quota {quota}")


def _left(quota: Quota, counter: SlidingCounter, cells: Sequence[int], now: float) -> Left:
    if not quota.period_s:
        return Left(max(quota.limit - cells[CURRENT], 0), 0.0)
    return Left(max(int(quota.limit - counter.count(now)), 0), counter.reset_s(now))
