"""What keys and owners have used of their budgets: read from the store, so that a restart forgets nothing, and from
there on counted here.

first use ──▶ read the day, the month ──▶ + what is used here ──▶ read again, as others use too
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from core.keys import Window
from core.usage import DAY_S, Spent, UsageLog, UsageStore

log = logging.getLogger("nomyo.limits")

# What other processes have used is seen after so long.
READ_EVERY_S = 5.0


class Account:
    """What a key or an owner has used in the day and the month that it is, UTC. `reserved` are the tokens that what
    runs in this process is expected to use."""

    def __init__(self, owner: str, key: str | None) -> None:
        self.owner = owner
        self.key = key
        self.reserved = 0
        self.read_at = 0.0
        self.reading: asyncio.Task[None] | None = None
        # What was used while the store is read: it may not know of it.
        self._meanwhile: list[Spent] = []
        self._begins: dict[Window, int] = {"day": 0, "month": 0}
        self._spent: dict[Window, Spent] = {}

    def used_in(self, window: Window, now: float) -> Spent:
        """What was used in the day or month of now (Unix seconds)."""
        return self._spent.get(window, Spent()) if self._begins[window] == begin_of(window, now) else Spent()

    def add(self, more: Spent, now: float) -> None:
        """More was used."""
        if self.reading is not None:
            self._meanwhile.append(more)
        for window in self._begins:
            before = self.used_in(window, now)
            self._begins[window] = begin_of(window, now)
            self._spent[window] = Spent(before.tokens + more.tokens, before.cost + more.cost)

    def begin_reading(self) -> None:
        """What was used until now is in the store."""
        self._meanwhile.clear()

    def end_reading(self, read: dict[Window, Spent], now: float) -> None:
        """What was used is what the store knew, and what was used meanwhile."""
        self._begins = {window: begin_of(window, now) for window in self._begins}
        self._spent = dict(read)
        self.reading = None
        for more in self._meanwhile:
            self.add(more, now)


class Budgets:
    """The accounts of those who have a budget."""

    def __init__(self, store: UsageStore, usage: UsageLog) -> None:
        self._store = store
        self._usage = usage
        self._accounts: dict[tuple[str, str | None], Account] = {}

    async def account(self, owner: str, key: str | None, now: float) -> Account:
        """That of a key, or of an owner (None). This waits for the store where it is asked for the first time."""
        account = self._accounts.get((owner, key))
        if account is None:
            account = self._accounts[owner, key] = Account(owner, key)
        if now - account.read_at >= READ_EVERY_S and account.reading is None:
            account.reading = asyncio.create_task(self._read(account, now), name="reading a budget")
        if not account.read_at and account.reading is not None:
            await asyncio.shield(account.reading)
        return account

    async def _read(self, account: Account, now: float) -> None:
        try:
            if (written := self._usage.flush()) is not None:
                await written
            account.begin_reading()
            windows: tuple[Window, ...] = ("day", "month")
            owner, key = account.owner, account.key
            read = {w: await self._store.spent(begin_of(w, now), owner=owner, key=key) for w in windows}
            account.end_reading(read, now)
        except Exception:
            log.exception("what was used of a budget could not be read: what this process has seen of it counts")
        finally:
            account.read_at, account.reading = now, None


class Ends(NamedTuple):
    """From when to when a day or a month is, in Unix seconds."""

    begin: int
    end: int


def ends_of(window: Window, now: float) -> Ends:
    """The day or month that it is, UTC."""
    begin = int(now) // DAY_S * DAY_S
    return Ends(begin, begin + DAY_S) if window == "day" else _month_of(begin)


def begin_of(window: Window, now: float) -> int:
    """When the day or month began that it is, UTC."""
    return ends_of(window, now).begin


@lru_cache(maxsize=8)
def _month_of(day: int) -> Ends:
    first = datetime.fromtimestamp(day, UTC).replace(day=1)
    following = (first + timedelta(days=32)).replace(day=1)
    return Ends(int(first.timestamp()), int(following.timestamp()))
