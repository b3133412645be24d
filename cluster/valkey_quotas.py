"""Quotas at a Valkey: looked at and taken in one script, by the server's clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from cluster import valkey_counting as counting
from cluster import valkey_scripts as scripts
from cluster.membership import Membership
from cluster.protocol import Draw, Left, Quota, Quotas, Taken
from cluster.valkey_counts import short
from core.sliding import CURRENT, SlidingCounter
from core.valkey import Argument, ValkeyError


class AtServer(tuple[int, ...]):
    """The buckets of what the server has counted; what this process has counted by itself has others."""


class ReplicaQuotas(Quotas):
    """Those of all processes. While the server is away, what this process, or its machine, counts by itself."""

    def __init__(self, inner: Quotas, membership: Membership) -> None:
        self._inner = inner
        self._membership = membership
        # What runs of quotas of so many at once, by the server's name of them.
        self._at_once: Counter[str] = Counter()

    async def take(self, draws: Sequence[Draw]) -> Taken:
        if not self._membership.is_joined:
            return await self._inner.take(draws)
        asked: list[Argument] = []
        for quota, amount in draws:
            asked += (_name(quota.name), quota.limit, int(quota.period_s * 1000), amount)
        drawing = Drawing(self, draws)
        try:
            while (answer := await drawing.ask(self._membership, asked)) == scripts.UNKNOWN:
                self._membership.join()
        except (ConnectionError, ValkeyError):
            return await self._inner.take(draws)
        except BaseException:
            drawing.give_up()
            raise
        refused, now_us, counters = answer
        now = now_us / 1e6
        periods_s = [quota.period_s or 1.0 for quota, _ in draws]
        counted = [SlidingCounter(period_s, cells) for period_s, cells in zip(periods_s, counters, strict=True)]
        left = [
            _left(quota, counter, cells, now)
            for (quota, _), counter, cells in zip(draws, counted, counters, strict=True)
        ]
        if refused:
            quota, amount = draws[refused - 1]
            wait_s = counted[refused - 1].wait_s(amount, quota.limit, now) if quota.period_s else 0.0
            return Taken(draws, left, refused=quota, wait_s=wait_s)
        return Taken(draws, left, AtServer(cells[0] for cells in counters))

    def settle(self, taken: Taken, used: Sequence[int]) -> None:
        if type(taken.buckets) is not AtServer:
            self._inner.settle(taken, used)
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
            self._membership.send(counting.SETTLE, *changed)

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
        self._membership.ended(name, amount)

    def own(self) -> Iterable[tuple[str, int]]:
        """What runs here of quotas of so many at once."""
        return self._at_once.items()


class Drawing:
    """A question to the server, whose answer counts also where nobody waits for it any more."""

    def __init__(self, quotas: ReplicaQuotas, draws: Sequence[Draw]) -> None:
        self._quotas = quotas
        self._draws = draws
        self._is_wanted = True
        self._taken: AtServer | None = None

    async def ask(self, membership: Membership, asked: Sequence[Argument]) -> Any:
        """The server's answer. Raises `ConnectionError`, `ValkeyError`."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def heard(given: object) -> None:
            if isinstance(given, list) and not given[0]:
                self._taken = AtServer(cells[0] for cells in given[2])
                self._quotas.begun(self._draws)
                if not self._is_wanted:
                    self._give_back()
            if answer.done():
                return
            if isinstance(given, Exception):
                answer.set_exception(given)
            else:
                answer.set_result(given)

        if not membership.send(counting.DRAW, *asked, on_answer=heard):
            raise ConnectionError("Valkey is away")
        return await answer

    def give_up(self) -> None:
        """Nobody waits for the answer any more: what it takes is given back when it comes."""
        self._is_wanted = False
        if self._taken is not None:
            self._give_back()

    def _give_back(self) -> None:
        assert self._taken is not None
        self._quotas.settle(Taken(self._draws, (), self._taken), [0] * len(self._draws))
        self._taken = None


@lru_cache(maxsize=4096)
def _name(quota: str) -> str:
    """The server's name of a quota: as long as an endpoint's, and none of them."""
    return short(f"quota {quota}")


def _left(quota: Quota, counter: SlidingCounter, cells: Sequence[int], now: float) -> Left:
    if not quota.period_s:
        return Left(max(quota.limit - cells[CURRENT], 0), 0.0)
    return Left(max(int(quota.limit - counter.count(now)), 0), counter.reset_s(now))
