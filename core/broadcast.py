"""What is made once for all who follow it, every so often, and only while somebody does.

follow(take) ──first one──▶ a task: make ──every_s──▶ make ──▶ take(…) of each follower ──last one leaves──▶ nothing
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

log = logging.getLogger("nomyo")

T = TypeVar("T")


class Broadcast(Generic[T]):
    """`make` gives what followers are given, each `every_s` seconds. While nobody follows there is no task, no timer,
    and nothing is made."""

    def __init__(self, make: Callable[[], Awaitable[T]], every_s: float) -> None:
        self._make = make
        self._every_s = every_s
        self._followers: set[Callable[[T], object]] = set()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_followed(self) -> bool:
        """Whether anybody follows."""
        return bool(self._followers)

    @contextlib.contextmanager
    def followed_by(self, take: Callable[[T], object]) -> Iterator[None]:
        """In here `take` is called with all that is made."""
        self._followers.add(take)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="broadcast")
        try:
            yield
        finally:
            self._followers.discard(take)
            if not self._followers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _run(self) -> None:
        while True:
            try:
                made = await self._make()
            except Exception:
                log.exception("what the page shows could not be gathered: trying again")
            else:
                for take in list(self._followers):
                    take(made)
            await asyncio.sleep(self._every_s)
