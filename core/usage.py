"""What was used: counted as requests end, added up in memory, and written with the turns.

request ends ──add──▶ pending, by hour, owner, key, model, endpoint ──flush──▶ the store
                                 ▲────────────── what could not be written ───────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from operator import add
from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec

from core.errors import ServerError

HOUR_S = 3600
DAY_S = 86_400
# What comes of requests that are not stored is written so often; and so long after it could not be.
FLUSH_S = 1.0
AGAIN_S = 5.0
MILLION = 1_000_000
Amount = Annotated[float, msgspec.Meta(ge=0)]
# What usage can be listed by.
By = Literal["owner", "key", "model", "endpoint"]


class Use(NamedTuple):
    """What some requests have used. `cached` tokens are a part of the input, `reasoning` of the output; `slot_s` is how
    long they held slots of endpoints; `cost` is in the currency of the prices."""

    requests: int = 0
    errors: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    slot_s: float = 0.0
    cache_hits: int = 0
    cost: float = 0.0

    def plus(self, other: Use) -> Use:
        """Both together."""
        return Use(*map(add, self, other))


# Whose use of what it was: owner, the hour (of the Unix time), key, model, endpoint.
Where = tuple[str, int, str, str, str]


class UsageRow(NamedTuple):
    """A row of a list of usage: from `at` on (Unix seconds), of one owner, key, model or endpoint, by which it is
    called."""

    at: int
    name: str
    used: Use


class Spent(NamedTuple):
    """What an owner, or one of its keys, has used since some time: tokens, and their cost."""

    tokens: int = 0
    cost: float = 0.0


# The last time that a calendar has.
LATEST = 253_402_300_799


def time_of(text: str) -> int:
    """A day, a time (in UTC where it names no zone) or Unix seconds, as Unix seconds. Raises `ValueError`, whose text
    is why not."""
    try:
        if text.isascii() and text.isdigit() and len(text) > 8:
            seconds = int(text)
        else:
            given = datetime.fromisoformat(text)
            seconds = int((given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        seconds = -1
    if not 0 <= seconds <= LATEST:
        raise ValueError(f"'{text}' is no day or time, as 2027-01-31 or 2027-01-31T12:00:00Z is")
    return seconds


class PriceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`prices`: what a million tokens of a model cost; without `cached`, tokens of the input that were cached cost as
    much as the others."""

    input: Amount = 0.0
    cached: Amount | None = None
    output: Amount = 0.0

    def cost(self, input: int, cached: int, output: int) -> float:
        """That of so many tokens. `cached` are a part of the `input`."""
        of_cached = self.input if self.cached is None else self.cached
        return ((input - cached) * self.input + cached * of_cached + output * self.output) / MILLION


class UsageStore(Protocol):
    """What of a store usage is written with, and budgets are read from."""

    def count_usage(self, used: Mapping[Where, Use], failed: Callable[[], object] | None = None) -> Awaitable[None]: ...
    async def spent(self, since: int, *, owner: str, key: str | None = None) -> Spent: ...


class UsageLog:
    """What requests of this process have used, until it is in the `store`: written with the turns that are stored
    (`flush`), and by itself each second. `open()` inside the running loop, `close()` at its end."""

    def __init__(self, store: UsageStore) -> None:
        self._store = store
        self._pending: list[tuple[Where, Use]] = []
        self._failed_at = -math.inf
        self._writer: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Writes by itself from now on."""
        self._writer = asyncio.create_task(self._write(), name="usage writer")

    async def close(self) -> None:
        """Waits until all of it is written, or has failed."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if (written := self.flush()) is not None:
            with contextlib.suppress(ServerError):
                await written

    def add(self, where: Where, used: Use) -> None:
        """Counts what a request has used."""
        self._pending.append((where, used))

    def flush(self) -> Awaitable[None] | None:
        """Has the store write all of it, together with what is written next. None where there is nothing to be
        written."""
        if not (pending := self._pending):
            return None
        self._pending = []
        used = dict(pending)
        if len(used) < len(pending):
            used.clear()
            for where, more in pending:
                before = used.get(where)
                used[where] = more if before is None else before.plus(more)
        try:
            return self._store.count_usage(used, failed=partial(self._take_back, used))
        except ServerError:
            self._take_back(used)  # Nothing is written any more.
            return None

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if time.monotonic() - self._failed_at >= AGAIN_S:
                self.flush()

    def _take_back(self, used: Mapping[Where, Use]) -> None:
        """What could not be written is written later."""
        self._failed_at = time.monotonic()
        self._pending += used.items()
